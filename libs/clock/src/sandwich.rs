//! Reads the clocks of the machine as if in one moment.

use rustix::time::{ClockId, clock_gettime};

use crate::{rule::Reading, source};

/// Clocks that were read further apart than this were read around an interruption: read again.
const WIDE: u64 = 20_000;

/// A machine that interrupts each of so many attempts has worse problems; the tightest is taken.
const ATTEMPTS: u32 = 8;

/// What the clocks show now.
pub(crate) fn read() -> Reading {
    source::shown().unwrap_or_else(|| tightest(nanos))
}

/// Raw time is read first and last, so that what lies between is known to have been read within.
fn tightest(mut show: impl FnMut(ClockId) -> u64) -> Reading {
    let mut attempt = || {
        let before = show(ClockId::MonotonicRaw);
        let monotonic = show(ClockId::Monotonic);
        let boot = show(ClockId::Boottime);
        let width = show(ClockId::MonotonicRaw).saturating_sub(before);
        (width, Reading::new(before + width / 2, monotonic, boot))
    };
    let mut best = attempt();
    for _ in 1..ATTEMPTS {
        if best.0 <= WIDE {
            break;
        }
        let next = attempt();
        if next.0 < best.0 {
            best = next;
        }
    }
    best.1
}

pub(crate) fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    secs.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;

    /// Each look takes as long as the script says, and 50 ns beyond its end.
    fn with(script: &[u64]) -> (Reading, usize) {
        let (mut now, mut looks) = (1_000_000_u64, 0);
        let reading = tightest(|_| {
            now += script.get(looks).copied().unwrap_or(50);
            looks += 1;
            now
        });
        (reading, looks)
    }

    #[test]
    fn an_interrupted_reading_is_taken_again_but_not_for_ever() {
        assert_eq!(with(&[]).1, 4);
        assert_eq!(with(&[50, 50, 3_000_000, 50]).1, 8);
        let always: Vec<_> = (0..100).map(|look| 1_000_000 - look).collect();
        assert_eq!(with(&always).1, 4 * ATTEMPTS as usize);
    }

    #[test]
    fn the_tightest_of_many_wide_readings_is_taken() {
        let mut script = vec![1_000_000; 32];
        script[17..20].fill(100_000);

        let (reading, _) = with(&script);

        let before = 1_000_000 + 17 * 1_000_000;
        let expected = Reading::new(before + 150_000, before + 100_000, before + 200_000);
        assert_eq!(reading, expected);
    }
}
