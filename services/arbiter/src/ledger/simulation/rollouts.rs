//! Workers that are replaced and nodes that are emptied, step by step.

use std::time::{Duration, Instant};

use prost::Message as _;
use tether_proto::{
    common::WorkerRef,
    job::{Job, JobState},
    pool,
    worker::{Event, NodeState},
};
use tether_types::{PoolName, Slot, WorkerId};

use super::jobs::plain;
use super::{
    Action,
    owner::{POOLS, Wishes},
    world::{STEP, World},
};
use crate::effects::keys;

/// The pool whose workers each take a GPU, where there are any; and one that goes anywhere.
const GPUS: usize = 3;
const SPREAD: usize = 4;

const OPEN: NodeState = NodeState::Open;
const DRAINED: NodeState = NodeState::Drained;

/// With a pool of so many workers, which are ready.
fn world(pool: usize, size: u32, wishes: Wishes) -> World {
    let mut world = World::with(7, wishes);
    world.open(1, false);
    assert!(world.apply(pool, size));
    world.run(Duration::from_secs(2));
    world
}

fn usual() -> Wishes {
    Wishes {
        budget: (1, 0),
        ..Wishes::default()
    }
}

impl World {
    fn view(&self, pool: usize) -> pool::Pool {
        self.ledger.get_pool(POOLS[pool].0).unwrap()
    }

    /// Where the workers of a pool are.
    fn nodes_of(&self, pool: usize) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        let of_pool = nodes.flat_map(|(index, node)| {
            let workers = node.workers.iter().filter(|(_, worker)| worker.alive);
            let of_pool = workers.filter(|(id, _)| id.pool.as_str() == POOLS[pool].0);
            of_pool.map(move |_| index)
        });
        of_pool.collect()
    }

    fn held_up_by(&self, node: usize) -> Vec<String> {
        let nodes = self.ledger.list_nodes(self.now);
        let name = self.nodes[node].name.as_str();
        let found = nodes.into_iter().find(|node| node.name == name);
        found.unwrap().held_up_by
    }

    /// How many events say so.
    fn told_of(&self, what: &str) -> usize {
        let events = self.store.iter();
        let events = events.filter(|(key, _)| key.starts_with(keys::EVENTS));
        let events = events.map(|(_, (value, _))| Event::decode(&**value).unwrap());
        events.filter(|event| event.text.contains(what)).count()
    }

    fn say(&mut self, node: usize, state: NodeState) {
        self.act(&Action::SetNode(node, state));
    }

    /// Until no worker of a pool is to be replaced and none beyond its size is there for a while; the fewest that
    /// were ready meanwhile.
    fn roll_out(&mut self, pool: usize) -> u32 {
        let deadline = self.now + Duration::from_secs(60);
        let size = self.view(pool).spec.unwrap().size;
        let (mut fewest, mut done) = (u32::MAX, 0);
        while done < 50 {
            let view = self.view(pool);
            fewest = fewest.min(view.ready);
            let is_done = (view.stale, view.live, view.ready) == (0, size, size);
            done = if is_done { done + 1 } else { 0 };
            assert!(self.now < deadline, "never done: {view:?}");
            self.run(STEP);
        }
        fewest
    }
}

#[test]
fn a_changed_template_replaces_all_and_costs_the_pool_no_worker_also_over_a_restart() {
    for restart_after in [0, 100, 300, 700, 1_200, 2_000] {
        let mut world = world(SPREAD, 3, usual());
        world.act(&Action::ChangeTemplate(SPREAD));
        assert_eq!(world.view(SPREAD).stale, 3);
        if restart_after > 0 {
            world.run(Duration::from_millis(restart_after));
            world.restart_arbiter();
            // What serves is known again once all nodes are heard.
            world.run(Duration::from_millis(600));
        }
        assert_eq!(world.roll_out(SPREAD), 3, "after {restart_after} ms");
        let alive = world.workers().filter(|(_, worker)| worker.alive);
        let old: Vec<_> = alive.filter(|(_, worker)| worker.version != "1").collect();
        assert!(old.is_empty(), "after {restart_after} ms: {old:?}");
        assert_eq!(world.starts, 7, "three, one that stood in, and three");
    }
}

#[test]
fn a_job_keeps_its_worker_on_a_node_that_is_drained_until_it_is_over() {
    let mut world = world(SPREAD, 1, usual());
    let node = world.nodes_of(SPREAD)[0];
    world.act(&Action::StartJob(SPREAD, 0));

    world.say(node, DRAINED);
    world.run(Duration::from_secs(5));
    assert_eq!(world.nodes_of(SPREAD), [node]);
    let told = world.held_up_by(node);
    assert!(told[0].contains("does a job"), "{told:?}");

    world.act(&Action::ReportJob(SPREAD, 0, true));
    world.roll_out(SPREAD);
    assert!(world.nodes_of(SPREAD).iter().all(|&at| at != node));
    assert!(world.held_up_by(node).is_empty());
}

#[test]
fn a_full_cluster_replaces_nothing_unless_one_less_is_allowed() {
    // All of n0 and n1.
    let wishes = Wishes {
        gpus: true,
        ..usual()
    };
    let mut world = world(GPUS, 5, wishes);
    assert_eq!(world.view(GPUS).ready, 5);

    world.act(&Action::ChangeTemplate(GPUS));
    world.run(Duration::from_secs(5));
    let view = world.view(GPUS);
    assert_eq!((view.stale, view.ready, view.live), (5, 5, 5));
    let why = view.rollout_waits_for;
    assert!(
        why.contains("1 of `gpu` are asked and at most 0 are free"),
        "{why}"
    );
    assert!(why.contains("`rollout.max_unavailable`"), "{why}");

    world.wishes.budget = (1, 1);
    world.apply(GPUS, 5);
    assert_eq!(world.roll_out(GPUS), 4);
}

#[test]
fn what_has_no_node_says_why_and_starts_when_there_is_one() {
    let wishes = Wishes {
        gpus: true,
        ..usual()
    };
    let mut world = world(GPUS, 6, wishes);
    let view = world.view(GPUS);
    assert_eq!(view.ready, 5);
    let why = "of 3 nodes 3 have no room: 1 of `gpu` are asked and at most 0 are free";
    assert_eq!(view.waits_for, why);
    let workers = world.ledger.list_workers(POOLS[GPUS].0, world.now);
    assert_eq!(workers[5].status, why);
    assert_eq!(world.told_of("waits for a node"), 1);

    // Another reason is told to whoever asks, and is no news.
    world.say(2, NodeState::Cordoned);
    let why = world.view(GPUS).waits_for;
    assert!(why.starts_with("of 3 nodes 1 are cordoned"), "{why}");
    world.say(2, OPEN);
    assert_eq!(world.told_of("waits for a node"), 1);

    world.nodes[2].gpus = 1;
    world.lose_stream(2, true);
    world.run(Duration::from_secs(2));
    let view = world.view(GPUS);
    assert_eq!((view.ready, view.waits_for.as_str()), (6, ""));
    assert!(world.apply(GPUS, 7));
    assert_eq!(world.told_of("waits for a node"), 2);
}

#[test]
fn nobody_is_sent_away_who_has_nowhere_to_go_and_what_was_said_of_a_node_outlasts_it() {
    let mut world = world(SPREAD, 3, usual());
    for node in 0..3 {
        world.say(node, DRAINED);
    }
    world.run(Duration::from_secs(5));
    assert_eq!(world.view(SPREAD).ready, 3);
    let node = *world.nodes_of(SPREAD).first().unwrap();
    let told = world.held_up_by(node);
    assert!(told[0].contains("3 are cordoned or drained"), "{told:?}");

    world.act(&Action::Reboot(2));
    world.lose_stream(2, true);
    world.restart_arbiter();
    world.run(Duration::from_secs(10));
    let states = world.ledger.list_nodes(world.now);
    assert_eq!(states.len(), 3);
    assert!(states.iter().all(|node| node.state() == DRAINED));

    world.nodes[2].start_agent();
    world.say(2, OPEN);
    world.roll_out(SPREAD);
    assert_eq!(world.nodes_of(SPREAD), [2, 2, 2]);
    let told = world
        .ledger
        .set_node_state(&"n9".parse().unwrap(), DRAINED, world.now);
    assert!(
        told.unwrap_err()
            .to_string()
            .contains("no node is called `n9`")
    );
}

fn job(world: &World) -> Job {
    world.ledger.get_job(POOLS[SPREAD].0, "job-0").unwrap()
}

/// With a changed template, and a job that the worker beyond the size of the pool does.
fn with_a_job_on_a_stand_in() -> (World, Slot) {
    let mut world = world(SPREAD, 2, usual());
    world.act(&Action::ChangeTemplate(SPREAD));
    let stand_in = |world: &World| {
        let pool = &world.ledger.pools[&POOLS[SPREAD].0.parse().unwrap()];
        pool.rollout
            .places()
            .find(|slot| pool.places.get(*slot).is_some_and(|it| it.serves))
    };
    world.until("one that stands in serves", |world| {
        stand_in(world).is_some()
    });
    let slot = stand_in(&world).unwrap();
    world.act(&Action::StartJob(SPREAD, 0));
    assert_eq!(job(&world).worker.unwrap().slot, slot);
    (world, slot)
}

#[test]
fn a_worker_that_stands_in_is_kept_by_its_job_and_goes_when_that_is_over() {
    let (mut world, slot) = with_a_job_on_a_stand_in();
    world.run(Duration::from_secs(8));
    let view = world.view(SPREAD);
    assert_eq!(job(&world).state(), JobState::Running, "{view:?}");
    assert_eq!((view.stale, view.ready, view.live), (0, 3, 3));
    let why = format!("worker spread-1/{slot} does a job, and stays until that is over");
    assert_eq!(view.rollout_waits_for, why);

    world.act(&Action::ReportJob(SPREAD, 0, true));
    assert_eq!(world.roll_out(SPREAD), 2);
    assert_eq!(job(&world).state(), JobState::Done);
}

#[test]
fn a_worker_that_stands_in_on_a_lost_node_is_not_told_to_stop_while_it_may_do_its_job() {
    let (mut world, slot) = with_a_job_on_a_stand_in();
    // Long enough for the loss of a node, and for those within the size.
    world.wishes.job_ttl_ms = 30_000;
    world.apply(SPREAD, 2);
    world.run(Duration::from_secs(1));
    let of_job = job(&world).worker.unwrap();
    let node = world.nodes.iter().position(|node| {
        let at = |id: &WorkerId| (id.slot, id.incarnation.0) == (slot, of_job.incarnation);
        node.workers.keys().any(at)
    });
    world.act(&Action::Cut(node.unwrap()));
    world.run(Duration::from_secs(10));
    assert_eq!(job(&world).state(), JobState::Orphaned);

    world.act(&Action::Heal(node.unwrap()));
    world.run(Duration::from_secs(5));
    assert_eq!(job(&world).state(), JobState::Running);
    world.act(&Action::ReportJob(SPREAD, 0, true));
    world.roll_out(SPREAD);
    assert_eq!(job(&world).state(), JobState::Done);
}

/// An agent that is started anew finds all of its workers, and so does an arbiter that is started with it: they
/// serve meanwhile, and how few of them may be replaced at once is as before (A11, looked at at every step).
#[test]
fn workers_that_are_found_serving_are_replaced_no_faster_than_others() {
    for (drained, with_arbiter, after) in [
        (false, false, 100),
        (false, true, 100),
        (true, false, 100),
        (true, true, 100),
        (false, false, 700),
        (false, true, 700),
    ] {
        let mut world = World::with(7, usual());
        world.open(1, false);
        for node in [1, 2] {
            world.say(node, NodeState::Cordoned);
        }
        assert!(world.apply(SPREAD, 5));
        world.run(Duration::from_secs(2));
        assert_eq!(world.nodes_of(SPREAD), [0; 5]);
        for node in [1, 2] {
            world.say(node, OPEN);
        }
        match drained {
            true => world.say(0, DRAINED),
            false => world.act(&Action::ChangeTemplate(SPREAD)),
        }
        world.run(Duration::from_millis(after));

        world.act(&Action::KillAgent(0));
        if with_arbiter {
            world.restart_arbiter();
            // The last one to be heard is the one with the workers.
            world.run(Duration::from_millis(500));
        } else {
            world.lose_stream(0, true);
        }
        world.act(&Action::StartAgent(0));
        let starts = world.starts;
        world.until("all are heard", |world| world.view(SPREAD).ready >= 5);
        world.run(Duration::from_millis(100));
        // One that stood in, and one that it stood in for.
        let begun = world.starts - starts;
        assert!(
            begun <= 2,
            "{begun} at once: {drained} {with_arbiter} {after}"
        );
        assert_eq!(
            world.roll_out(SPREAD),
            5,
            "{drained} {with_arbiter} {after}"
        );
    }
}

/// A pool whose workers take all the GPUs of one node, and another node with so many.
fn with_gpus(size: u32, free: u32, wishes: Wishes) -> World {
    let mut world = World::with(
        7,
        Wishes {
            gpus: true,
            ..wishes
        },
    );
    world.nodes[0].gpus = size;
    world.nodes[1].gpus = 0;
    for node in [0, 1] {
        world.lose_stream(node, true);
    }
    world.run(Duration::from_secs(1));
    world.open(1, false);
    assert!(world.apply(GPUS, size));
    world.run(Duration::from_secs(2));
    world.nodes[1].gpus = free;
    world.lose_stream(1, true);
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes_of(GPUS), vec![0; size as usize]);
    world
}

#[test]
fn a_drain_ends_where_what_stands_in_has_the_last_room() {
    let mut world = with_gpus(1, 1, usual());
    world.say(0, DRAINED);
    world.run(Duration::from_secs(20));

    assert_eq!((world.nodes_of(GPUS), world.starts), (vec![1], 2));
    assert_eq!(world.view(GPUS).ready, 1);
    assert!(world.held_up_by(0).is_empty());
    // It steps back once there is room within the size.
    world.say(0, OPEN);
    assert_eq!(world.roll_out(GPUS), 1);
    assert_eq!((world.nodes_of(GPUS), world.starts), (vec![0], 3));
}

#[test]
fn as_many_leave_a_drained_node_as_others_have_room_for() {
    let wishes = || Wishes {
        budget: (2, 1),
        ..Wishes::default()
    };
    for (free, budget) in [(1, usual()), (1, wishes()), (2, wishes())] {
        let mut world = with_gpus(3, free, budget);
        world.say(0, DRAINED);
        world.run(Duration::from_secs(20));

        let there = free as usize;
        let mut nodes = vec![0; 3 - there];
        nodes.resize(3, 1);
        assert_eq!(world.nodes_of(GPUS), nodes);
        let view = world.view(GPUS);
        assert_eq!(view.ready, 3, "nobody goes who has nowhere to go: {view:?}");
        assert!(world.starts <= 3 + 2 * u64::from(free), "{}", world.starts);
        let told = world.held_up_by(0);
        assert!(told[0].contains("nowhere else to go"), "{told:?}");
    }
}

/// All jobs of a pool are looked at a few times for a step, not once for each worker that is to be replaced.
#[test]
fn a_step_takes_no_longer_for_each_worker_with_a_job() {
    let mut world = world(SPREAD, 200, usual());
    let name: PoolName = POOLS[SPREAD].0.parse().unwrap();
    world.act(&Action::ChangeTemplate(SPREAD));
    let pool = &world.ledger.pools[&name];
    let workers = pool.places.iter().filter_map(|(slot, place)| {
        let id = WorkerId {
            pool: name.clone(),
            slot,
            incarnation: place.live.as_ref()?.incarnation,
        };
        Some(WorkerRef::from(&id))
    });
    let workers: Vec<_> = workers.collect();
    let jobs = (0..5_000_usize).map(|nth| {
        let mut job = Job {
            worker: workers.get(nth / 25).cloned(),
            ..Job::default()
        };
        job.set_state(JobState::Running);
        (format!("{nth:04}"), job)
    });
    let jobs = jobs.collect();
    world.ledger.jobs.all.insert(name.clone(), jobs);

    let best = |what: &mut dyn FnMut()| {
        let once = |_| {
            let begun = Instant::now();
            what();
            begun.elapsed()
        };
        (0..5).map(once).min().unwrap()
    };
    let look = best(&mut || assert_eq!(world.ledger.jobs.busy(&name).len(), 200));
    let now = world.now;
    let step = best(&mut || {
        world.ledger.may_be_stale(&name);
        world.ledger.roll(&name, now);
    });
    let mut another = 5_000..;
    let start = best(&mut || {
        let key = another.next().unwrap().to_string();
        assert!(world.ledger.start_job(plain(name.as_str(), &key)).is_ok());
    });
    assert!(step < look * 8, "{step:?} for a step, {look:?} for a look");
    assert!(
        start < look * 8,
        "{start:?} to start a job, {look:?} for a look"
    );
}
