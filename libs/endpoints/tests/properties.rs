//! One property per invariant of the endpoint set, over random histories of updates and calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use tether_breaker::{Outcome, State, Terms};
use tether_clock::Tick;
use tether_endpoints::{
    Affinity, Endpoint, Endpoints, Outlook, Refusal, Removal, Standing, Target, Ticket, Update, Why,
};
use tether_types::{Address, Death, DeathCause, Incarnation, PoolName, WorkerId};

const NOW: Tick = Tick::from_nanos(1);
const SLOTS: u32 = 6;

#[derive(Debug, Clone)]
enum Step {
    Up {
        slot: u32,
        incarnation: u64,
        draining: bool,
    },
    Leave {
        slot: u32,
        incarnation: u64,
        dead: bool,
    },
    Snapshot,
    Call(Target, u64),
    End(usize, Outcome),
}

fn hint(key: &[u8]) -> Target {
    Target::Affinity {
        key: key.to_vec(),
        session: None,
        affinity: Affinity::Hint,
    }
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        3 => Just(Target::Any),
        1 => any::<[u8; 2]>().prop_map(|key| hint(&key)),
        1 => (0..SLOTS, 0u64..4).prop_map(|(slot, incarnation)| Target::Worker {
            slot, incarnation: Incarnation(incarnation)
        }),
    ]
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Failure), 1 => Just(Outcome::Success), 1 => Just(Outcome::Silent)
    ];
    let step = prop_oneof![
        4 => (0..SLOTS, 1u64..6, prop::bool::weighted(0.2))
            .prop_map(|(slot, incarnation, draining)| Step::Up { slot, incarnation, draining }),
        1 => (0..SLOTS, 1u64..6, any::<bool>())
            .prop_map(|(slot, incarnation, dead)| Step::Leave { slot, incarnation, dead }),
        1 => Just(Step::Snapshot),
        8 => (target(), any::<u64>()).prop_map(|(target, random)| Step::Call(target, random)),
        6 => (any::<usize>(), outcome).prop_map(|(at, outcome)| Step::End(at, outcome)),
    ];
    prop::collection::vec(step, 1..150)
}

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

fn up(slot: u32, incarnation: u64, draining: bool) -> Update {
    let address = Address::Unix(format!("/w{slot}.{incarnation}").into());
    Update {
        upserts: vec![Endpoint {
            worker: worker(slot, incarnation),
            address,
            node: None,
            draining,
            tls: false,
            counted: !draining,
            unordered: false,
            capacity: None,
            weight: 0,
            standing: Standing::Near,
        }],
        pools: vec![pool()],
        ..Update::default()
    }
}

fn leave(slot: u32, incarnation: u64, dead: bool) -> Update {
    let death = dead.then(|| Death {
        cause: DeathCause::Signaled(9),
        exit_code: None,
        signal: Some(9),
        detail: String::new(),
        stderr_tail: String::new(),
        measures: None,
    });
    Update {
        removals: vec![Removal {
            worker: worker(slot, incarnation),
            death,
        }],
        ..Update::default()
    }
}

/// A set that knows its one pool and no endpoint of it.
fn endpoints() -> Endpoints {
    let terms = Terms {
        failure_threshold: 2,
        ..Terms::default()
    };
    let outlook = Outlook {
        terms,
        // Which one is left alone is what the model asks here, and not how many.
        most_ejected_percent: 100,
        ..Outlook::default()
    };
    let mut set = Endpoints::new(outlook, 1_000);
    set.apply_change(Update {
        pools: vec![pool()],
        ..Update::default()
    });
    set
}

/// The set as a snapshot would tell it.
fn told(endpoints: &Endpoints) -> Update {
    Update {
        upserts: endpoints
            .snapshot(Tick::ZERO)
            .into_iter()
            .map(|view| view.endpoint)
            .collect(),
        pools: endpoints.pools().cloned().collect(),
        ..Update::default()
    }
}

/// What a reader of the invariants expects, computed from the history alone.
#[derive(Debug, Default)]
struct Model {
    /// Living incarnation and whether it drains, by slot.
    live: BTreeMap<u32, (u64, bool)>,
    /// Lowest incarnation that may still live, by slot.
    floor: BTreeMap<u32, u64>,
    /// Calls under way on who lives in a slot.
    in_flight: BTreeMap<u32, u32>,
    /// How often a slot has lost its inhabitant; calls from before a loss count no more.
    losses: BTreeMap<u32, u32>,
    /// Calls over that were sent, by slot and incarnation.
    calls: BTreeMap<(u32, u64), u64>,
}

impl Model {
    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Up {
                slot,
                incarnation,
                draining,
            } => {
                let floor = self.floor.entry(slot).or_default();
                if incarnation >= *floor {
                    *floor = incarnation;
                    if self.live.get(&slot).is_some_and(|old| old.0 != incarnation) {
                        self.lose(slot);
                    }
                    self.live.insert(slot, (incarnation, draining));
                }
            }
            Step::Leave {
                slot,
                incarnation,
                dead,
            } => {
                let floor = self.floor.entry(slot).or_default();
                if dead {
                    *floor = (*floor).max(incarnation + 1);
                }
                if self
                    .live
                    .get(&slot)
                    .is_some_and(|(living, _)| *living <= incarnation)
                {
                    self.lose(slot);
                }
            }
            Step::Snapshot | Step::Call(..) | Step::End(..) => {}
        }
    }

    fn lose(&mut self, slot: u32) {
        self.live.remove(&slot);
        self.in_flight.remove(&slot);
        *self.losses.entry(slot).or_default() += 1;
    }

    fn losses(&self, slot: u32) -> u32 {
        self.losses.get(&slot).copied().unwrap_or(0)
    }
}

fn apply(endpoints: &mut Endpoints, step: &Step) {
    match *step {
        Step::Up {
            slot,
            incarnation,
            draining,
        } => {
            endpoints.apply_change(up(slot, incarnation, draining));
        }
        Step::Leave {
            slot,
            incarnation,
            dead,
        } => {
            endpoints.apply_change(leave(slot, incarnation, dead));
        }
        Step::Snapshot => {
            let snapshot = told(endpoints);
            endpoints.apply_snapshot(snapshot);
        }
        Step::Call(..) | Step::End(..) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// E1, E2, E3, E4 and E7, checked against the model after every step.
    #[test]
    fn picks_and_counts_follow_the_model(history in history()) {
        let mut set = endpoints();
        let mut model = Model::default();
        let mut under_way: Vec<(Ticket, u32, bool)> = Vec::new();
        for step in &history {
            apply(&mut set, step);
            model.apply(step);
            match step {
                Step::Call(target, random) => {
                    let before = set.snapshot(Tick::ZERO);
                    let Ok(mut pick) = set.pick(&pool(), target, &[], *random, NOW) else { continue };
                    let id = pick.ticket.worker().clone();
                    let sent = random % 3 != 0;
                    if sent {
                        pick.ticket.on_sent(NOW);
                    }

                    let (living, draining) = model.live[&id.slot];
                    prop_assert!(!draining && living == id.incarnation.0, "E1 {id}");
                    let open = |view: &tether_endpoints::View| {
                        matches!(view.breaker.state, State::Open { .. })
                    };
                    let chosen = before.iter().find(|view| view.endpoint.worker == id).unwrap();
                    prop_assert!(!open(chosen), "E1 {id}");
                    if *target == Target::Any {
                        let fewest = before.iter()
                            .filter(|view| !view.endpoint.draining && !open(view))
                            .map(|view| view.in_flight).min();
                        prop_assert_eq!(Some(chosen.in_flight), fewest, "E2");
                    }
                    *model.in_flight.entry(id.slot).or_default() += 1;
                    under_way.push((pick.ticket, model.losses(id.slot), sent));
                }
                Step::End(_, _) if under_way.is_empty() => {}
                Step::End(at, outcome) => {
                    let (mut ticket, losses, sent) = under_way.swap_remove(at % under_way.len());
                    let slot = ticket.worker().slot;
                    if losses == model.losses(slot) {
                        *model.in_flight.get_mut(&slot).unwrap() -= 1;
                    }
                    let id = ticket.worker().clone();
                    if sent {
                        *model.calls.entry((id.slot, id.incarnation.0)).or_default() += 1;
                    }
                    set.on_outcome(&mut ticket, *outcome, NOW);
                    let told = set.release(ticket, NOW);
                    let counted = model.live.get(&id.slot) == Some(&(id.incarnation.0, false));
                    prop_assert_eq!(told, sent && counted, "E7");
                }
                Step::Up { .. } | Step::Leave { .. } | Step::Snapshot => {}
            }
            let seen: BTreeMap<u32, (u64, bool)> = set.snapshot(Tick::ZERO).iter()
                .map(|view| {
                    let id = &view.endpoint.worker;
                    (id.slot, (id.incarnation.0, view.endpoint.draining))
                }).collect();
            prop_assert_eq!(&seen, &model.live, "E3");
            for view in set.snapshot(Tick::ZERO) {
                let expected = model.in_flight.get(&view.endpoint.worker.slot).copied().unwrap_or(0);
                prop_assert_eq!(view.in_flight, expected, "E4");
            }
            let counted: BTreeMap<_, _> = set.counted()
                .map(|(id, calls)| ((id.slot, id.incarnation.0), calls)).collect();
            let lives = |(slot, incarnation): &(u32, u64)| model.live.get(slot) == Some(&(*incarnation, false));
            let expected: BTreeMap<_, _> = model.calls.iter()
                .filter(|(id, _)| lives(id)).map(|(id, calls)| (*id, *calls)).collect();
            prop_assert_eq!(counted, expected, "E7");
        }
        for (ticket, ..) in under_way {
            set.release(ticket, NOW);
        }
        prop_assert!(set.snapshot(Tick::ZERO).iter().all(|view| view.in_flight == 0), "E4");
    }

    /// E5
    #[test]
    fn affinity_ignores_what_happens_to_other_slots(
        key in any::<[u8; 4]>(), history in history(), slots in 2..SLOTS,
    ) {
        let mut set = endpoints();
        for slot in 0..slots {
            set.apply_change(up(slot, 1, false));
        }
        let target = hint(&key);
        let home = set.pick(&pool(), &target, &[], 0, NOW).unwrap().ticket.worker().slot;

        for step in &history {
            let other = match step {
                // A slot that never was may outbid the home, so the pool keeps its size.
                Step::Up { slot, .. } | Step::Leave { slot, .. } => *slot != home && *slot < slots,
                Step::Snapshot | Step::Call(..) | Step::End(..) => true,
            };
            if other {
                apply(&mut set, step);
            }
            let load = set.pick(&pool(), &Target::Worker { slot: home, incarnation: Incarnation(0) }, &[], 0, NOW);
            prop_assert!(load.is_ok());
            let again = set.pick(&pool(), &target, &[], 7, NOW).unwrap();
            prop_assert_eq!(again.ticket.worker().slot, home);
        }

        set.apply_change(leave(home, 1, true));
        set.apply_change(up(home, 2, false));
        let restarted = set.pick(&pool(), &target, &[], 0, NOW).unwrap();
        prop_assert_eq!(restarted.ticket.worker(), &worker(home, 2));
    }

    /// E6: one gateway follows every change, another is away from `away` on and gets a snapshot.
    #[test]
    fn a_snapshot_catches_up_with_the_changes_missed(history in history(), away in 0usize..150) {
        let mut present = endpoints();
        let mut returning = endpoints();
        for (at, step) in history.iter().enumerate() {
            apply(&mut present, step);
            if at < away {
                apply(&mut returning, step);
            }
        }

        returning.apply_snapshot(told(&present));

        prop_assert_eq!(told(&returning), told(&present));
    }
}

#[test]
fn a_snapshot_keeps_calls_and_breakers_of_workers_that_stay() {
    let mut set = endpoints();
    set.apply_change(up(0, 1, false));
    let mut ticket = set.pick(&pool(), &Target::Any, &[], 0, NOW).unwrap().ticket;
    set.on_outcome(&mut ticket, Outcome::Failure, NOW);
    let before = set.snapshot(Tick::ZERO);

    set.apply_snapshot(up(0, 1, false));

    assert_eq!(set.snapshot(Tick::ZERO), before);
    assert_eq!(before[0].in_flight, 1);
}

#[test]
fn a_key_whose_worker_is_away_has_one_other_home() {
    let mut set = endpoints();
    for slot in 0..SLOTS {
        set.apply_change(up(slot, 1, false));
    }
    let target = hint(b"session-42");
    let home = set
        .pick(&pool(), &target, &[], 0, NOW)
        .unwrap()
        .ticket
        .worker()
        .slot;
    set.apply_change(up(home, 1, true));

    let seconds: BTreeSet<u32> = (0..20)
        .map(|random| {
            set.pick(&pool(), &target, &[], random, NOW)
                .unwrap()
                .ticket
                .worker()
                .slot
        })
        .collect();

    assert_eq!(seconds.len(), 1);
    assert!(!seconds.contains(&home));
}

#[test]
fn a_refusal_says_why() {
    let mut set = endpoints();
    let pick = |set: &mut Endpoints, target| {
        set.pick(&pool(), &target, &[], 0, NOW)
            .map(|pick| pick.ticket.worker().clone())
    };
    let pinned = |incarnation| Target::Worker {
        slot: 0,
        incarnation: Incarnation(incarnation),
    };
    let other = PoolName::new("other").unwrap();
    let nowhere = set.pick(&other, &Target::Any, &[], 0, NOW).map(|_| ());
    assert_eq!(nowhere, Err(Refusal::NoPool));

    assert_eq!(
        pick(&mut set, Target::Any),
        Err(Refusal::NoWorker(Why::NoneReady))
    );

    set.apply_change(up(0, 3, true));
    assert_eq!(
        pick(&mut set, Target::Any),
        Err(Refusal::NoWorker(Why::Draining))
    );
    assert_eq!(
        pick(&mut set, pinned(0)),
        Err(Refusal::NoWorker(Why::Draining))
    );
    let superseded = Why::Superseded { by: Incarnation(3) };
    assert_eq!(
        pick(&mut set, pinned(2)),
        Err(Refusal::NoWorker(superseded))
    );
    assert_eq!(
        pick(&mut set, pinned(4)),
        Err(Refusal::NoWorker(Why::NoneReady))
    );

    set.apply_change(up(0, 3, false));
    assert_eq!(pick(&mut set, pinned(3)), Ok(worker(0, 3)));
    for _ in 0..2 {
        let mut ticket = set.pick(&pool(), &Target::Any, &[], 0, NOW).unwrap().ticket;
        set.on_outcome(&mut ticket, Outcome::Failure, NOW);
        set.release(ticket, NOW);
    }
    let open = Why::BreakersOpen {
        retry_after: Terms::default().open_for,
    };
    assert_eq!(pick(&mut set, Target::Any), Err(Refusal::NoWorker(open)));
}

#[test]
fn a_death_is_remembered_until_its_pool_is_gone() {
    let mut set = endpoints();
    set.apply_change(up(0, 1, false));
    let gone = set.apply_change(leave(0, 1, true));
    set.apply_change(up(0, 2, false));

    assert_eq!(gone.len(), 1);
    assert!(gone[0].died);
    assert_eq!(set.death_of(&worker(0, 1)).unwrap().signal, Some(9));
    assert!(set.death_of(&worker(0, 2)).is_none());

    set.apply_change(Update {
        removed_pools: vec![pool()],
        ..Update::default()
    });
    assert!(set.death_of(&worker(0, 1)).is_none());
    assert!(set.latest_death(&pool()).is_none());
}

/// E3 is for workers with agents: of others, replicas of discovery may tell what was replaced again.
#[test]
fn of_endpoints_that_nobody_runs_what_was_told_last_counts() {
    let mut set = endpoints();
    let tell = |set: &mut Endpoints, incarnation, unordered| {
        let mut update = up(0, incarnation, false);
        update.upserts[0].unordered = unordered;
        set.apply_change(update);
        let alive = set.snapshot(Tick::ZERO).into_iter().next();
        alive.map(|view| view.endpoint.worker.incarnation.0)
    };
    assert_eq!(tell(&mut set, 9, true), Some(9));
    assert_eq!(
        tell(&mut set, 5, true),
        Some(5),
        "an earlier number is no earlier worker"
    );
    let pinned = |set: &mut Endpoints, incarnation| {
        let target = Target::Worker {
            slot: 0,
            incarnation: Incarnation(incarnation),
        };
        let pick = set.pick(&pool(), &target, &[], 0, NOW);
        pick.map(|pick| set.release(pick.ticket, NOW))
    };
    assert_eq!(
        pinned(&mut set, 5),
        Ok(false),
        "the one that serves is reached"
    );
    for other in [4, 9] {
        let replaced = Why::Replaced { by: Incarnation(5) };
        assert_eq!(pinned(&mut set, other), Err(Refusal::NoWorker(replaced)));
    }
    assert!(
        set.apply_change(leave(0, 9, false)).is_empty(),
        "it is gone already"
    );
    assert_eq!(set.apply_change(leave(0, 5, false)).len(), 1);

    let mut set = endpoints();
    assert_eq!(tell(&mut set, 9, false), Some(9));
    assert_eq!(tell(&mut set, 5, false), Some(9));
}

#[test]
fn what_a_snapshot_does_not_know_yet_stands_until_it_is_said_who_serves() {
    let mut set = endpoints();
    set.apply_change(up(0, 1, false));
    set.apply_change(up(1, 2, false));
    let alive = |set: &Endpoints| -> Vec<u32> {
        let views = set.snapshot(Tick::ZERO).into_iter();
        views.map(|view| view.endpoint.worker.slot).collect()
    };

    let restarted = Update {
        pools: vec![pool()],
        unheard: vec![pool()],
        ..Update::default()
    };
    assert!(set.apply_snapshot(restarted).is_empty());
    assert_eq!(alive(&set), [0, 1]);

    let said = Update {
        heard: vec![pool()],
        ..up(1, 2, false)
    };
    let gone = set.apply_change(said);
    assert_eq!(gone.len(), 1);
    assert!(!gone[0].died);
    assert_eq!(alive(&set), [1]);
}

/// E10
#[test]
fn calls_that_fail_take_only_a_share_of_the_workers_away() {
    let ejected_of = |workers: u32| {
        let mut set = Endpoints::new(Outlook::default(), 0);
        for slot in 0..workers {
            set.apply_change(up(slot, 1, false));
        }
        for round in 0..u64::from(workers) * 40 {
            let Ok(pick) = set.pick(&pool(), &Target::Any, &[], round, NOW) else {
                break;
            };
            let mut ticket = pick.ticket;
            set.on_outcome(&mut ticket, Outcome::Failure, NOW);
            set.release(ticket, NOW);
        }
        let views = set.snapshot(Tick::ZERO).into_iter();
        let open = |view: &tether_endpoints::View| matches!(view.breaker.state, State::Open { .. });
        views.filter(open).count()
    };

    assert_eq!([1, 2, 3, 4, 10].map(ejected_of), [1, 1, 1, 2, 5]);
}

#[test]
fn one_that_answers_late_too_often_is_left_alone() {
    let outlook = Outlook {
        slow_after: Some(Duration::from_secs(1)),
        terms: Terms {
            slow_percent: 50,
            ..Terms::default()
        },
        ..Outlook::default()
    };
    let mut set = Endpoints::new(outlook, 0);
    set.apply_change(up(0, 1, false));
    let mut call = |takes: Duration| {
        let pick = set.pick(&pool(), &Target::Any, &[], 0, NOW)?;
        let mut ticket = pick.ticket;
        ticket.on_sent(NOW);
        ticket.on_answered(NOW + takes);
        // The rest of a stream may take as long as it likes.
        set.on_code(&mut ticket, 0, NOW + takes + Duration::from_secs(3_600));
        set.release(ticket, NOW);
        Ok::<_, Refusal>(())
    };

    for _ in 0..10 {
        call(Duration::from_millis(999)).unwrap();
    }
    for _ in 0..10 {
        call(Duration::from_secs(1)).unwrap();
    }
    let refused = call(Duration::ZERO).unwrap_err();
    assert!(
        matches!(refused, Refusal::NoWorker(Why::BreakersOpen { .. })),
        "{refused:?}"
    );
}

#[test]
fn one_whose_calls_end_by_their_deadline_first_is_slow_where_that_was_late_enough() {
    let outlook = Outlook {
        slow_after: Some(Duration::from_secs(1)),
        ..Outlook::default()
    };
    let deadline = |takes: Duration, answered: bool| {
        let mut set = Endpoints::new(outlook, 0);
        set.apply_change(up(0, 1, false));
        for _ in 0..20 {
            let mut ticket = set.pick(&pool(), &Target::Any, &[], 0, NOW).ok()?.ticket;
            ticket.on_sent(NOW);
            if answered {
                ticket.on_answered(NOW);
            }
            set.on_code(&mut ticket, DEADLINE_EXCEEDED, NOW + takes);
            set.release(ticket, NOW);
        }
        set.pick(&pool(), &Target::Any, &[], 0, NOW + takes).ok()
    };

    let second = Duration::from_secs(1);
    assert!(deadline(second, false).is_none(), "it is left alone");
    assert!(deadline(second, true).is_some(), "its answers had begun");
    let short = second - Duration::from_millis(1);
    assert!(
        deadline(short, false).is_some(),
        "that was the caller's doing"
    );
}

/// gRPC's code of a call whose deadline passed.
const DEADLINE_EXCEEDED: u32 = 4;
