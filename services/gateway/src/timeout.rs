//! The `grpc-timeout` of a call: at most eight digits and a unit.

use std::time::Duration;

use http::HeaderValue;

/// Units from the finest, with their length in nanoseconds.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// The most that eight digits hold.
const MAX: u128 = 99_999_999;

/// Reads a `grpc-timeout`; `None` when it is not one.
pub(crate) fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let (_, nanos) = UNITS.iter().find(|(letter, _)| letter == unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits
        .iter()
        .fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(Duration::from_nanos(count.saturating_mul(*nanos)))
}

/// Writes a `grpc-timeout` in the finest unit that fits, never longer than `timeout`.
pub(crate) fn format(timeout: Duration) -> HeaderValue {
    let total = timeout.as_nanos();
    let text = UNITS
        .iter()
        .map(|&(letter, nanos)| (total / u128::from(nanos), char::from(letter)))
        .find(|(count, _)| *count <= MAX)
        .map_or_else(
            || format!("{MAX}H"),
            |(count, letter)| format!("{count}{letter}"),
        );
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        let seconds = |text: &str| parse(text.as_bytes()).map(|time| time.as_secs_f64());

        assert_eq!(seconds("5n"), Some(5e-9));
        assert_eq!(seconds("5u"), Some(5e-6));
        assert_eq!(seconds("5m"), Some(0.005));
        assert_eq!(seconds("5S"), Some(5.0));
        assert_eq!(seconds("5M"), Some(300.0));
        assert_eq!(seconds("99999999H"), Some(18_446_744_073.709_553));
        assert_eq!(seconds("0m"), Some(0.0));
    }

    #[test]
    fn what_is_not_a_timeout_is_refused() {
        for bad in ["", "S", "5", "5s", "123456789S", "-1S", "1.5S", "5 S", "٥S"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_reads_back_almost_as_long_and_never_longer() {
        for nanos in [0, 1, 99_999_999, 100_000_000, 1_234_567_891, u64::MAX / 7] {
            let timeout = Duration::from_nanos(nanos);

            let back = parse(format(timeout).as_bytes()).unwrap();

            assert!(back <= timeout);
            assert!(timeout - back <= timeout / 100_000, "{timeout:?} {back:?}");
        }
    }
}
