//! How many calls a worker may have before it, where nobody knows how many it can serve at once: found by the time that
//! answers take to begin.
//!
//! As Envoy's adaptive concurrency does, it measures from time to time, with few calls at a time, how long an answer takes
//! where nobody is in its way, and then compares: while answers take about that long, more calls are let through; the
//! longer they take, the fewer. Envoy's step up is the square root of the limit; this one is less than half of it, since
//! for a worker of one thread one call more is already one that waits.
//!
//! A call counts until its answer begins: a stream of hours is no work that could be measured, and none that is in the way.

use std::time::Duration;

use tether_clock::Tick;

/// Answers that are compared at a time, at least; and of how many the times are kept, those of the last.
const FEWEST: usize = 10;
const KEPT: usize = 100;
/// For how long at least they are gathered, and for how many times what one takes alone: the first to be there are those
/// that take little.
const GATHER: Duration = Duration::from_millis(100);
const GATHER_TIMES: u32 = 4;
/// How often it is measured how long an answer takes: not sooner than after this, and this many such times.
const MEASURE: Duration = Duration::from_secs(30);
const MEASURE_TIMES: u32 = 100;
/// How much sooner after the first time.
const FIRST: u32 = 10;
/// How many answers are waited for then, for each call that is let through at a time.
const ROUNDS: usize = 10;
/// While that is measured, one part in this many of the calls is let through.
const QUIET: f64 = 4.0;
/// Answers may take so much longer than that.
const TOLERANCE: f64 = 1.2;
/// By how much the limit grows at a time where answers take no longer: so many times its square root, less so much.
const STEP: f64 = 0.5;
const LESS: f64 = 0.2;
/// The largest limit.
const LARGEST: f64 = 10_000.0;

#[derive(Debug)]
pub(crate) struct Limiter {
    limit: f64,
    /// Calls whose answer has not begun.
    pending: u32,
    /// How long an answer takes where nobody is in its way; `None` while nobody knows.
    alone: Option<Duration>,
    phase: Phase,
    /// A worker's own part, below a quarter, that measurements are put off by: not all are to measure at once.
    put_off: f64,
    times: Vec<Duration>,
    /// How many there were, with those that are not kept.
    count: usize,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Few calls at a time; counted are those sent since no more were under way.
    Measures { since: Option<Tick> },
    /// Counted are those sent since a moment; the limit was reached since then, or not.
    Compares {
        since: Tick,
        was_full: bool,
        until: Tick,
    },
}

impl Limiter {
    /// For a worker of whom nothing is known; `chance` differs from worker to worker.
    pub(crate) fn new(chance: u64) -> Self {
        Self {
            limit: 1.0,
            pending: 0,
            alone: None,
            phase: Phase::Measures { since: None },
            put_off: f64::from(u8::try_from(chance % 256).unwrap_or(0)) / 1024.0,
            times: Vec::new(),
            count: 0,
        }
    }

    /// How many calls it may have before it.
    pub(crate) fn limit(&self) -> u32 {
        let limit = match self.phase {
            Phase::Measures { .. } => self.limit / QUIET,
            Phase::Compares { .. } => self.limit,
        };
        // At least one and at most the largest, so that nothing is lost.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let limit = limit.max(1.0) as u32;
        limit
    }

    pub(crate) fn is_full(&self) -> bool {
        self.pending >= self.limit()
    }

    /// One more call is given to the worker.
    pub(crate) fn on_call(&mut self, now: Tick) {
        self.check(now);
        self.pending += 1;
        let is_full = self.is_full();
        if let Phase::Compares { was_full, .. } = &mut self.phase {
            *was_full |= is_full;
        }
    }

    /// The answer of a call that was sent at `sent` has begun; `counts` says whether the worker has worked for it.
    pub(crate) fn on_answer(&mut self, sent: Tick, counts: bool, now: Tick) {
        self.pending = self.pending.saturating_sub(1);
        if counts {
            self.take(sent, now);
        }
        self.check(now);
    }

    /// A call is over before its answer has begun. One that took longer than it should says so by that.
    pub(crate) fn on_end(&mut self, sent: Option<Tick>, now: Tick) {
        self.pending = self.pending.saturating_sub(1);
        let is_comparing = matches!(self.phase, Phase::Compares { .. });
        if let (true, Some(sent), Some(alone)) = (is_comparing, sent, self.alone)
            && now.since(sent) > alone * 2
        {
            self.take(sent, now);
        }
        self.check(now);
    }

    /// Time has passed, or calls have gone.
    fn check(&mut self, now: Tick) {
        match self.phase {
            Phase::Compares { until, .. } if now >= until => {
                self.forget();
                self.phase = Phase::Measures { since: None };
                self.check(now);
            }
            Phase::Measures { since: None } if self.pending <= self.limit() => {
                self.phase = Phase::Measures { since: Some(now) };
            }
            Phase::Measures { .. } | Phase::Compares { .. } => {}
        }
    }

    fn take(&mut self, sent: Tick, now: Tick) {
        let (Phase::Measures { since: Some(since) } | Phase::Compares { since, .. }) = self.phase
        else {
            return;
        };
        if sent < since {
            return;
        }
        let took = now.since(sent);
        match self.times.get_mut(self.count % KEPT) {
            Some(oldest) => *oldest = took,
            None => self.times.push(took),
        }
        self.count += 1;
        match self.phase {
            Phase::Measures { .. } if self.count >= self.limit() as usize * ROUNDS => {
                let alone = self.median();
                let pause = (alone * MEASURE_TIMES).max(MEASURE);
                // The first time it was measured with one call at a time, and so with few.
                let pause = if self.alone.is_none() {
                    pause / FIRST
                } else {
                    pause
                };
                self.alone = Some(alone);
                self.compare(now, now + pause.mul_f64(1.0 + self.put_off));
            }
            Phase::Compares {
                since,
                was_full,
                until,
            } if self.count >= FEWEST && now.since(since) >= self.gather() => {
                self.adjust(was_full);
                self.compare(now, until);
            }
            Phase::Measures { .. } | Phase::Compares { .. } => {}
        }
    }

    /// Sets the limit by the times since it was set last.
    fn adjust(&mut self, was_full: bool) {
        let took = self.median().as_secs_f64();
        let alone = self.alone.unwrap_or_default().as_secs_f64();
        let gradient = match took > 0.0 {
            true => (TOLERANCE * alone / took).clamp(0.5, 1.0),
            false => 1.0,
        };
        let found = self.limit * gradient + STEP * self.limit.sqrt() - LESS;
        // Where fewer calls came than could, their times say nothing of more.
        let found = if was_full {
            found
        } else {
            found.min(self.limit)
        };
        self.limit = f64::midpoint(self.limit, found).clamp(1.0, LARGEST);
    }

    fn gather(&self) -> Duration {
        let alone = self.alone.unwrap_or_default();
        GATHER.max(alone * GATHER_TIMES)
    }

    fn forget(&mut self) {
        self.times.clear();
        self.count = 0;
    }

    fn compare(&mut self, since: Tick, until: Tick) {
        self.forget();
        let was_full = self.is_full();
        self.phase = Phase::Compares {
            since,
            was_full,
            until,
        };
    }

    fn median(&mut self) -> Duration {
        self.times.sort_unstable();
        let middle = self.times.len() / 2;
        self.times.get(middle).copied().unwrap_or_default()
    }
}
