//! Decides whether one incarnation of a worker may be given another call.
//!
//! A worker that fails several calls in a row, or too many of its last calls, or is slow with too many of them, is left
//! alone for a while, then tried with a few calls, and trusted again when one of them succeeds. A worker that fails its
//! trials is left alone for twice as long. The death of a worker is not decided here: whoever knows of it throws
//! the breaker away together with the incarnation.
//!
//! ```text
//!        failures in a row, or in the last calls            open time passed
//!   closed ------------------------------------> open ----------------------> half-open
//!     ^                                           ^                            |    |
//!     |                                           +------- a probe fails ------+    |
//!     +------------------------------ a probe succeeds -----------------------------+
//! ```
//!
//! Every admitted call holds a [`Permit`] and gives it back with what became of the call. A permit
//! belongs to the round in which it was given; each change of state begins another round.
//!
//! # Invariants
//!
//! - **B1** Nothing is admitted while the breaker is open.
//! - **B2** At most `half_open_probes` calls are under way as probes of one round. Where they say nothing for as long as it
//!   was open, another round begins: a probe may be a call of hours.
//! - **B3** A success in the closed state forgets the failures before it.
//! - **B4** The breaker is never open for longer than `max_open_for` at a time.
//! - **B5** A permit of an earlier round changes nothing: a late answer to a call admitted before
//!   the trip neither closes the breaker nor opens it again.
//! - **B6** In the closed state the last `window` calls are looked at once they are `min_calls`: it opens where
//!   `failure_percent` of them failed or `slow_percent` were slow. What was before the last change of state is forgotten.
//! - **B7** One that may not trip stays closed, and trips with the next bad call for which it may.
//! - **B9** What a closed breaker was told to forget does not open it, nor do the calls that were under way then.
//!
//! Beside it is the budget of calls that are made again, [`Retries`], with **B8**.
//!
//! No clock is read here. Every call is told what time it is.

mod codes;
mod retries;
mod window;

use std::time::Duration;

use tether_clock::Tick;

pub use codes::{CODES, Codes, Outcome};
pub use retries::{Retries, RetryTerms, SPAN};

use window::{Mark, Window};

/// What a caller is told to wait while the probes of a half-open breaker are under way.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// When a breaker trips and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Failures in a row that open it; 0 counts as 1.
    pub failure_threshold: u32,
    /// How long it stays open at first.
    pub open_for: Duration,
    /// The longest it stays open, however often its probes fail.
    pub max_open_for: Duration,
    /// Calls admitted at once while half-open; 0 counts as 1.
    pub half_open_probes: u32,
    /// How many of the last calls are looked at; 0 looks at none.
    pub window: u32,
    /// How many there have to be before their shares count.
    pub min_calls: u32,
    /// How many of a hundred of them have to fail for it to open; 0 for never.
    pub failure_percent: u32,
    /// How many of a hundred of them have to be slow; 0 for never.
    pub slow_percent: u32,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            failure_threshold: 5,
            open_for: Duration::from_secs(30),
            max_open_for: Duration::from_secs(300),
            half_open_probes: 1,
            window: 100,
            min_calls: 20,
            failure_percent: 50,
            slow_percent: 100,
        }
    }
}

impl Terms {
    /// How long the breaker stays open after `trips` trips without a success between them.
    fn open_time(&self, trips: u32) -> Duration {
        let doublings = trips.saturating_sub(1).min(31);
        self.open_for
            .saturating_mul(1 << doublings)
            .min(self.max_open_for)
    }
}

/// Permission for one call, to be given back exactly once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a probe's permit that is not given back blocks the breaker"]
pub struct Permit {
    round: u64,
    probe: bool,
}

impl Permit {
    /// Whether the call is a trial of a worker that has failed before.
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

/// The answer to a caller that wants to make a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Admit {
    /// Go on, and give the permit back.
    Yes(Permit),
    /// Not now.
    Refused {
        /// When asking again makes sense.
        retry_after: Duration,
    },
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Admits every call.
    Closed {
        /// Failures in a row so far.
        failures: u32,
    },
    /// Admits nothing.
    Open {
        /// When it becomes half-open.
        until: Tick,
    },
    /// Admits a few calls to find out how the worker is.
    HalfOpen {
        /// Probes under way.
        probes: u32,
        /// When they began.
        since: Tick,
    },
}

/// A breaker as plain data, for status pages and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Where it stands.
    pub state: State,
    /// Trips since it was last closed.
    pub trips: u32,
}

/// The circuit breaker of one incarnation of a worker.
#[derive(Debug)]
pub struct Breaker {
    terms: Terms,
    state: State,
    trips: u32,
    round: u64,
    window: Window,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            state: State::Closed { failures: 0 },
            trips: 0,
            round: 0,
            window: Window::default(),
        }
    }

    /// Asks to make a call.
    pub fn admit(&mut self, now: Tick) -> Admit {
        self.check(now);
        if let Some(retry_after) = self.refusal(now) {
            return Admit::Refused { retry_after };
        }
        let probe = match &mut self.state {
            State::HalfOpen { probes, .. } => {
                *probes += 1;
                true
            }
            State::Closed { .. } | State::Open { .. } => false,
        };
        Admit::Yes(Permit {
            round: self.round,
            probe,
        })
    }

    /// What `admit` would refuse with at `now`, without asking for a permit.
    pub fn refusal(&self, now: Tick) -> Option<Duration> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { until } => (now < until).then(|| until.since(now)),
            State::HalfOpen { probes, since } => {
                let is_full = probes >= self.terms.half_open_probes.max(1);
                (is_full && now < self.patience(since)).then_some(PROBE_WAIT)
            }
        }
    }

    /// Gives a permit back with what became of its call. A closed breaker opens only where it `may_trip`: whoever has
    /// many of them may want to keep some of the workers whatever they do.
    pub fn on_outcome(&mut self, permit: Permit, outcome: Outcome, may_trip: bool, now: Tick) {
        let mark = match outcome {
            Outcome::Silent => return self.on_silence(permit, now),
            Outcome::Success => Mark::Good,
            Outcome::Slow => Mark::Slow,
            Outcome::Failure => Mark::Failed,
        };
        self.check(now);
        if permit.round != self.round {
            return; // B5
        }
        match &mut self.state {
            State::Open { .. } => {}
            State::HalfOpen { .. } => match mark {
                Mark::Good => {
                    self.trips = 0;
                    self.enter(State::Closed { failures: 0 });
                }
                Mark::Slow | Mark::Failed => self.trip(now),
            },
            State::Closed { failures } => {
                *failures = match mark {
                    Mark::Failed => failures.saturating_add(1),
                    Mark::Good | Mark::Slow => 0, // B3
                };
                let in_a_row = *failures >= self.terms.failure_threshold.max(1);
                self.window.push(mark, self.terms.window);
                if mark != Mark::Good && may_trip && (in_a_row || self.is_bad()) {
                    self.trip(now);
                }
            }
        }
    }

    /// Whether too many of the last calls failed or were slow (B6).
    fn is_bad(&self) -> bool {
        let terms = &self.terms;
        self.window.len() >= terms.min_calls.max(1)
            && (self.window.fails(terms.failure_percent) || self.window.lags(terms.slow_percent))
    }

    fn on_silence(&mut self, permit: Permit, now: Tick) {
        self.check(now);
        if let State::HalfOpen { probes, .. } = &mut self.state
            && permit.round == self.round
        {
            *probes -= 1;
        }
    }

    /// What calls have said so far, and those under way will, says nothing any more, while it is closed.
    pub fn forget(&mut self) {
        if let State::Closed { .. } = self.state {
            self.enter(State::Closed { failures: 0 });
        }
    }

    /// Only time passed.
    pub fn check(&mut self, now: Tick) {
        let again = match self.state {
            State::Closed { .. } => false,
            State::Open { until } => now >= until,
            State::HalfOpen { probes, since } => probes > 0 && now >= self.patience(since),
        };
        if again {
            self.enter(State::HalfOpen {
                probes: 0,
                since: now,
            });
        }
    }

    /// When `check` will change something by itself.
    pub fn next_deadline(&self) -> Option<Tick> {
        match self.state {
            State::Open { until } => Some(until),
            State::HalfOpen { probes, since } if probes > 0 => Some(self.patience(since)),
            State::Closed { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Somebody knows better, and has it trusted again as if nothing had been. Answers whether it was not.
    pub fn close(&mut self) -> bool {
        let was_closed = matches!(self.state, State::Closed { .. });
        self.trips = 0;
        self.enter(State::Closed { failures: 0 });
        !was_closed
    }

    /// Until when probes that began at `since` are waited for.
    fn patience(&self, since: Tick) -> Tick {
        since + self.terms.open_time(self.trips)
    }

    /// Whether it admits nothing, or did when it was last asked.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Plain data about it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: self.state,
            trips: self.trips,
        }
    }

    fn trip(&mut self, now: Tick) {
        self.trips = self.trips.saturating_add(1);
        self.enter(State::Open {
            until: now + self.terms.open_time(self.trips),
        });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.round += 1;
        self.window.clear();
    }
}
