//! When to tell of questions that are refused: a wrong resolver would fill the log. Pure.

use std::time::Duration;

use tether_clock::Tick;

/// At most one line in so much time.
const PAUSE: Duration = Duration::from_secs(60);

/// How many there were, and when that was told.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    untold: u64,
    told: Option<Tick>,
}

impl Refusals {
    /// One more. Says how many there are to tell of, where it is time to.
    pub(super) fn on_refusal(&mut self, now: Tick) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now < told + PAUSE) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_those_after_it_together() {
        let mut refusals = Refusals::default();
        let start = Tick::ZERO;
        assert_eq!(refusals.on_refusal(start), Some(1));
        assert_eq!(refusals.on_refusal(start + PAUSE / 2), None);
        assert_eq!(refusals.on_refusal(start + PAUSE), Some(2));
    }
}
