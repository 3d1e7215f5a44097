//! E17: a pool's breaker and those of its workers over random histories.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use proptest::prelude::*;
use tether_breaker::{Outcome, State, Terms};
use tether_clock::Tick;
use tether_endpoints::{
    Endpoint, Endpoints, Outlook, Refusal, Removal, Standing, Target, Ticket, Update, Why,
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
    slow_percent: 0,
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
    set.apply_change(up(0..workers));
    set
}

fn worker(slot: u32) -> WorkerId {
    WorkerId {
        pool: pool(),
        slot,
        incarnation: Incarnation(1),
    }
}

fn up(slots: std::ops::Range<u32>) -> Update {
    let endpoint = |slot| Endpoint {
        worker: worker(slot),
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
    Update {
        upserts: slots.map(endpoint).collect(),
        ..Update::default()
    }
}

/// It leaves alive, and may come back.
fn gone(slot: u32) -> Update {
    Update {
        removals: vec![Removal {
            worker: worker(slot),
            death: None,
        }],
        ..Update::default()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Call(u64),
    /// The outcome, and whether the answer had begun.
    End(usize, Outcome, bool),
    Gone(u32),
    Up(u32),
    Wait(u64),
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        8 => Just(Outcome::Failure), 2 => Just(Outcome::Success), 2 => Just(Outcome::Slow), 1 => Just(Outcome::Silent)
    ];
    let step = prop_oneof![
        10 => any::<u64>().prop_map(Step::Call),
        10 => (any::<usize>(), outcome, any::<bool>()).prop_map(|(at, outcome, begun)| Step::End(at, outcome, begun)),
        1 => (0..5u32).prop_map(Step::Gone),
        1 => (0..5u32).prop_map(Step::Up),
        2 => (0u64..2_500).prop_map(Step::Wait),
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
    /// Which appearance of its worker had it.
    life: u32,
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
        let mut lives: BTreeMap<u32, u32> = (0..workers).map(|slot| (slot, 0)).collect();
        let mut appeared = 0;
        let open_time = |trips: u32| (OF_POOL.open_for * (1 << (trips - 1).min(9))).min(OF_POOL.max_open_for);
        for step in history {
            let again = match model {
                Model::Closed(_) => false,
                Model::Open(until) => now >= until,
                Model::Trying(trials, since) => trials > 0 && now >= since + open_time(trips),
            };
            match step {
                Step::Wait(ms) => now = now + Duration::from_millis(ms),
                Step::Up(slot) => {
                    appeared += 1;
                    lives.entry(slot).or_insert(appeared);
                    set.apply_change(up(slot..slot + 1));
                }
                Step::Gone(slot) => {
                    set.apply_change(gone(slot));
                    if lives.remove(&slot).is_some() && let Model::Closed(last) = &mut model {
                        last.clear();
                        round += 1;
                    }
                }
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
                    let life = lives[&id.slot];
                    calls.push(Call { ticket: pick.ticket, round, is_pools_trial, is_workers_trial, life });
                }
                Step::End(..) if calls.is_empty() => {}
                Step::End(at, outcome, begun) => {
                    let mut call = calls.swap_remove(at % calls.len());
                    if again {
                        (model, round) = (Model::Trying(0, now), round + 1);
                    }
                    if begun {
                        call.ticket.on_answered(now);
                    }
                    let is_there = lives.get(&call.ticket.worker().slot) == Some(&call.life);
                    let before = open_workers(&set);
                    set.on_outcome(&mut call.ticket, outcome, now);
                    set.release(call.ticket, now);
                    let failed = outcome == Outcome::Failure;
                    let is_silent = !is_there
                        || outcome == Outcome::Silent
                        || (outcome == Outcome::Slow && !begun)
                        || (failed && call.is_workers_trial && !call.is_pools_trial);
                    // What leaves a worker alone is answered by that, and so is all that is under way.
                    if open_workers(&set) > before && let Model::Closed(last) = &mut model {
                        last.clear();
                        round += 1;
                    }
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

/// Gives so many calls to the worker in slot 0.
fn under_way(set: &mut Endpoints, count: usize, now: Tick) -> Vec<Ticket> {
    let one = Target::Worker {
        slot: 0,
        incarnation: Incarnation(1),
    };
    let calls = (0..count).map(|_| set.pick(&pool(), &one, &[], 0, now));
    calls.map(|pick| pick.expect("it lives").ticket).collect()
}

fn fail_all(set: &mut Endpoints, calls: Vec<Ticket>, now: Tick) {
    for mut ticket in calls {
        set.on_outcome(&mut ticket, Outcome::Failure, now);
        set.release(ticket, now);
    }
}

#[test]
fn the_end_of_one_worker_with_many_calls_is_no_reason_to_leave_the_pool() {
    let now = Tick::from_nanos(1);
    for told_first in [false, true] {
        let mut set = set(8);
        let calls = under_way(&mut set, 120, now);
        if told_first {
            set.apply_change(gone(0));
        }
        fail_all(&mut set, calls, now);
        let state = set.pool_breaker(&pool()).expect("it has one").state;
        assert_eq!(state, State::Closed { failures: 0 }, "{told_first}");
    }
    // It is told when a few have failed.
    let mut set = set(8);
    let mut calls = under_way(&mut set, 120, now);
    fail_all(&mut set, calls.split_off(118), now);
    set.apply_change(gone(0));
    set.apply_change(up(0..1));
    fail_all(&mut set, calls, now);
    let state = set.pool_breaker(&pool()).expect("it has one").state;
    assert_eq!(state, State::Closed { failures: 0 });
}
