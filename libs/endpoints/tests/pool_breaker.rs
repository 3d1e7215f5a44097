//! E17: a pool's breaker and those of its workers over random histories.

use std::{collections::VecDeque, time::Duration};

use proptest::prelude::*;
use tether_breaker::{Outcome, State, Terms};
use tether_clock::Tick;
use tether_endpoints::{
    Endpoint, Endpoints, Outlook, Refusal, Standing, Target, Ticket, Update, Why,
};
use tether_types::{Address, Incarnation, PoolName, WorkerId};

const OF_WORKER: Terms = Terms {
    failure_threshold: 3,
    open_for: Duration::from_secs(3),
    max_open_for: Duration::from_secs(10),
    half_open_probes: 1,
    window: 0,
    min_calls: 0,
    failure_percent: 0,
    slow_percent: 0,
};
const OF_POOL: Terms = Terms {
    failure_threshold: u32::MAX,
    open_for: Duration::from_secs(2),
    max_open_for: Duration::from_secs(10),
    half_open_probes: 2,
    window: 8,
    min_calls: 6,
    failure_percent: 75,
    slow_percent: 101,
};

fn pool() -> PoolName {
    PoolName::new("digits").expect("it is a name")
}

fn set(workers: u32) -> Endpoints {
    let outlook = Outlook {
        terms: OF_WORKER,
        pool_terms: Some(OF_POOL),
        ..Outlook::default()
    };
    let mut set = Endpoints::new(outlook, 100);
    let endpoint = |slot| Endpoint {
        worker: WorkerId {
            pool: pool(),
            slot,
            incarnation: Incarnation(1),
        },
        address: Address::Unix("/w".into()),
        draining: false,
        counted: false,
        unordered: false,
        capacity: None,
        weight: 0,
        standing: Standing::Near,
        tls: false,
        node: None,
    };
    set.apply_change(Update {
        upserts: (0..workers).map(endpoint).collect(),
        ..Update::default()
    });
    set
}

#[derive(Debug, Clone)]
enum Step {
    Call(u64),
    End(usize, Outcome),
    Wait(u64),
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        6 => Just(Outcome::Failure), 2 => Just(Outcome::Success), 1 => Just(Outcome::Slow), 1 => Just(Outcome::Silent)
    ];
    let step = prop_oneof![
        5 => any::<u64>().prop_map(Step::Call),
        5 => (any::<usize>(), outcome).prop_map(|(at, outcome)| Step::End(at, outcome)),
        1 => (0u64..2_500).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..250)
}

/// What is expected of the pool's breaker.
#[derive(Debug)]
enum Model {
    /// What became of the last calls that count: whether they failed.
    Closed(VecDeque<bool>),
    Open(Tick),
    /// Trials under way, and when it began.
    Trying(u32, Tick),
}

struct Call {
    ticket: Ticket,
    /// It began after so many changes of the model.
    round: u32,
    is_pools_trial: bool,
    is_workers_trial: bool,
}

fn open_workers(set: &Endpoints) -> usize {
    let open = |view: &tether_endpoints::View| matches!(view.breaker.state, State::Open { .. });
    set.snapshot(Tick::ZERO)
        .iter()
        .filter(|view| open(view))
        .count()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_is_left_alone_where_leaving_workers_alone_did_not_help(
        workers in 1u32..5, history in history()
    ) {
        let mut set = set(workers);
        let mut now = Tick::from_nanos(1);
        let mut calls: Vec<Call> = Vec::new();
        let (mut model, mut round, mut trips) = (Model::Closed(VecDeque::new()), 0, 0u32);
        let open_time = |trips: u32| (OF_POOL.open_for * (1 << (trips - 1).min(9))).min(OF_POOL.max_open_for);
        for step in history {
            let again = match model {
                Model::Closed(_) => false,
                Model::Open(until) => now >= until,
                Model::Trying(trials, since) => trials > 0 && now >= since + open_time(trips),
            };
            match step {
                Step::Wait(ms) => now = now + Duration::from_millis(ms),
                Step::Call(random) => {
                    let picked = set.pick(&pool(), &Target::Any, &[], random, now);
                    let is_open = matches!(picked, Err(Refusal::NoWorker(Why::PoolBreakerOpen { .. })));
                    let expected = match model {
                        Model::Closed(_) => false,
                        Model::Open(_) => !again,
                        Model::Trying(trials, _) => trials >= OF_POOL.half_open_probes && !again,
                    };
                    prop_assert_eq!(is_open, expected, "E17 {:?}", model);
                    let Ok(pick) = picked else { continue };
                    if again {
                        (model, round) = (Model::Trying(0, now), round + 1);
                    }
                    let is_pools_trial = matches!(model, Model::Trying(..));
                    if let Model::Trying(trials, _) = &mut model {
                        *trials += 1;
                    }
                    let id = pick.ticket.worker().clone();
                    let views = set.snapshot(Tick::ZERO);
                    let view = views.iter().find(|view| view.endpoint.worker == id).unwrap();
                    let is_workers_trial = matches!(view.breaker.state, State::HalfOpen { .. });
                    calls.push(Call { ticket: pick.ticket, round, is_pools_trial, is_workers_trial });
                }
                Step::End(..) if calls.is_empty() => {}
                Step::End(at, outcome) => {
                    let mut call = calls.swap_remove(at % calls.len());
                    if again {
                        (model, round) = (Model::Trying(0, now), round + 1);
                    }
                    let before = open_workers(&set);
                    set.on_outcome(&mut call.ticket, outcome, now);
                    set.release(call.ticket, now);
                    let failed = outcome == Outcome::Failure;
                    let is_silent = outcome == Outcome::Silent
                        || (failed && call.is_workers_trial && !call.is_pools_trial);
                    let counts = call.round == round;
                    match &mut model {
                        Model::Trying(trials, _) if counts && is_silent => *trials -= 1,
                        Model::Closed(last) if counts && !is_silent => {
                            last.push_back(failed);
                            if last.len() > OF_POOL.window as usize {
                                last.pop_front();
                            }
                            let failures = last.iter().filter(|failed| **failed).count();
                            let is_bad = last.len() >= OF_POOL.min_calls as usize && failures * 100 >= last.len() * 75;
                            if is_bad && failed {
                                trips += 1;
                                (model, round) = (Model::Open(now + open_time(trips)), round + 1);
                            }
                        }
                        Model::Trying(..) if counts && failed => {
                            trips += 1;
                            (model, round) = (Model::Open(now + open_time(trips)), round + 1);
                        }
                        Model::Trying(..) if counts => {
                            trips = 0;
                            (model, round) = (Model::Closed(VecDeque::new()), round + 1);
                        }
                        Model::Closed(_) | Model::Open(_) | Model::Trying(..) => {}
                    }
                    if let Model::Closed(last) = &mut model && open_workers(&set) > before {
                        last.clear();
                    }
                }
            }
        }
    }
}

/// Makes calls one after the other, each a millisecond long, of which those to the first so many workers fail; answers
/// after how many the pool was left alone.
fn until_left_alone(workers: u32, failing: u32, calls: u64) -> Option<u64> {
    let mut set = set(workers);
    let mut now = Tick::from_nanos(1);
    for call in 0..calls {
        now = now + Duration::from_millis(1);
        match set.pick(&pool(), &Target::Any, &[], call * 7919, now) {
            Ok(mut pick) => {
                let outcome = match pick.ticket.worker().slot < failing {
                    true => Outcome::Failure,
                    false => Outcome::Success,
                };
                set.on_outcome(&mut pick.ticket, outcome, now);
                set.release(pick.ticket, now);
            }
            Err(Refusal::NoWorker(Why::PoolBreakerOpen { .. })) => return Some(call),
            Err(_) => {}
        }
    }
    None
}

#[test]
fn workers_that_can_be_left_alone_are_no_reason_to_leave_the_pool() {
    for failing in 0..=4 {
        assert_eq!(
            until_left_alone(8, failing, 20_000),
            None,
            "{failing} of 8 fail"
        );
    }
    assert!(until_left_alone(8, 8, 200).is_some(), "all fail");
    assert!(
        until_left_alone(1, 1, 200).is_none(),
        "its own breaker is enough"
    );
}
