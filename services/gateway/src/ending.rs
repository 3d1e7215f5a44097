//! How a gateway ends: whoever watches is told first, then clients are asked to go, calls under way finish, and those that
//! may not go on for longer are told so with real trailers.
//!
//! ```text
//!  notice --drain_notice--> drain --drain--> cut --session_drain--> last --FLUSH--> close
//!  NOT_SERVING              GOAWAY twice     calls of no session,   all others      connections of
//!  watches of routes        no new calls     or of one that is over                 who does not read
//! ```

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tether_proto::Failure;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::{
    config::Config,
    explain,
    owners::{Acting, Owners},
    record,
};

/// How long the last words of calls may take to their clients.
const FLUSH: Duration = Duration::from_secs(1);

/// What tells connections and calls to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    /// Whoever watches is to know that it drains.
    pub(crate) notice: CancellationToken,
    /// Take no new calls, finish those under way.
    pub(crate) drain: CancellationToken,
    /// End calls, but of sessions that hold.
    pub(crate) cut: CancellationToken,
    /// The same, for calls that are woken by their connection when it is.
    is_cut: Arc<AtomicBool>,
    /// End all calls.
    last: CancellationToken,
    /// End now.
    pub(crate) close: CancellationToken,
    /// Calls of sessions.
    stays: TaskTracker,
}

/// A session in whose name a call is made, which may go on for as long as it holds.
pub(crate) struct Stay {
    acting: Acting,
    _stays: TaskTrackerToken,
}

impl Ending {
    /// The same for one lane: each call waits for it, and lanes are not to wait for each other there.
    pub(crate) fn on_lane(&self) -> Self {
        Self {
            cut: self.cut.child_token(),
            ..self.clone()
        }
    }

    /// That a call is made in the name of this session, where that makes a difference.
    pub(crate) fn stay(&self, acting: Option<Acting>, config: &Config) -> Option<Stay> {
        let acting = acting.filter(|_| !config.session_drain.is_zero())?;
        Some(Stay {
            acting,
            _stays: self.stays.token(),
        })
    }

    /// Tells when a call may go on no longer.
    pub(crate) fn dismissal(&self, stay: Option<Stay>, owners: &Arc<Owners>) -> Dismissal {
        let Some(stay) = stay else {
            return Dismissal::Cut(Arc::clone(&self.is_cut));
        };
        let cut = self.cut.clone().cancelled_owned();
        let (last, owners) = (self.last.clone(), Arc::clone(owners));
        Dismissal::Over(Box::pin(async move {
            // Whole, as it counts for as long as it is there.
            let stay = stay;
            cut.await;
            tokio::select! {
                () = owners.over(&stay.acting) => {}
                () = last.cancelled() => {}
            }
        }))
    }

    /// Ends all there is, `connections` last.
    pub(crate) async fn run(&self, connections: &TaskTracker, config: &Config) {
        self.drain.cancel();
        connections.close();
        self.stays.close();
        if within(config.drain, connections).await {
            return;
        }
        tracing::warn!(
            open = connections.len(),
            drain = ?config.drain,
            "Calls still under way at the end of the drain are told so"
        );
        self.is_cut.store(true, Ordering::Release);
        self.cut.cancel();
        if !within(config.session_drain, &self.stays).await && !self.stays.is_empty() {
            tracing::warn!(
                calls = self.stays.len(),
                session_drain = ?config.session_drain,
                "Calls of sessions that hold have gone on for as long as they may"
            );
        }
        self.last.cancel();
        if !within(FLUSH, connections).await {
            self.close.cancel();
            connections.wait().await;
        }
    }
}

async fn within(time: Duration, all: &TaskTracker) -> bool {
    tokio::time::timeout(time, all.wait()).await.is_ok()
}

/// Tells when a call may go on no longer.
pub(crate) enum Dismissal {
    /// With all others: then its task is woken by the connection that it came over.
    Cut(Arc<AtomicBool>),
    /// With its session.
    Over(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Dismissal {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Cut(is_cut) if is_cut.load(Ordering::Acquire) => Poll::Ready(()),
            Self::Cut(_) => Poll::Pending,
            Self::Over(over) => over.as_mut().poll(cx),
        }
    }

    /// What comes of some work, unless its call may go on no longer: then what its caller is told.
    pub(crate) fn unless_dismissed<T>(
        &mut self,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> impl Future<Output = Result<T, Failure>> {
        poll_fn(move |cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => {
                let dismissed = self.poll(cx);
                dismissed.map(|()| Err(explain::dismissed(&record::at())))
            }
        })
    }
}

impl fmt::Debug for Dismissal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dismissal")
    }
}
