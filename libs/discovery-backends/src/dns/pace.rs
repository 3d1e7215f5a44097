//! When to ask again. Pure.

use std::time::Duration;

/// Where a server does not say how long "there is none" holds.
const UNSAID: Duration = Duration::from_secs(2);

/// Up to this share is added to every wait, so that many who began together do not go on together.
const SPREAD: f64 = 0.1;

/// How often a name is asked for at most and at least, whatever its records say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Servers that say 0 mean "do not cache", which would be a query without pause.
    pub(super) floor: Duration,
    /// A record that lives for a day may still be changed by hand.
    pub(super) ceiling: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            floor: Duration::from_secs(1),
            ceiling: Duration::from_secs(30),
        }
    }
}

/// The waits between questions.
#[derive(Debug)]
pub(super) struct Pace {
    bounds: Bounds,
    /// How many questions in a row nobody could answer.
    failures: u32,
}

impl Pace {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            failures: 0,
        }
    }

    /// The wait after an answer that holds for `ttl`; `chance` is 0 to 1.
    pub(super) fn after_answer(&mut self, ttl: Option<Duration>, chance: f64) -> Duration {
        self.failures = 0;
        let ttl = ttl.unwrap_or(UNSAID);
        spread(ttl.clamp(self.bounds.floor, self.bounds.ceiling), chance)
    }

    /// The wait after a question that nobody answered: each one is twice the one before.
    pub(super) fn after_failure(&mut self, chance: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failures);
        self.failures = self.failures.saturating_add(1);
        let wait = self.bounds.floor.saturating_mul(doubled);
        spread(wait.min(self.bounds.ceiling), chance)
    }
}

fn spread(wait: Duration, chance: f64) -> Duration {
    wait + wait.mul_f64(SPREAD * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn an_answer_is_asked_for_again_when_its_time_is_over_within_bounds() {
        let mut pace = Pace::new(Bounds::default());
        for (ttl, wait) in [(0, 1), (1, 1), (7, 7), (86_400, 30)] {
            let waited = pace.after_answer(seconds(ttl), 0.0);
            assert_eq!(Some(waited), seconds(wait), "{ttl}");
        }
        assert_eq!(Some(pace.after_answer(None, 0.0)), seconds(2));
        assert_eq!(pace.after_answer(seconds(10), 1.0), Duration::from_secs(11));
    }

    #[test]
    fn waits_grow_while_nobody_answers_and_an_answer_ends_that() {
        let mut pace = Pace::new(Bounds::default());
        let waits: Vec<_> = (0..7).map(|_| pace.after_failure(0.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        pace.after_answer(seconds(1), 0.0);
        assert_eq!(pace.after_failure(0.5), Duration::from_millis(1_050));
        // However long it goes on.
        pace.failures = u32::MAX;
        assert_eq!(Some(pace.after_failure(0.0)), seconds(30));
    }
}
