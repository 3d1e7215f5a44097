//! The most there were of something within a span of time. Pure.

use std::collections::VecDeque;

use tether_clock::Tick;

/// Counts that are over, each with when it is forgotten. Later ones are smaller: there are never more of them than the
/// first one counts.
#[derive(Debug, Default)]
pub(super) struct Peaks(VecDeque<(usize, Tick)>);

impl Peaks {
    /// There were so many, and from now on there are fewer.
    pub(super) fn on_fall(&mut self, count: usize, forgotten: Tick) {
        while self.0.back().is_some_and(|(lower, _)| *lower <= count) {
            self.0.pop_back();
        }
        self.0.push_back((count, forgotten));
    }

    /// The most that is not forgotten.
    pub(super) fn most(&mut self, now: Tick) -> usize {
        while self
            .0
            .front()
            .is_some_and(|(_, forgotten)| *forgotten <= now)
        {
            self.0.pop_front();
        }
        self.0.front().map_or(0, |(count, _)| *count)
    }

    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn the_most_counts_until_it_is_forgotten_and_what_is_less_than_a_later_one_is_not_kept() {
        let mut peaks = Peaks::default();
        assert_eq!(peaks.most(at(0)), 0);
        for (count, forgotten) in [(9, 10), (3, 11), (7, 12), (7, 13), (2, 14)] {
            peaks.on_fall(count, at(forgotten));
        }
        assert_eq!(peaks.0.len(), 3, "9, the later 7, and 2");
        assert_eq!(peaks.most(at(9)), 9);
        assert_eq!(peaks.most(at(12)), 7);
        assert_eq!(peaks.most(at(13)), 2);
        assert_eq!(peaks.most(at(14)), 0);
    }
}
