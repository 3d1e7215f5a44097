//! E16 over random histories: which incarnation has the state of a key.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use tether_breaker::Outcome;
use tether_clock::Tick;
use tether_endpoints::{
    Affinity, Endpoint, Endpoints, Keeping, Outlook, Refusal, Removal, Session, Standing, Target,
    Update, Why,
};
use tether_types::{Address, Death, DeathCause, Epoch, Incarnation, PoolName, WorkerId};

const SLOTS: u32 = 4;
const KEEP: Duration = Duration::from_secs(20);

/// How far a call comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Served,
    Unsent,
    Refused,
}

#[derive(Debug, Clone)]
enum Step {
    Up(u32, bool),
    /// It dies, or leaves alive.
    Gone(u32, bool),
    Call {
        key: u8,
        epoch: u64,
        affinity: Affinity,
        fate: Fate,
        /// The slot of one that has refused it before.
        tried: Option<u32>,
    },
    /// Two workers have it, and the second wins or the first.
    Hedged {
        key: u8,
        epoch: u64,
        second_wins: bool,
    },
    Wait(u64),
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let affinity = prop_oneof![
        1 => Just(Affinity::Hint), 2 => Just(Affinity::StrictQueue), 1 => Just(Affinity::StrictFailFast)
    ];
    let fate =
        prop_oneof![3 => Just(Fate::Served), 1 => Just(Fate::Unsent), 1 => Just(Fate::Refused)];
    let step = prop_oneof![
        3 => (0..SLOTS, prop::bool::weighted(0.2)).prop_map(|(slot, drains)| Step::Up(slot, drains)),
        2 => (0..SLOTS, any::<bool>()).prop_map(|(slot, dead)| Step::Gone(slot, dead)),
        8 => (0u8..3, 0u64..3, affinity, fate, prop::option::of(0..SLOTS)).prop_map(
            |(key, epoch, affinity, fate, tried)| Step::Call { key, epoch, affinity, fate, tried }),
        3 => (0u8..3, 0u64..3, any::<bool>()).prop_map(
            |(key, epoch, second_wins)| Step::Hedged { key, epoch, second_wins }),
        1 => (1u64..15).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
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
    Update {
        upserts: vec![Endpoint {
            worker: worker(slot, incarnation),
            address: Address::Unix("/w".into()),
            draining,
            counted: false,
            unordered: false,
            capacity: None,
            weight: 0,
            standing: Standing::Near,
            tls: false,
            node: None,
        }],
        ..Update::default()
    }
}

fn gone(slot: u32, incarnation: u64, dead: bool) -> Update {
    let death = Death {
        cause: DeathCause::Signaled(9),
        exit_code: None,
        signal: Some(9),
        detail: String::new(),
        stderr_tail: String::new(),
        measures: None,
    };
    Update {
        removals: vec![Removal {
            worker: worker(slot, incarnation),
            death: dead.then_some(death),
        }],
        ..Update::default()
    }
}

fn target(key: u8, epoch: u64, affinity: Affinity) -> Target {
    let session = (epoch > 0).then(|| {
        Arc::new(Session {
            owner: "beam@a".parse().expect("it is a name"),
            epoch: Epoch(epoch),
        })
    });
    Target::Affinity {
        key: vec![key],
        session,
        affinity,
    }
}

/// A slot as its history has it.
#[derive(Debug, Default, Clone, Copy)]
struct Seat {
    incarnation: u64,
    lives: bool,
    dead: bool,
    drains: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_strict_call_meets_who_had_the_last_one_or_nobody(history in history()) {
        let keeping = Keeping { keep_for: KEEP, ..Keeping::default() };
        let mut set = Endpoints::new(Outlook { keeping, ..Outlook::default() }, 10);
        set.apply_change(Update { pools: vec![pool()], ..Update::default() });
        let mut seats: BTreeMap<u32, Seat> = BTreeMap::new();
        let mut last: BTreeMap<(u8, u64), (u32, u64, Tick)> = BTreeMap::new();
        let mut now = Tick::ZERO;
        for step in history {
            match step {
                Step::Wait(seconds) => now = now + Duration::from_secs(seconds),
                Step::Up(slot, drains) => {
                    let seat = seats.entry(slot).or_default();
                    if seat.dead || seat.incarnation == 0 {
                        seat.incarnation += 1;
                    }
                    *seat = Seat { lives: true, dead: false, drains, ..*seat };
                    set.apply_change(up(slot, seat.incarnation, drains));
                }
                Step::Gone(slot, dead) => {
                    let seat = seats.entry(slot).or_default();
                    *seat = Seat { lives: false, dead: dead || seat.dead, ..*seat };
                    set.apply_change(gone(slot, seat.incarnation, dead));
                }
                Step::Call { key, epoch, affinity, fate, tried } => {
                    let is_kept = |(_, _, at): &(u32, u64, Tick)| now < *at + KEEP;
                    let before = last.get(&(key, epoch)).copied().filter(is_kept);
                    let tried = tried.map(|slot| worker(slot, seats.get(&slot).map_or(0, |seat| seat.incarnation)));
                    let tried: Vec<WorkerId> = tried.into_iter().collect();
                    let picked = set.pick(&pool(), &target(key, epoch, affinity), &tried, 0, now);
                    if let (Some((slot, incarnation, _)), true) = (before, affinity != Affinity::Hint) {
                        let seat = seats[&slot];
                        let is_gone = seat.incarnation > incarnation || seat.dead;
                        match &picked {
                            Ok(pick) => {
                                prop_assert_eq!(pick.ticket.worker(), &worker(slot, incarnation), "E16");
                            }
                            Err(why) if is_gone => {
                                let incarnation = Incarnation(incarnation);
                                let expected = Why::SessionGone { slot, incarnation };
                                prop_assert_eq!(why, &Refusal::NoWorker(expected), "E16");
                            }
                            Err(why) => {
                                let was_tried = tried.contains(&worker(slot, incarnation));
                                prop_assert!(!seat.lives || seat.drains || was_tried, "E16 {:?} {:?}", why, seat);
                            }
                        }
                    }
                    let Ok(mut pick) = picked else { continue };
                    let id = pick.ticket.worker().clone();
                    let at = (id.slot, id.incarnation.0);
                    let moved = before.is_some_and(|(slot, incarnation, _)| (slot, incarnation) != at);
                    prop_assert_eq!(pick.ticket.has_moved(), moved, "E16");
                    if fate != Fate::Unsent {
                        pick.ticket.on_sent(now);
                    }
                    if fate == Fate::Refused {
                        set.on_refused(&mut pick.ticket, now);
                    }
                    set.on_outcome(&mut pick.ticket, Outcome::Success, now);
                    set.release(pick.ticket, now);
                    // Where it has never had the call, whoever had the one before still has what it knew.
                    let has_it = match fate {
                        Fate::Served => Some(at),
                        Fate::Unsent | Fate::Refused => before.map(|(slot, incarnation, _)| (slot, incarnation)),
                    };
                    match has_it {
                        Some((slot, incarnation)) => last.insert((key, epoch), (slot, incarnation, now)),
                        None => last.remove(&(key, epoch)),
                    };
                }
                Step::Hedged { key, epoch, second_wins } => {
                    let target = target(key, epoch, Affinity::Hint);
                    let Ok(mut first) = set.pick(&pool(), &target, &[], 0, now) else { continue };
                    first.ticket.on_sent(now);
                    let claim = first.ticket.claim().expect("it has a key");
                    let mut winner = first.ticket.worker().clone();
                    let tried = [winner.clone()];
                    if let Ok(mut second) = set.pick(&pool(), &target, &tried, 0, now) {
                        second.ticket.on_sent(now);
                        match second_wins {
                            true => winner = second.ticket.worker().clone(),
                            false => set.on_won(&claim, now),
                        }
                        set.release(second.ticket, now);
                    }
                    set.release(first.ticket, now);
                    last.insert((key, epoch), (winner.slot, winner.incarnation.0, now));
                }
            }
        }
    }
}
