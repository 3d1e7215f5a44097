//! Late binding: no worker has more calls than it can serve, and no call waits that could be served.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::Duration,
};

use proptest::prelude::*;
use tether_clock::Tick;
use tether_endpoints::{
    Affinity, Ask, Endpoint, Endpoints, Outlook, Overload, Party, Priority, Refusal, Removal,
    Standing, Target, Ticket, Update, Why,
};
use tether_types::{Address, Incarnation, PoolName, WorkerId};

const SLOTS: u32 = 4;
const MOST: usize = 8;

fn pool() -> PoolName {
    PoolName::new("digits").expect("it is a name")
}

fn at(ms: u64) -> Tick {
    Tick::from_nanos(ms * 1_000_000)
}

fn up(slot: u32, incarnation: u64, capacity: u32, draining: bool) -> Update {
    Update {
        upserts: vec![Endpoint {
            worker: WorkerId {
                pool: pool(),
                slot,
                incarnation: Incarnation(incarnation),
            },
            address: Address::Unix(format!("/w{slot}.{incarnation}").into()),
            tls: false,
            node: None,
            draining,
            counted: false,
            unordered: false,
            capacity: NonZeroU32::new(capacity),
            weight: 0,
            standing: Standing::Near,
        }],
        pools: vec![pool()],
        ..Update::default()
    }
}

fn set() -> Endpoints {
    Endpoints::new(Outlook::default(), MOST)
}

fn ask(target: Target, party: u64, priority: Priority) -> Ask {
    Ask {
        target,
        tried: Vec::new(),
        party: Party::Connection(party),
        priority,
        deadline: None,
    }
}

/// What becomes of a call, the way a gateway goes about it.
#[derive(Debug)]
struct Calls {
    set: Endpoints,
    waiting: BTreeMap<u64, Target>,
    under_way: Vec<Ticket>,
    refused: Vec<(u64, Refusal)>,
    /// Numbers in the order in which they went on.
    went: Vec<u64>,
}

impl Calls {
    fn new() -> Self {
        let mut set = set();
        set.apply_change(Update {
            pools: vec![pool()],
            ..Update::default()
        });
        Self {
            set,
            waiting: BTreeMap::new(),
            under_way: Vec::new(),
            refused: Vec::new(),
            went: Vec::new(),
        }
    }

    /// Answers the call's number where it waits.
    fn call(&mut self, ask: Ask, random: u64, now: Tick) -> Result<Option<u64>, Refusal> {
        let target = ask.target.clone();
        let waits = match self.set.pick(&pool(), &target, &[], random, now) {
            Ok(pick) => {
                self.under_way.push(pick.ticket);
                None
            }
            Err(Refusal::NoWorker(Why::Busy)) => {
                let number = self.set.wait(&pool(), ask, now)?;
                self.waiting.insert(number, target);
                Some(number)
            }
            Err(refused) => return Err(refused),
        };
        self.settle(random, now);
        Ok(waits)
    }

    fn settle(&mut self, random: u64, now: Tick) {
        while let Some((number, said)) = self.set.next(&pool(), random, now) {
            let known = self.waiting.remove(&number);
            assert!(known.is_some(), "{number} is told twice, or never waited");
            match said {
                Ok(pick) => {
                    self.under_way.push(pick.ticket);
                    self.went.push(number);
                }
                Err(refused) => self.refused.push((number, refused)),
            }
        }
    }

    fn end(&mut self, which: usize, now: Tick) {
        let ticket = self.under_way.swap_remove(which % self.under_way.len());
        self.set.release(ticket, now);
        self.settle(0, now);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Up(u32, u64, u32, bool),
    Leave(u32, u64),
    Call(Target, u64, Priority),
    End(usize),
    GiveUp(usize),
}

fn target() -> impl Strategy<Value = Target> {
    let affinity = prop_oneof![
        Just(Affinity::Hint),
        Just(Affinity::StrictQueue),
        Just(Affinity::StrictFailFast)
    ];
    prop_oneof![
        3 => Just(Target::Any),
        2 => (any::<u8>(), affinity)
            .prop_map(|(key, affinity)| Target::Affinity { key: vec![key], session: None, affinity }),
        1 => (0..SLOTS, 0u64..3)
            .prop_map(|(slot, incarnation)| Target::Worker { slot, incarnation: Incarnation(incarnation) }),
    ]
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let priority = prop_oneof![
        1 => Just(Priority::Low), 3 => Just(Priority::Normal), 1 => Just(Priority::High)
    ];
    let step = prop_oneof![
        3 => (0..SLOTS, 1u64..4, 0u32..4, prop::bool::weighted(0.2))
            .prop_map(|(slot, incarnation, capacity, draining)| Step::Up(slot, incarnation, capacity, draining)),
        1 => (0..SLOTS, 1u64..4).prop_map(|(slot, incarnation)| Step::Leave(slot, incarnation)),
        12 => (target(), 0u64..3, priority)
            .prop_map(|(target, party, priority)| Step::Call(target, party, priority)),
        6 => any::<usize>().prop_map(Step::End),
        1 => any::<usize>().prop_map(Step::GiveUp),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// E8 and E9, after every step.
    #[test]
    fn a_call_waits_only_for_workers_that_are_full(history in history()) {
        let mut calls = Calls::new();
        // What a worker had before its capacity was made smaller.
        let mut excess: BTreeMap<u32, u32> = BTreeMap::new();
        for (time, step) in (1..).zip(history) {
            let now = at(time);
            match step {
                Step::Up(slot, incarnation, capacity, draining) => {
                    calls.set.apply_change(up(slot, incarnation, capacity, draining));
                    calls.settle(time, now);
                    excess.clear();
                    for view in calls.set.snapshot(Tick::ZERO) {
                        excess.insert(view.endpoint.worker.slot, view.in_flight);
                    }
                }
                Step::Leave(slot, incarnation) => {
                    let removal = Removal {
                        worker: WorkerId { pool: pool(), slot, incarnation: Incarnation(incarnation) },
                        death: None,
                    };
                    calls.set.apply_change(Update { removals: vec![removal], ..Update::default() });
                    calls.settle(time, now);
                }
                Step::Call(target, party, priority) => {
                    let answer = calls.call(ask(target, party, priority), time, now);
                    let full = Refusal::Overloaded(Overload::Full { waiting: MOST });
                    if answer == Err(full) {
                        prop_assert_eq!(calls.set.waiting(&pool()), MOST);
                    }
                }
                Step::End(which) if !calls.under_way.is_empty() => calls.end(which, now),
                Step::GiveUp(which) if !calls.waiting.is_empty() => {
                    let number = *calls.waiting.keys().nth(which % calls.waiting.len()).unwrap();
                    calls.waiting.remove(&number);
                    calls.set.forget(&pool(), number);
                    calls.settle(time, now);
                }
                Step::End(_) | Step::GiveUp(_) => {}
            }
            prop_assert_eq!(calls.set.waiting(&pool()), calls.waiting.len());
            prop_assert!(calls.waiting.len() <= MOST);
            let mut free = BTreeSet::new();
            for view in calls.set.snapshot(Tick::ZERO) {
                let slot = view.endpoint.worker.slot;
                let capacity = view.endpoint.capacity.map_or(u32::MAX, NonZeroU32::get);
                let most = capacity.max(excess.get(&slot).copied().unwrap_or(0));
                prop_assert!(view.in_flight <= most, "E8 {view:?}");
                if view.in_flight < capacity && !view.endpoint.draining {
                    free.insert((slot, view.endpoint.worker.incarnation));
                }
            }
            for (number, target) in &calls.waiting {
                let could = match target {
                    Target::Any | Target::Affinity { affinity: Affinity::Hint, .. } => !free.is_empty(),
                    Target::Worker { slot, incarnation } => free.iter()
                        .any(|(other, life)| other == slot && (incarnation.0 == 0 || life == incarnation)),
                    // Which one it waits for is the set's to say.
                    Target::Affinity { .. } => free.len() == calls.set.snapshot(Tick::ZERO).len() && !free.is_empty(),
                };
                prop_assert!(!could, "E9 {number} {target:?} {free:?}");
            }
        }
    }
}

/// A party with many calls cannot keep out one with few.
#[test]
fn where_all_places_are_taken_whoever_has_most_yields() {
    let mut calls = busy();
    let mut came = |party| calls.call(ask(Target::Any, party, Priority::Normal), 0, at(1));
    let many: Vec<u64> = (0..MOST).map(|_| came(1).unwrap().unwrap()).collect();
    let full = Refusal::Overloaded(Overload::Full { waiting: MOST });
    assert_eq!(came(1), Err(full));

    let few = came(2).unwrap().unwrap();
    let shed = Refusal::Overloaded(Overload::Shed);
    assert_eq!(calls.refused, [(many[MOST - 1], shed)]);
    assert!(calls.waiting.contains_key(&few));
}

/// Calls at one worker take turns, matter and are shed like others.
#[test]
fn calls_bound_to_a_worker_take_turns_too() {
    let mut calls = busy();
    let there = || Target::Worker {
        slot: 0,
        incarnation: Incarnation(0),
    };
    let mut came = |party, priority| {
        calls
            .call(ask(there(), party, priority), 0, at(1))
            .unwrap()
            .unwrap()
    };
    let many: Vec<u64> = (0..MOST - 1).map(|_| came(1, Priority::Low)).collect();
    let few = came(2, Priority::Low);
    let high = came(3, Priority::High);

    let shed = Refusal::Overloaded(Overload::Shed);
    assert_eq!(calls.refused, [(many[MOST - 2], shed)]);
    let order = serve_all(&mut calls);
    assert_eq!(order[..3], [high, many[0], few]);
}

/// A worker that did not answer is not given the same call again while another one is only busy.
#[test]
fn a_call_does_not_go_back_to_a_worker_that_it_has_tried() {
    let mut calls = Calls::new();
    calls.set.apply_change(up(1, 1, 1, false));
    calls
        .call(ask(Target::Any, 0, Priority::Normal), 0, at(1))
        .unwrap();
    calls.set.apply_change(up(0, 1, 1, false));
    let tried = vec![WorkerId {
        pool: pool(),
        slot: 0,
        incarnation: Incarnation(1),
    }];
    let refused = calls
        .set
        .pick(&pool(), &Target::Any, &tried, 0, at(1))
        .map(|_| ());
    assert_eq!(refused, Err(Refusal::NoWorker(Why::Busy)));
    let particular = Ask {
        tried,
        ..ask(Target::Any, 1, Priority::Normal)
    };
    let number = calls.set.wait(&pool(), particular, at(1)).unwrap();
    calls.waiting.insert(
        number,
        Target::Worker {
            slot: 1,
            incarnation: Incarnation(1),
        },
    );

    calls.settle(0, at(1));
    assert!(
        calls.waiting.contains_key(&number),
        "the one that is free it has tried"
    );
    // It stands in nobody's way.
    assert!(
        calls
            .call(ask(Target::Any, 2, Priority::Normal), 0, at(1))
            .is_ok()
    );
    assert_eq!(calls.under_way.last().unwrap().worker().slot, 0);
    calls.end(0, at(2));
    assert_eq!(calls.went.last(), Some(&number));
}

/// Whoever waits is told what whoever comes is told.
#[test]
fn without_a_worker_nobody_waits() {
    let mut calls = busy();
    let waits = calls
        .call(ask(Target::Any, 1, Priority::Normal), 0, at(1))
        .unwrap()
        .unwrap();

    calls.set.apply_change(up(0, 1, 1, true));
    calls.settle(0, at(2));

    let draining = Refusal::NoWorker(Why::Draining);
    assert_eq!(calls.refused, [(waits, draining)]);
    assert_eq!(
        calls.call(ask(Target::Any, 1, Priority::Normal), 0, at(2)),
        Err(draining)
    );
}

/// Lets a worker that serves one call at a time serve all that wait, and answers the order in which they went on.
fn serve_all(calls: &mut Calls) -> Vec<u64> {
    while !calls.under_way.is_empty() {
        calls.end(0, at(1));
    }
    std::mem::take(&mut calls.went)
}

fn busy() -> Calls {
    let mut calls = Calls::new();
    calls.set.apply_change(up(0, 1, 1, false));
    calls
        .call(ask(Target::Any, 0, Priority::Normal), 0, at(1))
        .expect("it is free");
    calls
}

#[test]
fn parties_take_turns_however_many_calls_each_has() {
    let mut calls = busy();
    let mut came = |party| {
        let ask = ask(Target::Any, party, Priority::Normal);
        calls.call(ask, 0, at(1)).unwrap().unwrap()
    };
    let many = [came(1), came(1), came(1), came(1)];
    let few = [came(2), came(2)];

    let order = serve_all(&mut calls);

    let expected = [many[0], few[0], many[1], few[1], many[2], many[3]];
    assert_eq!(order, expected);
}

#[test]
fn what_matters_more_goes_first_and_is_shed_last() {
    let mut calls = busy();
    let mut came = |priority| calls.call(ask(Target::Any, 1, priority), 0, at(1));
    let low: Vec<u64> = (0..4)
        .map(|_| came(Priority::Low).unwrap().unwrap())
        .collect();
    let normal: Vec<u64> = (0..4)
        .map(|_| came(Priority::Normal).unwrap().unwrap())
        .collect();
    let full = Refusal::Overloaded(Overload::Full { waiting: MOST });
    assert_eq!(came(Priority::Low), Err(full));
    let high = came(Priority::High).unwrap().unwrap();

    let shed = Refusal::Overloaded(Overload::Shed);
    assert_eq!(
        calls.refused,
        [(low[3], shed)],
        "the newest of those that matter least"
    );
    let order = serve_all(&mut calls);
    assert_eq!(order, [&[high], &normal[..], &low[..3]].concat());
}

#[test]
fn a_call_whose_turn_would_come_too_late_is_refused_now() {
    let strict = Target::Affinity {
        key: b"k".to_vec(),
        session: None,
        affinity: Affinity::StrictQueue,
    };
    for target in [Target::Any, strict] {
        let mut calls = busy();
        for _ in 0..4 {
            calls
                .call(ask(target.clone(), 1, Priority::Normal), 0, at(1))
                .unwrap();
        }
        for time in [11, 21] {
            calls.end(0, at(time));
        }
        let within = |ms: u64| Ask {
            deadline: Some(at(21 + ms)),
            ..ask(target.clone(), 1, Priority::Normal)
        };

        let late = calls.call(within(29), 0, at(21));
        let expected = Duration::from_millis(30);
        let too_late = Refusal::Overloaded(Overload::TooLate { expected });
        assert_eq!(late, Err(too_late), "two wait, one goes on each 10 ms");
        assert!(calls.call(within(30), 0, at(21)).unwrap().is_some());
        let first = Ask {
            party: Party::Connection(2),
            ..within(20)
        };
        assert!(
            calls.call(first, 0, at(21)).unwrap().is_some(),
            "its turn is the second"
        );
    }
}

#[test]
fn a_lull_is_reckoned_once_and_not_for_every_turn() {
    let mut calls = busy();
    for _ in 0..4 {
        calls
            .call(ask(Target::Any, 1, Priority::Normal), 0, at(1))
            .unwrap();
    }
    for time in [11, 21] {
        calls.end(0, at(time));
    }
    let within = |ms: u64| Ask {
        deadline: Some(at(121 + ms)),
        ..ask(Target::Any, 1, Priority::Normal)
    };

    let late = calls.call(within(119), 0, at(121));
    let expected = Duration::from_millis(120);
    let too_late = Refusal::Overloaded(Overload::TooLate { expected });
    assert_eq!(
        late,
        Err(too_late),
        "three turns of 10 ms, and 90 ms too long since the last"
    );
    assert!(calls.call(within(120), 0, at(121)).unwrap().is_some());
}

#[test]
fn a_call_goes_to_the_best_standing_and_by_weight() {
    let mut set = set();
    let mut tell = |slot, weight, standing| {
        let mut update = up(slot, 1, 0, false);
        update.upserts[0].weight = weight;
        update.upserts[0].standing = standing;
        set.apply_change(update);
    };
    tell(0, 1, Standing::Near);
    tell(1, 3, Standing::Near);
    tell(2, 9, Standing::Far);
    tell(3, 9, Standing::Doubtful);
    let mut tickets = Vec::new();

    let mut went = [0; SLOTS as usize];
    for random in 0..40 {
        let pick = set.pick(&pool(), &Target::Any, &[], random, at(1)).unwrap();
        went[pick.ticket.worker().slot as usize] += 1;
        tickets.push(pick.ticket);
    }

    assert_eq!(went, [10, 30, 0, 0]);
}

#[test]
fn strict_affinity_waits_or_fails_while_a_hint_goes_elsewhere() {
    let mut calls = Calls::new();
    for slot in 0..2 {
        calls.set.apply_change(up(slot, 1, 1, false));
    }
    let to = |affinity| {
        let key = b"session-42".to_vec();
        ask(
            Target::Affinity {
                key,
                session: None,
                affinity,
            },
            1,
            Priority::Normal,
        )
    };
    assert_eq!(calls.call(to(Affinity::StrictQueue), 0, at(1)), Ok(None));
    let home = calls.under_way[0].worker().slot;

    assert_eq!(
        calls.call(to(Affinity::StrictFailFast), 0, at(1)),
        Err(Refusal::NoWorker(Why::Busy))
    );
    let waits = calls
        .call(to(Affinity::StrictQueue), 0, at(1))
        .unwrap()
        .unwrap();
    assert_eq!(
        calls.call(to(Affinity::Hint), 0, at(1)),
        Ok(None),
        "the other one is free"
    );
    assert_ne!(calls.under_way[1].worker().slot, home);

    calls.end(1, at(2));
    assert_eq!(
        calls.waiting.len(),
        1,
        "the other one is not what it waits for"
    );
    calls.end(0, at(3));
    assert_eq!(calls.went, [waits]);
    assert_eq!(calls.under_way[0].worker().slot, home);
}

/// Its worker is gone for good: a call that can go to no other is told so, one that is tied to a key finds the next home.
#[test]
fn who_waits_for_one_that_is_gone_is_told() {
    let mut calls = Calls::new();
    for slot in 0..2 {
        calls.set.apply_change(up(slot, 1, 1, false));
    }
    let key = Target::Affinity {
        key: b"session-42".to_vec(),
        session: None,
        affinity: Affinity::StrictQueue,
    };
    calls
        .call(ask(key.clone(), 1, Priority::Normal), 0, at(1))
        .unwrap();
    let home = calls.under_way[0].worker().slot;
    let pinned = Target::Worker {
        slot: home,
        incarnation: Incarnation(1),
    };
    let pinned = calls
        .call(ask(pinned, 1, Priority::Normal), 0, at(1))
        .unwrap()
        .unwrap();
    let tied = calls
        .call(ask(key, 1, Priority::Normal), 0, at(1))
        .unwrap()
        .unwrap();

    calls.set.apply_change(up(home, 2, 1, true));
    calls.settle(0, at(2));

    let by = Incarnation(2);
    let gone = Refusal::NoWorker(Why::Superseded { by });
    let lost = Refusal::NoWorker(Why::SessionGone {
        slot: home,
        incarnation: Incarnation(1),
    });
    assert_eq!(calls.refused, [(pinned, gone), (tied, lost)]);
    assert_eq!(calls.went, []);
}

/// Of a pool that was empty somebody may have been asked for.
#[test]
fn where_a_worker_is_on_the_way_calls_wait_for_it_and_no_longer_than_it_is_expected() {
    let mut calls = Calls::new();
    let any = || ask(Target::Any, 1, Priority::Normal);
    let none = Err(Refusal::NoWorker(Why::NoneReady));
    assert_eq!(calls.call(any(), 0, at(1)), none);

    calls.set.expect(&pool(), at(10));
    let key = Target::Affinity {
        key: b"session-42".to_vec(),
        session: None,
        affinity: Affinity::StrictQueue,
    };
    let waits = calls.call(any(), 0, at(1)).unwrap().unwrap();
    let tied = calls
        .call(ask(key, 1, Priority::Normal), 0, at(2))
        .unwrap()
        .unwrap();
    let pinned = Target::Worker {
        slot: 0,
        incarnation: Incarnation(1),
    };
    assert_eq!(calls.call(ask(pinned, 1, Priority::Normal), 0, at(2)), none);
    calls.settle(0, at(9));
    assert_eq!(calls.refused, []);

    calls.set.apply_change(up(0, 1, 2, false));
    calls.settle(0, at(9));
    assert_eq!(calls.went, [waits, tied]);

    calls.set.apply_change(Update {
        removals: vec![Removal {
            worker: WorkerId {
                pool: pool(),
                slot: 0,
                incarnation: Incarnation(1),
            },
            death: None,
        }],
        ..Update::default()
    });
    assert_eq!(
        calls.call(any(), 0, at(9)),
        none,
        "nobody is on the way any more"
    );
    calls.set.expect(&pool(), at(10));
    let again = calls.call(any(), 0, at(9)).unwrap().unwrap();
    calls.settle(0, at(10));
    let none = Refusal::NoWorker(Why::NoneReady);
    assert_eq!(calls.refused, [(again, none)]);
}
