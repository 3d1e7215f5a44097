//! Calls told as they end, to whoever watches; nothing is kept while nobody does.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use http::Uri;
use tether_proto::gateway::TailResponse;
use tether_types::{Incarnation, OwnerName, PoolName, WorkerId};
use tokio::sync::mpsc;

use crate::route::Destination;

use super::At;

/// Calls that one who watches may be behind; further ones are lost to it, and counted.
const BEHIND: usize = 1_024;

/// The worker's own answer was passed on whole.
pub(super) const ANSWERED: &str = "answered";
/// Its caller went.
const CLIENT_GONE: &str = "client_gone";

/// The code of a call that its caller has given up.
const CANCELLED: u32 = 1;

/// Which calls somebody wants to see.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    pub(crate) pool: Option<PoolName>,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) outcomes: Vec<String>,
    pub(crate) least: Duration,
    pub(crate) failed: bool,
}

impl Filter {
    /// The outcomes there are.
    pub(crate) const OUTCOMES: [&str; 6] = [
        ANSWERED,
        CLIENT_GONE,
        "never_sent",
        "refused",
        "sent_unknown",
        "started",
    ];

    fn wants(&self, call: &Trace, at: &At, took: Duration, (code, outcome): (u32, &str)) -> bool {
        let is_of = |worker: &WorkerId| {
            let had = at.worker();
            had.is_some_and(|had| {
                let same = (&had.pool, had.slot) == (&worker.pool, worker.slot);
                same && [Incarnation(0), had.incarnation].contains(&worker.incarnation)
            })
        };
        self.pool.as_ref().is_none_or(|pool| *pool == call.pool)
            && self.worker.as_ref().is_none_or(is_of)
            && (self.outcomes.is_empty() || self.outcomes.iter().any(|wanted| wanted == outcome))
            && took >= self.least
            && (!self.failed || code != 0)
    }
}

/// Those who watch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many there are, for calls that look whether there is one.
    watched: AtomicUsize,
    watchers: Mutex<Vec<Arc<Watcher>>>,
}

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    calls: mpsc::Sender<TailResponse>,
    lost: AtomicU64,
}

/// Calls as they end, for as long as this is there.
#[derive(Debug)]
pub(crate) struct Watch {
    tail: Tail,
    watcher: Arc<Watcher>,
    calls: mpsc::Receiver<TailResponse>,
}

impl Tail {
    /// Follows the call that this is called by, where somebody watches.
    pub(crate) fn begin(&self, uri: &Uri, to: &Destination) {
        if self.0.watched.load(Ordering::Relaxed) > 0 {
            super::follow(Trace {
                tail: self.clone(),
                uri: uri.clone(),
                pool: to.pool.clone(),
                owner: to.owner.clone(),
                began: Instant::now(),
                sent: None,
                end: None,
            });
        }
    }

    /// Watches calls that begin from here on.
    pub(crate) fn watch(&self, filter: Filter) -> Watch {
        let (sender, calls) = mpsc::channel(BEHIND);
        let watcher = Arc::new(Watcher {
            filter,
            calls: sender,
            lost: AtomicU64::new(0),
        });
        let mut watchers = self.watchers();
        watchers.push(Arc::clone(&watcher));
        self.0.watched.store(watchers.len(), Ordering::Relaxed);
        drop(watchers);
        Watch {
            tail: self.clone(),
            watcher,
            calls,
        }
    }

    fn tell(&self, call: &Trace, at: &At) {
        let took = call.began.elapsed();
        let end = call.end.unwrap_or((CANCELLED, CLIENT_GONE));
        let watchers = self.watchers();
        let wanted = watchers.iter();
        for watcher in wanted.filter(|watcher| watcher.filter.wants(call, at, took, end)) {
            if watcher.calls.try_send(call.told(at, took, end)).is_err() {
                watcher.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn watchers(&self) -> MutexGuard<'_, Vec<Arc<Watcher>>> {
        self.0
            .watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// The next call that has ended; how many were lost before it is told with it.
    pub(crate) async fn next(&mut self) -> Option<TailResponse> {
        let mut call = self.calls.recv().await?;
        call.lost = self.watcher.lost.swap(0, Ordering::Relaxed);
        Some(call)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watchers = self.tail.watchers();
        watchers.retain(|watcher| !Arc::ptr_eq(watcher, &self.watcher));
        self.tail.0.watched.store(watchers.len(), Ordering::Relaxed);
    }
}

/// A call that is followed.
#[derive(Debug)]
pub(super) struct Trace {
    tail: Tail,
    uri: Uri,
    pool: PoolName,
    owner: Option<OwnerName>,
    began: Instant,
    sent: Option<Instant>,
    /// The code and the outcome; none where its caller went before there were any.
    end: Option<(u32, &'static str)>,
}

impl Trace {
    /// It is over, and stood there.
    pub(super) fn tell(&self, at: &At) {
        self.tail.tell(self, at);
    }

    pub(super) fn on_sent(&mut self) {
        self.sent.get_or_insert_with(Instant::now);
    }

    pub(super) fn on_end(&mut self, code: u32, outcome: &'static str) {
        self.end = Some((code, outcome));
    }

    fn told(&self, at: &At, took: Duration, (code, outcome): (u32, &str)) -> TailResponse {
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let waited = self.sent.map_or(took, |sent| sent - self.began);
        TailResponse {
            unix_ms: unix_ms(SystemTime::now()),
            duration_us: micros(took),
            waited_us: micros(waited),
            path: self.uri.path().to_owned(),
            pool: self.pool.to_string(),
            worker: at.worker().map(Into::into),
            attempts: at.attempts(),
            code,
            outcome: outcome.to_owned(),
            owner: self
                .owner
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            lost: 0,
        }
    }
}

/// A time, as it is told.
pub(crate) fn unix_ms(at: SystemTime) -> u64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
