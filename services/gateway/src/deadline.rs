//! Until when a call must have been answered.

use std::time::Duration;

use futures::{FutureExt as _, future::Either};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::Failure;
use tokio::time::Instant;

use crate::explain;

/// How much earlier than the gateway a server may see a deadline pass: timers tick in milliseconds.
const CLOCK_SLACK: Duration = Duration::from_millis(10);

/// When a call must have been answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<(Instant, Duration)>);

impl Deadline {
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        // A deadline the clock cannot express is none.
        Self(timeout.and_then(|asked| Some((Instant::now().checked_add(asked)?, asked))))
    }

    pub(crate) fn at(&self) -> Option<Instant> {
        self.0.map(|(at, _)| at)
    }

    /// The same on the clock of the endpoint set.
    pub(crate) fn on_boot(&self) -> Option<Tick> {
        let at = self.at()?;
        Some(BootClock.now() + at.saturating_duration_since(Instant::now()))
    }

    /// What to say when it has passed.
    pub(crate) fn passed(&self) -> Failure {
        explain::deadline(self.0.map_or(Duration::ZERO, |(_, asked)| asked))
    }

    /// Whether a server that cancelled the call did so because of the deadline, which it knows as
    /// well: it often says no more than "cancelled".
    pub(crate) fn explains_cancel(&self) -> bool {
        let near = |at: Instant| at.saturating_duration_since(Instant::now()) <= CLOCK_SLACK;
        self.at().is_some_and(near)
    }

    /// What comes of some work, unless it takes too long.
    ///
    /// # Errors
    /// What to say then.
    pub(crate) fn bound<F: Future>(
        self,
        work: F,
    ) -> impl Future<Output = Result<F::Output, Failure>> {
        match self.0 {
            None => Either::Left(work.map(Ok)),
            Some((at, _)) => {
                let bounded = tokio::time::timeout_at(at, work);
                Either::Right(bounded.map(move |done| done.map_err(|_| self.passed())))
            }
        }
    }
}
