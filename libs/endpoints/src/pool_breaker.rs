//! The breaker of a pool as a whole, beside those of its workers.
//!
//! Leaving single workers alone helps while others do better, and only a share of them is (E10). Where those that are left
//! fail too, what they need may be gone, and calls do nothing but add to it: the pool is then left alone. So that the two
//! do not answer the same failures, this one forgets what it knows whenever a worker is left alone or ends, and does not
//! look at calls that were trials of single workers or given to one that is gone.

use std::time::Duration;

use tether_breaker::{Admit, Breaker, Outcome, Permit, Snapshot, Terms};
use tether_clock::Tick;

#[derive(Debug, Default)]
pub(crate) struct PoolBreaker(Option<Breaker>);

/// What there is to know of a call beside its outcome.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfCall {
    /// Whether it was a trial of its worker.
    pub(crate) is_probe: bool,
    /// Whether its answer has begun.
    pub(crate) is_answered: bool,
    /// Whether its worker is still there.
    pub(crate) lives: bool,
}

impl PoolBreaker {
    pub(crate) fn new(terms: Option<Terms>) -> Self {
        Self(terms.map(Breaker::new))
    }

    /// Why no call is admitted at `now`, as the time after which to ask again.
    pub(crate) fn refusal(&self, now: Tick) -> Option<Duration> {
        self.0.as_ref()?.refusal(now)
    }

    /// A call goes to a worker, as `refusal` allowed.
    pub(crate) fn admit(&mut self, now: Tick) -> Option<Box<Permit>> {
        match self.0.as_mut()?.admit(now) {
            Admit::Yes(permit) => Some(Box::new(permit)),
            Admit::Refused { .. } => None,
        }
    }

    /// What became of a call that was given to a worker with this permit.
    pub(crate) fn on_outcome(
        &mut self,
        permit: Option<Box<Permit>>,
        of_call: OfCall,
        outcome: Outcome,
        now: Tick,
    ) {
        if let (Some(breaker), Some(permit)) = (&mut self.0, permit) {
            let outcome = match outcome {
                // It died or left with all its calls: that is one worker less, and says nothing of the others.
                _ if !of_call.lives => Outcome::Silent,
                // A worker's own breaker answers to that.
                Outcome::Failure if of_call.is_probe && !permit.is_probe() => Outcome::Silent,
                // How long an answer takes is a worker's matter, where there is one.
                Outcome::Slow if of_call.is_answered => Outcome::Success,
                Outcome::Slow => Outcome::Silent,
                outcome => outcome,
            };
            breaker.on_outcome(*permit, outcome, true, now);
        }
    }

    /// A worker is left alone because of its calls, or ends: those that come say how the others do.
    pub(crate) fn on_one_less(&mut self) {
        if let Some(breaker) = &mut self.0 {
            breaker.forget();
        }
    }

    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        self.0.as_ref().map(Breaker::snapshot)
    }
}
