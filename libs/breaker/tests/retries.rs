//! The budget of retries over random histories of calls, beside a model that keeps all of them.

use std::time::Duration;

use proptest::prelude::*;
use tether_breaker::{Retries, RetryTerms, SPAN};
use tether_clock::Tick;

#[derive(Debug, Clone)]
enum Step {
    Calls(u32),
    Retries(u32),
    Wait(Duration),
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1u32..40).prop_map(Step::Calls),
        3 => (1u32..40).prop_map(Step::Retries),
        4 => (0u64..2_500).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
        1 => (0u64..60).prop_map(|seconds| Step::Wait(Duration::from_secs(seconds))),
    ];
    prop::collection::vec(step, 1..120)
}

fn terms() -> impl Strategy<Value = RetryTerms> {
    (0u32..150, 0u32..5).prop_map(|(percent, per_second)| RetryTerms {
        percent,
        per_second,
    })
}

/// How many of these were in the whole seconds that count at `now`.
fn counting(of: &[Tick], now: Tick) -> u64 {
    let second = |tick: Tick| tick.as_nanos() / 1_000_000_000;
    let counts = |tick: &&Tick| second(**tick) + SPAN.as_secs() > second(now);
    of.iter().filter(counts).count() as u64
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// B8, and that nothing less is granted.
    #[test]
    fn as_many_are_granted_as_the_model_says(history in history(), terms in terms(), start in 0u64..100) {
        let mut now = Tick::from_nanos(start * 700_000_000 + 1);
        let (mut budget, mut calls, mut retries) = (Retries::default(), Vec::new(), Vec::new());
        for step in history {
            match step {
                Step::Wait(time) => now = now + time,
                Step::Calls(count) => for _ in 0..count {
                    budget.on_call(now);
                    calls.push(now);
                },
                Step::Retries(count) => for _ in 0..count {
                    let share = counting(&calls, now) * u64::from(terms.percent) / 100;
                    let most = share + u64::from(terms.per_second) * SPAN.as_secs();
                    let granted = budget.draw(terms, now);
                    prop_assert_eq!(granted, counting(&retries, now) < most);
                    if granted {
                        retries.push(now);
                    }
                },
            }
        }
    }
}

#[test]
fn where_every_call_fails_one_in_five_is_made_again() {
    let terms = RetryTerms {
        per_second: 0,
        ..RetryTerms::default()
    };
    let mut budget = Retries::default();
    let at = |call: u64| Tick::from_nanos(call * 1_000_000);
    let granted = (0..60_000).filter(|&call| {
        budget.on_call(at(call));
        budget.draw(terms, at(call))
    });

    assert_eq!(granted.count(), 12_000);
}
