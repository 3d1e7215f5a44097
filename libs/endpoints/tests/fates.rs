//! What agents say, in any order with what discovery says: E13, E14, E15.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use proptest::prelude::*;
use tether_clock::Tick;
use tether_endpoints::{
    Affinity, Ages, Endpoint, Endpoints, Fates, Gone, Outlook, Pick, Refusal, Removal, Standing,
    Target, Update, Why, Word,
};
use tether_types::{Death, DeathCause, Incarnation, NodeName, PoolName, WorkerId};

fn pool() -> PoolName {
    PoolName::new("digits").unwrap()
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn worker(slot: u32, incarnation: u64) -> WorkerId {
    WorkerId {
        pool: pool(),
        slot,
        incarnation: Incarnation(incarnation),
    }
}

fn endpoint(worker: WorkerId, node: NodeName) -> Endpoint {
    Endpoint {
        worker,
        address: "unix:/w".parse().unwrap(),
        draining: false,
        tls: false,
        counted: false,
        node: Some(node),
        unordered: false,
        capacity: None,
        weight: 0,
        standing: Standing::Near,
    }
}

fn killed() -> Death {
    Death {
        cause: DeathCause::Signaled(9),
        exit_code: None,
        signal: Some(9),
        detail: String::new(),
        stderr_tail: String::new(),
        measures: None,
    }
}

/// Serves these workers of node `a`.
fn serving(workers: &[WorkerId]) -> Endpoints {
    let mut endpoints = Endpoints::new(Outlook::default(), 10);
    endpoints.on_heard(Ages::default(), Tick::ZERO);
    let served = workers
        .iter()
        .map(|worker| endpoint(worker.clone(), node("a")));
    endpoints.apply_snapshot(Update {
        upserts: served.collect(),
        pools: vec![pool()],
        ..Update::default()
    });
    endpoints
}

fn say(endpoints: &mut Endpoints, worker: WorkerId, word: Word) -> Vec<Gone> {
    let fates = Fates {
        words: vec![(worker, word)],
        ..Fates::default()
    };
    endpoints.on_fates(&node("a"), fates)
}

fn pick_at(endpoints: &mut Endpoints, target: &Target, at: Tick) -> Result<WorkerId, Refusal> {
    let Pick { ticket, .. } = endpoints.pick(&pool(), target, &[], 1, at)?;
    let worker = ticket.worker().clone();
    endpoints.release(ticket, at);
    Ok(worker)
}

fn pick(endpoints: &mut Endpoints) -> Result<WorkerId, Refusal> {
    pick_at(endpoints, &Target::Any, Tick::ZERO)
}

const NONE: Result<WorkerId, Refusal> = Err(Refusal::NoWorker(Why::NoneReady));
const DRAINING: Result<WorkerId, Refusal> = Err(Refusal::NoWorker(Why::Draining));
const LAPSED: Result<WorkerId, Refusal> = Err(Refusal::NoWorker(Why::Lapsed));

#[test]
fn one_that_died_is_gone_at_once_and_for_good_whatever_discovery_says() {
    let mut endpoints = serving(&[worker(0, 5)]);

    let gone = say(&mut endpoints, worker(0, 5), Word::Dead(killed()));
    assert_eq!(
        gone,
        [Gone {
            worker: worker(0, 5),
            died: true
        }]
    );
    assert_eq!(pick(&mut endpoints), NONE);
    assert_eq!(endpoints.death_of(&worker(0, 5)), Some(&killed()));
    // Discovery is behind, and then tells of the death with all that is known.
    endpoints.apply_change(Update {
        upserts: vec![endpoint(worker(0, 5), node("a"))],
        ..Update::default()
    });
    assert_eq!(pick(&mut endpoints), NONE);
    let recorded = Death {
        detail: "recorded".into(),
        ..killed()
    };
    let removal = Removal {
        worker: worker(0, 5),
        death: Some(recorded.clone()),
    };
    let gone = endpoints.apply_change(Update {
        removals: vec![removal],
        ..Update::default()
    });
    assert_eq!(gone, []);
    // Told again by an agent that is late, it takes nothing back and hits nobody else.
    endpoints.apply_change(Update {
        upserts: vec![endpoint(worker(0, 6), node("a"))],
        ..Update::default()
    });
    assert_eq!(say(&mut endpoints, worker(0, 5), Word::Dead(killed())), []);
    assert_eq!(endpoints.death_of(&worker(0, 5)), Some(&recorded));
    assert_eq!(pick(&mut endpoints), Ok(worker(0, 6)));
}

#[test]
fn a_word_that_comes_before_its_worker_is_known_counts_when_it_is() {
    let mut endpoints = serving(&[]);
    say(&mut endpoints, worker(0, 5), Word::Dead(killed()));
    say(&mut endpoints, worker(1, 6), Word::Ending);

    let gone = endpoints.apply_change(Update {
        upserts: vec![
            endpoint(worker(0, 5), node("a")),
            endpoint(worker(1, 6), node("a")),
        ],
        ..Update::default()
    });
    assert_eq!(gone.len(), 1);
    assert_eq!(pick(&mut endpoints), DRAINING);
    assert!(endpoints.is_draining(&worker(1, 6)));
}

#[test]
fn an_agent_speaks_for_its_own_node_alone() {
    let mut endpoints = serving(&[worker(0, 5)]);
    let fates = Fates {
        snapshot: true,
        words: vec![(worker(0, 5), Word::Dead(killed()))],
        gone: Vec::new(),
    };

    assert_eq!(endpoints.on_fates(&node("b"), fates), []);
    assert_eq!(pick(&mut endpoints), Ok(worker(0, 5)));
    assert!(endpoints.serves_from(&node("a")) && !endpoints.serves_from(&node("b")));
}

#[test]
fn one_without_a_sign_of_life_waits_for_others_to_be_gone() {
    let mut endpoints = serving(&[worker(0, 5), worker(1, 6)]);
    say(&mut endpoints, worker(0, 5), Word::Doubtful);
    for _ in 0..10 {
        assert_eq!(pick(&mut endpoints), Ok(worker(1, 6)));
    }
    let here = Target::Worker {
        slot: 0,
        incarnation: Incarnation(0),
    };
    assert_eq!(
        pick_at(&mut endpoints, &here, Tick::ZERO),
        Ok(worker(0, 5)),
        "whoever wants it has no other"
    );

    // The other one is full: it will be free.
    let full = Endpoint {
        capacity: NonZeroU32::new(1),
        ..endpoint(worker(1, 6), node("a"))
    };
    endpoints.apply_change(Update {
        upserts: vec![full],
        ..Update::default()
    });
    let held = endpoints
        .pick(&pool(), &Target::Any, &[], 1, Tick::ZERO)
        .unwrap();
    assert_eq!(
        pick(&mut endpoints),
        Err(Refusal::NoWorker(Why::Busy)),
        "E14"
    );
    endpoints.release(held.ticket, Tick::ZERO);
    say(&mut endpoints, worker(1, 6), Word::Ending);
    assert_eq!(pick(&mut endpoints), Ok(worker(0, 5)));

    say(&mut endpoints, worker(0, 5), Word::Running);
    assert_eq!(pick(&mut endpoints), Ok(worker(0, 5)));
}

#[test]
fn a_view_says_what_an_agent_has_said() {
    let mut endpoints = serving(&[worker(0, 5)]);
    let view = |endpoints: &Endpoints, at| {
        let view = endpoints.snapshot_of(&pool(), at).remove(0);
        (view.doubted, view.refusal)
    };
    assert_eq!(view(&endpoints, Tick::ZERO), (false, None));

    say(&mut endpoints, worker(0, 5), Word::Doubtful);
    let end = Tick::ZERO + Duration::from_secs(1);
    endpoints.on_permissions(&node("a"), ends(end), Tick::ZERO);
    assert_eq!(view(&endpoints, Tick::ZERO), (true, None));
    assert_eq!(view(&endpoints, end), (true, Some(Why::Lapsed)));

    say(&mut endpoints, worker(0, 5), Word::Ending);
    let draining = (false, Some(Why::Draining));
    assert_eq!(view(&endpoints, Tick::ZERO), draining);
}

fn ends(at: Tick) -> BTreeMap<PoolName, Tick> {
    [(pool(), at)].into()
}

#[test]
fn a_permission_that_is_over_is_over_also_while_everybody_is_away() {
    let mut endpoints = serving(&[worker(0, 5)]);
    let seconds = |count| Tick::ZERO + Duration::from_secs(count);
    let at = |endpoints: &mut Endpoints, count| pick_at(endpoints, &Target::Any, seconds(count));
    assert_eq!(at(&mut endpoints, 1_000), Ok(worker(0, 5)), "nobody said");

    say(&mut endpoints, worker(0, 5), Word::Running);
    assert!(!endpoints.on_permissions(&node("a"), ends(seconds(100)), seconds(90)));
    assert!(!endpoints.on_permissions(&node("a"), BTreeMap::new(), seconds(90)));
    assert_eq!(at(&mut endpoints, 99), Ok(worker(0, 5)));
    assert_eq!(at(&mut endpoints, 100), LAPSED);

    // The agent is there and knows better than discovery.
    endpoints.on_heard(Ages::default(), seconds(100));
    assert_eq!(at(&mut endpoints, 100), LAPSED);
    // It is away, and discovery says that the arbiter has its worker serve.
    endpoints.on_feed_lost(&node("a"));
    assert_eq!(at(&mut endpoints, 100), Ok(worker(0, 5)));
    endpoints.on_silence();
    assert_eq!(at(&mut endpoints, 100), LAPSED, "so is discovery");
    endpoints.on_heard(Ages::default(), seconds(100));
    assert_eq!(at(&mut endpoints, 114), Ok(worker(0, 5)));
    // It says nothing for long, or what it knows is old.
    assert_eq!(at(&mut endpoints, 115), LAPSED);
    let old = Ages {
        store: Duration::from_secs(20),
        ..Ages::default()
    };
    endpoints.on_heard(old, seconds(116));
    assert_eq!(at(&mut endpoints, 116), LAPSED);
    // The agent is back.
    say(&mut endpoints, worker(0, 5), Word::Running);
    assert!(endpoints.on_permissions(&node("a"), ends(seconds(140)), seconds(120)));
    assert!(!endpoints.on_permissions(&node("a"), ends(seconds(150)), seconds(121)));
    assert_eq!(at(&mut endpoints, 120), Ok(worker(0, 5)));
}

#[test]
fn what_a_new_life_of_an_agent_says_takes_the_place_of_what_the_last_one_said() {
    let mut endpoints = serving(&[worker(0, 5), worker(1, 6)]);
    say(&mut endpoints, worker(0, 5), Word::Doubtful);
    say(&mut endpoints, worker(1, 6), Word::Doubtful);
    endpoints.on_feed_lost(&node("a"));

    let fates = Fates {
        snapshot: true,
        words: vec![(worker(1, 6), Word::Ending)],
        gone: Vec::new(),
    };
    assert_eq!(endpoints.on_fates(&node("a"), fates), []);
    for _ in 0..10 {
        assert_eq!(pick(&mut endpoints), Ok(worker(0, 5)));
    }
}

/// Something that happens to a set of two slots on one node.
#[derive(Debug, Clone)]
enum Event {
    /// Discovery tells of a worker.
    Upsert(u32, u64),
    /// Discovery tells of a death.
    Death(u32, u64),
    /// The agent speaks.
    Says(u32, u64, Word),
    /// All it says is told again.
    Snapshot,
    Lost,
}

fn event() -> impl Strategy<Value = Event> {
    let word = prop_oneof![
        Just(Word::Running),
        Just(Word::Doubtful),
        Just(Word::Ending),
        Just(Word::Dead(killed())),
    ];
    prop_oneof![
        (0_u32..2, 1_u64..5).prop_map(|(slot, life)| Event::Upsert(slot, life)),
        (0_u32..2, 1_u64..5).prop_map(|(slot, life)| Event::Death(slot, life)),
        (0_u32..2, 1_u64..5, word).prop_map(|(slot, life, word)| Event::Says(slot, life, word)),
        Just(Event::Snapshot),
        Just(Event::Lost),
    ]
}

proptest! {
    /// E13: whoever was said to end or to be dead by either is not picked, and whom nobody said anything of is.
    #[test]
    fn nobody_is_picked_who_was_said_to_be_over(events in prop::collection::vec(event(), 1..40)) {
        let mut endpoints = serving(&[]);
        let mut words: BTreeMap<WorkerId, Word> = BTreeMap::new();
        let mut dead: Vec<WorkerId> = Vec::new();
        let mut last: BTreeMap<u32, u64> = BTreeMap::new();
        for event in events {
            match event {
                Event::Upsert(slot, life) => {
                    let newest = last.entry(slot).or_default();
                    *newest = life.max(*newest);
                    endpoints.apply_change(Update { upserts: vec![endpoint(worker(slot, life), node("a"))], ..Update::default() });
                }
                Event::Death(slot, life) => {
                    dead.push(worker(slot, life));
                    let newest = last.entry(slot).or_default();
                    *newest = (life + 1).max(*newest);
                    let removal = Removal { worker: worker(slot, life), death: Some(killed()) };
                    endpoints.apply_change(Update { removals: vec![removal], ..Update::default() });
                }
                Event::Says(slot, life, word) => {
                    let id = worker(slot, life);
                    // As an agent says it: an end is not taken back.
                    let before = words.get(&id);
                    let over = matches!(before, Some(Word::Dead(_)))
                        || (matches!(before, Some(Word::Ending)) && !matches!(word, Word::Dead(_)));
                    if !over {
                        words.insert(id.clone(), word.clone());
                        say(&mut endpoints, id, word);
                    }
                }
                Event::Snapshot => {
                    let words = words.iter().map(|(id, word)| (id.clone(), word.clone()));
                    let fates = Fates { snapshot: true, words: words.collect(), gone: Vec::new() };
                    endpoints.on_fates(&node("a"), fates);
                }
                Event::Lost => endpoints.on_feed_lost(&node("a")),
            }
            for slot in 0..2 {
                let here = Target::Worker { slot, incarnation: Incarnation(0) };
                let life = last.get(&slot).copied().unwrap_or_default();
                match pick_at(&mut endpoints, &here, Tick::ZERO) {
                    Ok(picked) => {
                        let word = words.get(&picked);
                        prop_assert!(!matches!(word, Some(Word::Ending | Word::Dead(_))), "E13: {picked} {word:?}");
                        prop_assert!(!dead.contains(&picked), "E3: {picked}");
                        prop_assert_eq!(picked.incarnation, Incarnation(life), "E3");
                    }
                    Err(_) => {
                        let id = worker(slot, life);
                        let over = matches!(words.get(&id), Some(Word::Ending | Word::Dead(_)));
                        let served = life > 0 && endpoints.is_alive(&id);
                        prop_assert!(over || !served, "{id} is served and works");
                    }
                }
            }
        }
    }
}

#[test]
fn one_that_gives_no_sign_of_life_is_not_free_for_a_call_that_does_not_wait() {
    let mut endpoints = serving(&[worker(0, 5)]);
    let strict = |affinity| Target::Affinity {
        key: b"k".to_vec(),
        session: None,
        affinity,
    };
    let fail_fast = strict(Affinity::StrictFailFast);
    let at = Tick::ZERO;
    assert_eq!(pick_at(&mut endpoints, &fail_fast, at), Ok(worker(0, 5)));

    say(&mut endpoints, worker(0, 5), Word::Doubtful);

    let busy = Err(Refusal::NoWorker(Why::Busy));
    assert_eq!(pick_at(&mut endpoints, &fail_fast, at), busy);
    let queue = strict(Affinity::StrictQueue);
    assert_eq!(pick_at(&mut endpoints, &queue, at), Ok(worker(0, 5)));
}
