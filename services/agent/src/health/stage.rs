//! How far a worker has come, and what happens to it next there.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    liveness::Liveness,
    notify::Datagram,
    readiness::{Answer, Question, Waiting},
};

/// Between two reports of what a worker says of itself.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// How far a worker has come.
pub(super) enum Stage {
    /// Its program does not run yet. Where it is to be forked from another process, this tells that it will
    /// not be, as that one hangs.
    Unborn(Option<CancellationToken>),
    /// It is waited for.
    Starting(Waiting),
    /// It is ready, and watched where the template asks for it.
    Ready(Option<Box<Watch>>),
    /// It said that it is about to end, and is given until then.
    Leaving(Instant),
    /// It is being ended, and no longer judged.
    Over,
}

/// The watch on a ready worker.
pub(super) struct Watch {
    pub(super) liveness: Liveness,
    pub(super) question: Option<Question>,
    pub(super) asking: Option<Pin<Box<dyn Future<Output = Answer> + Send>>>,
}

/// What a worker says of itself, and what was told of it.
#[derive(Debug, Default)]
pub(super) struct Status {
    pub(super) said: String,
    pub(super) told: String,
    pub(super) told_at: Option<Instant>,
}

/// What happened.
pub(super) enum Happened {
    Unforked,
    Heard(Datagram),
    Ready,
    Answered(Answer),
    Due,
    StatusDue,
}

impl Stage {
    /// The next thing that happens there. Cancel-safe.
    pub(super) async fn next(&mut self) -> Happened {
        match self {
            Self::Starting(waiting) => {
                waiting.ready.as_mut().await;
                Happened::Ready
            }
            Self::Ready(Some(watch)) => {
                let due = watch.liveness.next_deadline();
                let answer = async {
                    match &mut watch.asking {
                        Some(asking) => asking.await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    answer = answer => Happened::Answered(answer),
                    () = until(due) => Happened::Due,
                }
            }
            Self::Leaving(at) => {
                until(Some(*at)).await;
                Happened::Due
            }
            Self::Unborn(Some(hangs)) => {
                hangs.cancelled().await;
                Happened::Unforked
            }
            Self::Unborn(None) | Self::Ready(None) | Self::Over => std::future::pending().await,
        }
    }
}

impl Status {
    /// When to tell what it said; none where that was told.
    pub(super) fn due(&self) -> Option<Instant> {
        let is_news = self.said != self.told;
        is_news.then(|| {
            self.told_at
                .map_or_else(Instant::now, |at| at + STATUS_PAUSE)
        })
    }
}

/// Comes back at this time, or never.
pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
