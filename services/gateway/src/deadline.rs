//! Until when a call must have been answered.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::Failure;
use tokio::time::{Instant, Sleep};

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
    pub(crate) fn bound<F: Future>(self, work: F) -> Bound<F> {
        let timer = self.timer();
        Bound { work, timer }
    }

    /// Tells when it has passed.
    pub(crate) fn timer(self) -> Timer {
        Timer {
            deadline: self,
            sleep: None,
        }
    }
}

/// Tells when a deadline has passed. There is nothing to wake before somebody has to wait.
#[derive(Debug)]
pub(crate) struct Timer {
    deadline: Deadline,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    pub(crate) fn deadline(&self) -> Deadline {
        self.deadline
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let Some(at) = self.deadline.at() else {
            return Poll::Pending;
        };
        let sleep = || Box::pin(tokio::time::sleep_until(at));
        let sleep = self.sleep.get_or_insert_with(sleep);
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(self.deadline.passed())
    }
}

pin_project! {
    /// Some work, and the time it may take.
    pub(crate) struct Bound<F> {
        #[pin]
        work: F,
        timer: Timer,
    }
}

impl<F: Future> Future for Bound<F> {
    type Output = Result<F::Output, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.work.poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => this.timer.poll(cx).map(Err),
        }
    }
}
