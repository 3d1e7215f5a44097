//! Times that were measured, and what is to hold of them.

use std::{fmt, time::Duration};

/// All of one kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        let at = self.0.partition_point(|other| *other < time);
        self.0.insert(at, time);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn least(&self) -> Duration {
        self.0.first().copied().unwrap_or_default()
    }

    pub(crate) fn most(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    /// The one that so many of a hundred are not above.
    pub(crate) fn at(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
        write!(
            f,
            "median {:.1} ms, 99 % {:.1} ms, least {:.1} ms, most {:.1} ms of {}",
            millis(self.at(50)),
            millis(self.at(99)),
            millis(self.least()),
            millis(self.most()),
            self.count()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_sorted_times() {
        let mut times = Times::default();
        for millis in (1..=200).rev() {
            times.add(Duration::from_millis(millis));
        }

        let said = "median 100.0 ms, 99 % 198.0 ms, least 1.0 ms, most 200.0 ms of 200";
        assert_eq!(times.to_string(), said);
    }
}
