//! What people on call order, and what a decision says of itself.

use std::{num::NonZeroU32, time::Duration};

use proptest::prelude::*;
use tether_breaker::{Outcome, State, Terms};
use tether_clock::Tick;
use tether_endpoints::{
    Adaptive, Affinity, Ask, Endpoint, Endpoints, Keeping, Order, Outlook, Party, Priority,
    QueueLimits, Refusal, Removal, Scope, Standing, Target, Update, Verdict, Why, Would,
};
use tether_types::{Address, Death, DeathCause, Incarnation, NodeName, PoolName, WorkerId};

/// How many calls may wait.
const MOST: usize = 3;

fn pool() -> PoolName {
    PoolName::new("digits").expect("it is a name")
}

fn worker(slot: u32, incarnation: u64) -> WorkerId {
    WorkerId {
        pool: pool(),
        slot,
        incarnation: Incarnation(incarnation),
    }
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("it is a name")
}

fn up(slot: u32, incarnation: u64) -> Update {
    Update {
        upserts: vec![Endpoint {
            worker: worker(slot, incarnation),
            address: Address::Unix(format!("/w{slot}.{incarnation}").into()),
            node: Some(node(if slot < 2 { "low" } else { "high" })),
            tls: false,
            draining: false,
            counted: false,
            unordered: false,
            capacity: NonZeroU32::new(2),
            weight: 0,
            standing: Standing::Near,
        }],
        pools: vec![pool()],
        ..Update::default()
    }
}

fn dead(slot: u32, incarnation: u64) -> Update {
    Update {
        removals: vec![Removal {
            worker: worker(slot, incarnation),
            death: Some(Death {
                cause: DeathCause::Signaled(9),
                exit_code: None,
                signal: Some(9),
                detail: String::new(),
                stderr_tail: String::new(),
                measures: None,
            }),
        }],
        ..Update::default()
    }
}

fn at(ms: u64) -> Tick {
    Tick::from_nanos(ms * 1_000_000)
}

fn three() -> Endpoints {
    let mut set = Endpoints::new(Outlook::default(), MOST);
    for slot in 0..3 {
        set.apply_change(up(slot, 1));
    }
    set
}

fn ask(target: Target) -> Ask {
    Ask {
        target,
        tried: Vec::new(),
        party: Party::Connection(1),
        priority: Priority::Normal,
        deadline: None,
    }
}

fn key(text: &str, affinity: Affinity) -> Target {
    Target::Affinity {
        key: text.into(),
        session: None,
        affinity,
    }
}

/// Who gets the next call, which stays under way.
fn picked(set: &mut Endpoints, target: &Target) -> Result<u32, Refusal> {
    let pick = set.pick(&pool(), target, &[], 7, at(0))?;
    Ok(pick.ticket.worker().slot)
}

fn why(answer: Result<u32, Refusal>) -> Why {
    match answer {
        Err(Refusal::NoWorker(why)) => why,
        other => panic!("it is refused for want of a worker, not {other:?}"),
    }
}

#[test]
fn a_drained_node_gets_no_calls_and_neither_does_who_comes_there_later() {
    let mut set = three();
    let low = Scope::Node(node("low"));

    assert!(set.order(Order::Drain(low.clone())));
    assert!(!set.order(Order::Drain(low.clone())), "it is already");
    set.apply_change(up(1, 2));
    for _ in 0..2 {
        assert_eq!(picked(&mut set, &Target::Any), Ok(2));
    }
    assert_eq!(why(picked(&mut set, &Target::Any)), Why::Busy);
    assert_eq!(set.within(&low).count(), 2);
    assert_eq!(set.under_way(&low), 0);

    assert!(set.order(Order::Undrain(low)));
    assert!(picked(&mut set, &Target::Any).is_ok_and(|slot| slot < 2));
}

#[test]
fn an_order_binds_one_incarnation_and_goes_with_its_death() {
    let mut set = three();
    let order = Order::Eject(worker(0, 1), at(5_000));
    set.order(order.clone());
    let one = Target::Worker {
        slot: 0,
        incarnation: Incarnation(0),
    };

    let left = Duration::from_secs(5);
    assert_eq!(
        why(picked(&mut set, &one)),
        Why::Ejected { retry_after: left }
    );
    assert!(set.stands(&order));
    set.apply_change(dead(0, 1));
    assert!(!set.stands(&order));
    set.apply_change(up(0, 2));
    assert_eq!(picked(&mut set, &one), Ok(0));
}

#[test]
fn orders_for_one_that_was_replaced_go_though_nobody_tells_its_death() {
    let orders = |worker: &WorkerId| {
        [
            Order::Drain(Scope::Worker(worker.clone())),
            Order::Eject(worker.clone(), at(5_000)),
            Order::Capacity(worker.clone(), NonZeroU32::new(1), None),
            Order::Pin(b"k".to_vec(), worker.clone()),
        ]
    };
    let mut set = three();
    let (first, other) = (orders(&worker(0, 1)), orders(&worker(1, 1)));
    // The pin of the other one would take the place of the first one's.
    for order in first.iter().chain(&other[..3]) {
        set.order(order.clone());
    }

    set.apply_change(up(0, 1));
    assert!(first.iter().all(|order| set.stands(order)), "it lives");
    set.apply_change(up(0, 2));
    assert!(!first.iter().any(|order| set.stands(order)));
    assert!(other[..3].iter().all(|order| set.stands(order)));

    // Of a place whose next one has died before it was told.
    let next = orders(&worker(0, 2));
    for order in &next {
        set.order(order.clone());
    }
    set.apply_change(dead(0, 3));
    set.apply_change(up(0, 4));
    assert!(!next.iter().any(|order| set.stands(order)));
}

#[test]
fn calls_of_a_drained_worker_that_has_left_alive_are_counted_until_they_are_over() {
    let mut set = three();
    let low = Scope::Node(node("low"));
    set.order(Order::Drain(Scope::Worker(worker(2, 1))));
    let mut calls: Vec<_> = (0..2)
        .map(|_| set.pick(&pool(), &Target::Any, &[], 0, at(0)).unwrap())
        .collect();
    set.order(Order::Drain(low.clone()));
    assert_eq!(set.under_way(&low), 2);

    // One leaves, another takes the place of the other.
    set.apply_change(Update {
        removals: vec![Removal {
            worker: worker(0, 1),
            death: None,
        }],
        ..up(1, 2)
    });
    assert_eq!(set.under_way(&low), 2);
    set.apply_change(up(0, 1));
    for left in [1, 0] {
        set.release(calls.pop().unwrap().ticket, at(0));
        assert_eq!(set.under_way(&low), left);
    }
    let views = set.snapshot(at(0));
    assert!(views.iter().all(|view| view.in_flight == 0));
}

#[test]
fn calls_of_the_dead_are_counted_no_more() {
    let mut set = three();
    let all = Scope::Pool(pool());
    let pick = set.pick(&pool(), &Target::Any, &[], 0, at(0)).unwrap();
    let slot = pick.ticket.worker().slot;

    set.apply_change(dead(slot, 1));

    assert_eq!(set.under_way(&all), 0);
}

#[test]
fn an_ejection_runs_out_by_itself_and_who_waits_goes_on() {
    let mut set = three();
    for slot in 0..3 {
        set.order(Order::Eject(
            worker(slot, 1),
            at(u64::from(slot) * 100 + 100),
        ));
    }
    assert!(matches!(
        why(picked(&mut set, &Target::Any)),
        Why::Ejected { retry_after } if retry_after == Duration::from_millis(100)
    ));

    assert_eq!(set.next_order_deadline(), Some(at(100)));
    assert!(!set.check_orders(at(99)));
    assert!(set.check_orders(at(100)));
    assert_eq!(picked(&mut set, &Target::Any), Ok(0));
    assert!(set.order(Order::Restore(worker(1, 1))));
    assert_eq!(picked(&mut set, &Target::Any), Ok(1));
}

#[test]
fn restoring_a_worker_closes_its_breaker() {
    let mut set = three();
    let one = Target::Worker {
        slot: 0,
        incarnation: Incarnation(0),
    };
    for _ in 0..5 {
        let mut pick = set.pick(&pool(), &one, &[], 0, at(0)).unwrap();
        set.on_outcome(&mut pick.ticket, tether_breaker::Outcome::Failure, at(0));
        set.release(pick.ticket, at(0));
    }
    assert!(matches!(
        why(picked(&mut set, &one)),
        Why::BreakersOpen { .. }
    ));

    assert!(set.order(Order::Restore(worker(0, 1))));
    assert_eq!(picked(&mut set, &one), Ok(0));
    assert!(!set.order(Order::Restore(worker(0, 1))), "there is nothing");
}

#[test]
fn a_pinned_key_goes_to_its_worker_while_that_incarnation_lives() {
    let mut set = three();
    let hint = key("k", Affinity::Hint);
    let strict = key("k", Affinity::StrictFailFast);
    let home = picked(&mut set, &hint).unwrap();
    let other = (home + 1) % 3;

    set.order(Order::Pin(b"k".to_vec(), worker(other, 1)));
    assert_eq!(picked(&mut set, &hint), Ok(other));
    assert_eq!(picked(&mut set, &strict), Ok(other));
    assert_eq!(picked(&mut set, &hint), Ok(home), "it is full, and a hint");
    assert_eq!(why(picked(&mut set, &strict)), Why::Busy);

    set.order(Order::Capacity(worker(home, 1), NonZeroU32::new(9), None));
    set.apply_change(up(other, 2));
    assert_eq!(picked(&mut set, &strict), Ok(home), "another lives there");
}

#[test]
fn limits_take_the_place_of_what_is_told_until_they_run_out() {
    let mut set = three();
    for slot in 0..3 {
        let one = NonZeroU32::new(1);
        set.order(Order::Capacity(worker(slot, 1), one, Some(at(100))));
    }
    let limits = QueueLimits {
        most: Some(1),
        wait: Some(Duration::from_secs(1)),
    };
    set.order(Order::Queue(pool(), limits, None));
    for _ in 0..3 {
        picked(&mut set, &Target::Any).unwrap();
    }

    assert_eq!(why(picked(&mut set, &Target::Any)), Why::Busy);
    assert!(set.wait(&pool(), ask(Target::Any), at(0)).is_ok());
    assert!(set.wait(&pool(), ask(Target::Any), at(0)).is_err());
    assert_eq!(set.ordered_wait(&pool()), Some(Duration::from_secs(1)));

    assert!(set.check_orders(at(100)));
    let (_, went) = set.next(&pool(), 0, at(100)).unwrap();
    assert!(went.is_ok(), "the worker serves two again");
    set.order(Order::Queue(pool(), QueueLimits::default(), None));
    assert_eq!(set.ordered_wait(&pool()), None);
    assert_eq!(set.most_waiting(&pool()), MOST);
}

#[test]
fn a_decision_tells_what_speaks_against_each_worker() {
    let mut set = three();
    set.order(Order::Drain(Scope::Worker(worker(0, 1))));
    set.order(Order::Eject(worker(1, 1), at(1_000)));

    let explained = set.explain(&pool(), &ask(Target::Any), 0, at(0));

    assert_eq!(explained.would, Ok(Would::Go(worker(2, 1))));
    let verdicts: Vec<_> = explained.workers.iter().map(|(_, it)| *it).collect();
    let retry_after = Duration::from_secs(1);
    assert_eq!(
        verdicts,
        [
            Verdict::Refused(Why::Draining),
            Verdict::Refused(Why::Ejected { retry_after }),
            Verdict::Eligible,
        ]
    );
    let one = Target::Worker {
        slot: 0,
        incarnation: Incarnation(0),
    };
    let explained = set.explain(&pool(), &ask(one), 0, at(0));
    let why = Refusal::NoWorker(Why::Draining);
    assert_eq!(explained.would, Err(why));
    assert_eq!(explained.workers[2].1, Verdict::NotMeant);
}

#[derive(Debug, Clone)]
enum Step {
    Up(u32, u64),
    Dead(u32, u64),
    Order(Order),
    /// With the slot of one that has refused it already.
    Call(Target, Option<u32>),
    Over(Outcome),
    Wait(u64),
}

fn targets() -> impl Strategy<Value = Target> {
    let affinity = prop_oneof![
        Just(Affinity::Hint),
        Just(Affinity::StrictQueue),
        Just(Affinity::StrictFailFast)
    ];
    prop_oneof![
        Just(Target::Any),
        (0..3u32, 0..3u64).prop_map(|(slot, incarnation)| Target::Worker {
            slot,
            incarnation: Incarnation(incarnation)
        }),
        ("[ab]", affinity).prop_map(|(text, affinity)| key(&text, affinity)),
    ]
}

fn orders() -> impl Strategy<Value = Order> {
    let workers = || (0..3u32, 1..3u64).prop_map(|(slot, incarnation)| worker(slot, incarnation));
    let scopes = || {
        prop_oneof![
            workers().prop_map(Scope::Worker),
            Just(Scope::Node(node("low"))),
            Just(Scope::Pool(pool())),
        ]
    };
    prop_oneof![
        scopes().prop_map(Order::Drain),
        scopes().prop_map(Order::Undrain),
        workers().prop_map(|worker| Order::Eject(worker, at(10))),
        workers().prop_map(Order::Restore),
        ("[ab]", workers()).prop_map(|(key, worker)| Order::Pin(key.into_bytes(), worker)),
        "[ab]".prop_map(|key| Order::Unpin(key.into_bytes(), pool())),
        (workers(), 0..4u32).prop_map(|(worker, most)| Order::Capacity(
            worker,
            NonZeroU32::new(most),
            None
        )),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..3u32, 1..3u64).prop_map(|(slot, incarnation)| Step::Up(slot, incarnation)),
        1 => (0..3u32, 1..3u64).prop_map(|(slot, incarnation)| Step::Dead(slot, incarnation)),
        3 => orders().prop_map(Step::Order),
        6 => (targets(), prop::option::of(0..3u32)).prop_map(|(target, tried)| Step::Call(target, tried)),
        2 => prop_oneof![Just(Outcome::Failure), Just(Outcome::Success)].prop_map(Step::Over),
        2 => (0..8u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// E11, E12.
    #[test]
    fn what_is_said_of_a_call_is_what_becomes_of_it(steps in prop::collection::vec(steps(), 1..60)) {
        let outlook = Outlook {
            terms: Terms { failure_threshold: 2, open_for: Duration::from_secs(5), ..Terms::default() },
            pool_terms: Some(Terms { open_for: Duration::from_secs(3), failure_threshold: 2, ..Terms::default() }),
            keeping: Keeping { keep_for: Duration::from_secs(6), most: 1 },
            ..Outlook::default()
        };
        let adaptive = Adaptive { others: true, ..Adaptive::default() };
        let mut set = Endpoints::new(outlook, MOST).with(adaptive);
        for slot in 0..3 {
            set.apply_change(up(slot, 1));
        }
        let mut under_way = Vec::<tether_endpoints::Ticket>::new();
        let mut random = 0;
        let mut now = at(0);
        for step in steps {
            match step {
                Step::Up(slot, incarnation) => drop(set.apply_change(up(slot, incarnation))),
                Step::Dead(slot, incarnation) => drop(set.apply_change(dead(slot, incarnation))),
                Step::Order(order) => drop(set.order(order)),
                Step::Wait(seconds) => now = now + Duration::from_secs(seconds),
                Step::Over(outcome) => {
                    if let Some(mut ticket) = under_way.pop() {
                        ticket.on_sent(now);
                        set.on_outcome(&mut ticket, outcome, now);
                        set.release(ticket, now);
                    }
                }
                Step::Call(target, tried) => {
                    random += 1;
                    let mut ask = ask(target.clone());
                    let living = |slot| set.living(&pool(), slot).cloned();
                    ask.tried.extend(tried.and_then(living));
                    let before = format!("{set:?}");
                    let said = set.explain(&pool(), &ask, random, now).would;
                    prop_assert_eq!(before, format!("{:?}", &set), "nothing has changed");
                    match set.pick(&pool(), &target, &ask.tried, random, now) {
                        Ok(pick) => {
                            let had = pick.ticket.worker().clone();
                            let all = set.snapshot(Tick::ZERO);
                            let view = all.iter().find(|view| view.endpoint.worker == had);
                            let view = view.expect("it lives");
                            prop_assert!(!view.draining && view.ejected.is_none());
                            prop_assert_eq!(said, Ok(Would::Go(had)));
                            under_way.push(pick.ticket);
                        }
                        Err(Refusal::NoWorker(Why::Busy)) => {
                            let waits = set.wait(&pool(), ask, now);
                            prop_assert_eq!(said, waits.map(|_| Would::Wait));
                        }
                        Err(refusal) => prop_assert_eq!(said, Err(refusal)),
                    }
                }
            }
            while let Some((_, went)) = set.next(&pool(), random, now) {
                under_way.extend(went.ok().map(|pick| pick.ticket));
            }
        }
        for ticket in under_way {
            set.release(ticket, now);
        }
    }
}

#[test]
fn the_trial_of_one_that_takes_no_calls_is_not_waited_for() {
    let mut set = three();
    let one = Target::Worker {
        slot: 0,
        incarnation: Incarnation(1),
    };
    while set.next_trial(&pool(), at(0)).is_none() {
        let mut pick = set
            .pick(&pool(), &one, &[], 0, at(0))
            .expect("it is closed");
        set.on_outcome(&mut pick.ticket, Outcome::Failure, at(0));
        set.release(pick.ticket, at(0));
    }
    let state = set.snapshot(at(0))[0].breaker.state;
    let State::Open { until } = state else {
        panic!("{state:?}");
    };
    assert_eq!(set.next_trial(&pool(), at(0)), Some(until));

    for (takes, gives) in [
        (
            Order::Drain(Scope::Worker(worker(0, 1))),
            Order::Undrain(Scope::Worker(worker(0, 1))),
        ),
        (
            Order::Drain(Scope::Pool(pool())),
            Order::Undrain(Scope::Pool(pool())),
        ),
    ] {
        set.order(takes);
        assert_eq!(set.next_trial(&pool(), at(0)), None);
        set.order(gives);
        assert_eq!(set.next_trial(&pool(), at(0)), Some(until));
    }
    set.order(Order::Eject(worker(0, 1), at(40_000)));
    assert_eq!(set.next_trial(&pool(), at(0)), None);
    set.check_orders(at(40_000));
    assert_eq!(
        set.next_trial(&pool(), at(40_000)),
        None,
        "it can be picked already"
    );
    assert!(set.pick(&pool(), &one, &[], 0, at(40_000)).is_ok());
}
