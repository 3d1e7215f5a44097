//! One queue for all workers, as ideal as it can be: whoever came first is next, and no worker is idle while a call waits.

use std::{cmp::Reverse, collections::BinaryHeap};

/// A call as it came, and how long it was served.
#[derive(Debug, Clone, Copy)]
pub(super) struct Came {
    pub(super) at: u64,
    pub(super) work: u64,
}

/// How long each of these waits for one of so many workers, in the order in which they came.
pub(super) fn waits(calls: &[Came], workers: usize) -> Vec<u64> {
    let mut free: BinaryHeap<Reverse<u64>> = vec![Reverse(0); workers].into();
    let mut waits = Vec::with_capacity(calls.len());
    for call in calls {
        let Some(Reverse(next)) = free.pop() else {
            break;
        };
        let begin = next.max(call.at);
        waits.push(begin - call.at);
        free.push(Reverse(begin + call.work));
    }
    waits
}

#[cfg(test)]
mod tests {
    use tether_tests::clerk::dice::Dice;

    use super::*;

    #[test]
    fn calls_wait_only_while_all_are_busy_and_the_first_is_next() {
        let calls = [(0, 10), (1, 2), (2, 5), (2, 5)].map(|(at, work)| Came { at, work });

        assert_eq!(waits(&calls, 2), [0, 0, 1, 6]);
    }

    /// Erlang's formula for ten workers at a load of 0.8: 0.409 of all wait, each of those 1 / (10 - 8) on average.
    #[test]
    fn random_calls_wait_as_long_as_erlang_says() {
        const SCALE: f64 = 1e9;
        let mut dice = Dice::new(7);
        let mut clock = 0.0;
        let calls: Vec<_> = (0..400_000)
            .map(|_| {
                clock += dice.exponential(1.0 / 8.0);
                Came {
                    at: (clock * SCALE) as u64,
                    work: (dice.exponential(1.0) * SCALE) as u64,
                }
            })
            .collect();

        let waits = waits(&calls, 10);

        let all = waits.len() as f64;
        let waited = waits.iter().filter(|wait| **wait > 0).count() as f64 / all;
        let mean = waits.iter().sum::<u64>() as f64 / SCALE / all;
        assert!((waited - 0.4092).abs() < 0.02, "{waited}");
        assert!((mean - 0.2046).abs() < 0.02, "{mean}");
    }
}
