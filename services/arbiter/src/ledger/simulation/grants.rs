//! What is granted in a message that its holder may never hear, one scene each: nothing comes of it but time that is
//! waited for, and whoever accepts late is refused (`lease` L6). That of a node is in `ledger/nodes.rs`.

use std::time::Duration;

use tether_clock::Tick;
use tether_types::{DeathCause, Epoch, Incarnation, OwnerName, Reason};

use super::jobs::plain;
use super::{
    owner::{POOLS, Wishes},
    world::{World, empty_ledger},
};

const SPREAD: usize = 4;

const GRACE: Duration = Duration::from_secs(3);

const JOB_TTL: Duration = Duration::from_secs(20);

fn world() -> World {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap();
    let wishes = Wishes {
        grace_ms: millis(GRACE),
        job_ttl_ms: millis(JOB_TTL),
        ..Wishes::default()
    };
    let mut world = World::with(11, wishes);
    world.open(1, false);
    world
}

#[test]
fn a_session_whose_opening_was_not_heard_of_keeps_nobody_waiting_and_is_over_when_it_is_accepted_late()
 {
    let mut ledger = empty_ledger();
    let owner: OwnerName = "beam@a".parse().unwrap();
    let terms = ledger.terms.session;
    let start = Tick::ZERO + Duration::from_secs(1);
    let open = |ledger: &mut crate::ledger::Ledger, epoch, now| {
        ledger.open_session(&owner, Epoch(epoch), None, terms, now);
    };
    open(&mut ledger, 5, start);
    open(&mut ledger, 6, start + Duration::from_millis(1));

    let late = ledger.beat_session(&owner, Epoch(5), 1, 0, start + Duration::from_millis(2));
    assert_eq!(late.unwrap_err().reason(), Reason::LeaseFenced);
    let heard = ledger.beat_session(&owner, Epoch(6), 1, 0, start + Duration::from_millis(2));
    assert!(heard.unwrap().ttl_ms > 0);

    // Where nobody asks again it ends as any other that is silent.
    ledger.check(start + terms.ttl() * 2);
    assert_eq!(ledger.list_sessions(start + terms.ttl() * 2), []);
}

#[test]
fn an_order_to_start_that_was_not_heard_is_found_out_with_the_next_hello_and_given_under_another_number()
 {
    let mut world = world();
    world.run(Duration::from_secs(1));
    assert!(world.apply(SPREAD, 1));
    let ordered = Incarnation(world.ledger.highest);

    // It is on its way, and so it is nowhere.
    (0..3).for_each(|node| world.lose_stream(node, true));
    world.run(Duration::from_secs(3));

    let lives: Vec<_> = world.workers().map(|(id, _)| id.incarnation).collect();
    assert_eq!((lives.len(), world.starts), (1, 1));
    assert!(lives[0] > ordered, "{lives:?}");
    let cause = |(id, cause): (&tether_types::WorkerId, &DeathCause)| {
        (id.incarnation == ordered).then_some(*cause)
    };
    assert_eq!(
        world.causes.iter().find_map(cause),
        Some(DeathCause::Unknown)
    );
}

#[test]
fn a_job_of_which_its_node_did_not_hear_ends_with_the_grace_and_is_waited_for_as_one_that_was_heard_of()
 {
    let mut world = world();
    assert!(world.apply(SPREAD, 1));
    world.run(Duration::from_secs(1));
    let (id, _) = world.workers().next().unwrap();
    let id = id.clone();
    let node = world
        .nodes
        .iter()
        .position(|node| node.workers.contains_key(&id));
    let node = node.unwrap();

    world.nodes[node].cut = true;
    world.lose_stream(node, true);
    let (job, _) = world
        .ledger
        .start_job(plain(POOLS[SPREAD].0, "train"))
        .unwrap();
    world.settle();
    assert_eq!(job.worker.unwrap().incarnation, id.incarnation.0);
    let cut = world.now;

    world.run(GRACE + Duration::from_secs(3));
    let lives = |world: &World| world.workers().any(|(_, worker)| worker.alive);
    assert!(!lives(&world), "its agent was told of no job");
    assert_eq!(
        world.starts, 1,
        "but it may have been, as far as the arbiter knows"
    );
    world.run(JOB_TTL + Duration::from_secs(2));
    assert!(lives(&world) && world.starts == 2);
    assert!(world.now.since(cut) > JOB_TTL);
}
