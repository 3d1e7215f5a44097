//! One property per invariant of the breaker, over random histories of calls.

use std::time::Duration;

use proptest::prelude::*;
use tether_breaker::{Admit, Breaker, Outcome, Permit, State, Terms};
use tether_clock::Tick;

const TERMS: Terms = Terms {
    failure_threshold: 3,
    open_for: Duration::from_secs(2),
    max_open_for: Duration::from_secs(10),
    half_open_probes: 2,
    window: 8,
    min_calls: 6,
    failure_percent: 50,
    slow_percent: 75,
};

/// One thing that happens to a breaker.
#[derive(Debug, Clone)]
enum Step {
    /// A caller asks.
    Ask,
    /// The call with this index among those under way ends.
    End(usize, Outcome),
    /// Time passes.
    Wait(Duration),
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        3 => Just(Outcome::Failure),
        1 => Just(Outcome::Success),
        1 => Just(Outcome::Slow),
        1 => Just(Outcome::Silent),
    ]
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Ask),
        4 => (any::<usize>(), outcome()).prop_map(|(at, outcome)| Step::End(at, outcome)),
        2 => (0u64..3_000).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
    ];
    prop::collection::vec(step, 1..200)
}

/// Plays a history; `observe` sees the breaker after each step, with what `admit` said, if asked,
/// and the state just before.
fn play(history: Vec<Step>, mut observe: impl FnMut(Tick, State, Option<&Admit>, &Breaker)) {
    let mut breaker = Breaker::new(TERMS);
    let mut now = Tick::from_nanos(1);
    let mut under_way: Vec<Permit> = Vec::new();
    for step in history {
        breaker.check(now);
        let before = breaker.snapshot().state;
        match step {
            Step::Ask => {
                let answer = breaker.admit(now);
                observe(now, before, Some(&answer), &breaker);
                if let Admit::Yes(permit) = answer {
                    under_way.push(permit);
                }
                continue;
            }
            Step::End(_, _) if under_way.is_empty() => {}
            Step::End(at, outcome) => {
                let permit = under_way.swap_remove(at % under_way.len());
                breaker.on_outcome(permit, outcome, true, now);
            }
            Step::Wait(time) => {
                now = now + time;
                breaker.check(now);
            }
        }
        observe(now, before, None, &breaker);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// B1
    #[test]
    fn nothing_is_admitted_while_open(history in history()) {
        play(history, |now, before, answer, _| {
            if let (State::Open { until }, Some(answer)) = (before, answer) {
                assert_eq!(answer, &Admit::Refused { retry_after: until.since(now) });
            }
        });
    }

    /// B2: counted by the test, from the permits it holds.
    #[test]
    fn probes_under_way_never_exceed_the_limit(asks in 1u32..20, silent in 0u32..5) {
        let mut breaker = tripped();
        let now = breaker.next_deadline().unwrap();

        let mut probes = Vec::new();
        for _ in 0..asks {
            if let Admit::Yes(permit) = breaker.admit(now) {
                assert!(permit.is_probe());
                probes.push(permit);
            }
            assert!(probes.len() <= 2);
        }
        for _ in 0..silent {
            let Some(permit) = probes.pop() else { break };
            breaker.on_outcome(permit, Outcome::Silent, true, now);
            let Admit::Yes(permit) = breaker.admit(now) else {
                panic!("a probe that proved nothing makes room for another");
            };
            probes.push(permit);
        }
        prop_assert_eq!(u32::try_from(probes.len()).unwrap(), asks.min(2));
    }

    /// B3, B6 and B7: a model that knows all outcomes of a closed breaker and looks at them as the invariants say.
    #[test]
    fn it_opens_as_the_model_says(calls in prop::collection::vec((outcome(), prop::bool::weighted(0.8)), 1..60)) {
        let mut breaker = Breaker::new(TERMS);
        let now = Tick::from_nanos(1);
        let mut outcomes: Vec<Outcome> = Vec::new();
        for (outcome, may_trip) in calls {
            let Admit::Yes(permit) = breaker.admit(now) else { break };
            breaker.on_outcome(permit, outcome, may_trip, now);
            if outcome != Outcome::Silent {
                outcomes.push(outcome);
            }
            let failed = |outcome: &&Outcome| **outcome == Outcome::Failure;
            let in_a_row = outcomes.iter().rev().take_while(failed).count();
            let last = &outcomes[outcomes.len().saturating_sub(8)..];
            let share = |wanted: Outcome| {
                last.iter().filter(|outcome| **outcome == wanted).count() * 100 / last.len().max(1)
            };
            let bad = last.len() >= 6 && (share(Outcome::Failure) >= 50 || share(Outcome::Slow) >= 75);
            let is_cause = matches!(outcome, Outcome::Failure | Outcome::Slow);
            let open = matches!(breaker.snapshot().state, State::Open { .. });
            prop_assert_eq!(open, may_trip && is_cause && (in_a_row >= 3 || bad), "{:?}", outcomes);
        }
    }

    /// B4
    #[test]
    fn open_time_is_bounded(history in history()) {
        play(history, |now, _, _, breaker| {
            if let State::Open { until } = breaker.snapshot().state {
                assert!(until.since(now) <= TERMS.max_open_for);
            }
        });
    }

    /// B5: whatever late calls report while the breaker is open or being probed, it stays so.
    #[test]
    fn late_answers_change_nothing(outcomes in prop::collection::vec(outcome(), 1..10), probing: bool) {
        let mut breaker = Breaker::new(TERMS);
        let mut now = Tick::from_nanos(1);
        let late: Vec<Permit> = outcomes.iter().map(|_| permit(&mut breaker, now)).collect();
        for _ in 0..TERMS.failure_threshold {
            let permit = permit(&mut breaker, now);
            breaker.on_outcome(permit, Outcome::Failure, true, now);
        }
        if probing {
            now = breaker.next_deadline().unwrap();
            breaker.check(now);
        }
        let before = breaker.snapshot();

        for (permit, outcome) in late.into_iter().zip(outcomes) {
            breaker.on_outcome(permit, outcome, true, now);
        }

        prop_assert_eq!(breaker.snapshot(), before);
    }
}

#[test]
fn failed_probes_double_the_wait_up_to_its_bound() {
    let mut breaker = tripped();
    let mut waits = Vec::new();
    let mut now = Tick::from_nanos(1);
    for _ in 0..5 {
        let until = breaker.next_deadline().unwrap();
        waits.push(until.since(now).as_secs());
        now = until;
        let probe = permit(&mut breaker, now);
        breaker.on_outcome(probe, Outcome::Failure, true, now);
    }
    assert_eq!(waits, [2, 4, 8, 10, 10]);
}

#[test]
fn a_probe_that_succeeds_closes_it_and_forgets_the_trips() {
    let mut breaker = tripped();
    let now = breaker.next_deadline().unwrap();
    let probe = permit(&mut breaker, now);

    breaker.on_outcome(probe, Outcome::Success, true, now);

    let snapshot = breaker.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.trips),
        (State::Closed { failures: 0 }, 0)
    );
}

/// B2
#[test]
fn probes_that_never_end_make_room_for_others() {
    let mut breaker = tripped();
    let now = breaker.next_deadline().unwrap();
    let endless = permit(&mut breaker, now);
    let _other = permit(&mut breaker, now);
    assert!(matches!(breaker.admit(now), Admit::Refused { .. }));

    let later = breaker.next_deadline().unwrap();
    assert_eq!(later.since(now), TERMS.open_for);
    let probe = permit(&mut breaker, later);
    assert!(probe.is_probe());
    breaker.on_outcome(endless, Outcome::Failure, true, later);
    assert!(
        matches!(breaker.snapshot().state, State::HalfOpen { .. }),
        "it is of another round"
    );
    breaker.on_outcome(probe, Outcome::Success, true, later);
    assert!(matches!(breaker.snapshot().state, State::Closed { .. }));
}

fn permit(breaker: &mut Breaker, now: Tick) -> Permit {
    match breaker.admit(now) {
        Admit::Yes(permit) => permit,
        Admit::Refused { retry_after } => panic!("refused for {retry_after:?}"),
    }
}

fn tripped() -> Breaker {
    let mut breaker = Breaker::new(TERMS);
    for _ in 0..TERMS.failure_threshold {
        let permit = permit(&mut breaker, Tick::from_nanos(1));
        breaker.on_outcome(permit, Outcome::Failure, true, Tick::from_nanos(1));
    }
    breaker
}

/// B6
#[test]
fn a_share_of_nothing_never_opens_it() {
    let terms = Terms {
        failure_threshold: u32::MAX,
        failure_percent: 0,
        slow_percent: 0,
        ..TERMS
    };
    let mut breaker = Breaker::new(terms);
    let now = Tick::from_nanos(1);
    for outcome in [Outcome::Failure, Outcome::Slow].repeat(20) {
        let permit = permit(&mut breaker, now);
        breaker.on_outcome(permit, outcome, true, now);
    }
    assert!(matches!(breaker.snapshot().state, State::Closed { .. }));
}

/// B9
#[test]
fn what_it_was_told_to_forget_does_not_open_it() {
    let mut breaker = Breaker::new(TERMS);
    let now = Tick::from_nanos(1);
    let under_way: Vec<Permit> = (0..20).map(|_| permit(&mut breaker, now)).collect();
    breaker.forget();
    for permit in under_way {
        breaker.on_outcome(permit, Outcome::Failure, true, now);
    }
    let closed = State::Closed { failures: 0 };
    assert_eq!(breaker.snapshot().state, closed);
}
