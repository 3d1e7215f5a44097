//! How much of its share of calls a worker gets that has become ready a while ago.
//!
//! The share grows with time in a line, from a tenth, as Envoy's slow start does with an aggression of 1.

use std::time::Duration;

/// All of its share.
pub(crate) const WHOLE: u64 = 1_000;
/// What it begins with.
const LEAST: u64 = WHOLE / 10;

/// Which part of its share is due to a worker of this age, of `WHOLE`.
pub(crate) fn due(age: Duration, slow_start: Duration) -> u64 {
    if age >= slow_start {
        return WHOLE;
    }
    let part = age.as_nanos() * u128::from(WHOLE) / slow_start.as_nanos();
    u64::try_from(part).unwrap_or(WHOLE).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_from_a_tenth_in_a_line_and_is_whole_where_it_is_off() {
        let second = Duration::from_secs(1);
        let parts = [0, 1, 3, 5, 9, 10, 11].map(|age| due(second * age, second * 10));

        assert_eq!(parts, [100, 100, 300, 500, 900, 1_000, 1_000]);
        assert_eq!(due(Duration::ZERO, Duration::ZERO), WHOLE);
    }
}
