//! What single pools are promised, one scene each: order, spares, recycling, rates, other modes.

use std::time::Duration;

use prost::Message as _;
use tether_clock::Tick;
use tether_proto::{
    common::{Endpoint, WorkerPhase},
    worker::Event,
};
use tether_types::{DeathCause, Epoch, Orderer, WorkerId};

use super::{
    Action,
    owner::{POOLS, Wishes},
    world::{STEP, World},
};

const COUPLED: usize = 0;
const LASTING: usize = 1;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A world whose first owner has a session.
fn world(wishes: Wishes) -> World {
    let mut world = World::with(7, wishes);
    world.open(0, false);
    world
}

fn depending(dependent: usize, on: usize) -> Wishes {
    Wishes {
        depends_on: [(POOLS[dependent].0, POOLS[on].0)].into(),
        ..Wishes::default()
    }
}

impl World {
    /// Workers of a pool that run and were not asked to end.
    fn well(&self, pool: usize) -> usize {
        let of_pool = |id: &WorkerId| id.pool.as_str() == POOLS[pool].0;
        let well = self.workers().filter(|(_, worker)| worker.is_well());
        well.filter(|(id, _)| of_pool(id)).count()
    }

    /// Workers of a pool that live, those included that are ending.
    fn living(&self, pool: usize) -> usize {
        let living = self.workers().filter(|(_, worker)| worker.alive);
        living
            .filter(|(id, _)| id.pool.as_str() == POOLS[pool].0)
            .count()
    }

    fn ready(&self, pool: usize) -> u32 {
        self.ledger
            .get_pool(POOLS[pool].0)
            .map_or(0, |pool| pool.ready)
    }

    /// Slots of a pool to which gateways send calls, and those they only know.
    fn told(&self, pool: usize) -> (Vec<u32>, Vec<u32>) {
        let prefix = format!("serve/endpoints/{}/", POOLS[pool].0);
        let told = self
            .store
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix));
        let told = told.map(|(_, (value, _))| Endpoint::decode(&**value).unwrap());
        let (serving, draining): (Vec<_>, Vec<_>) = told.partition(|endpoint| !endpoint.draining);
        let slots = |endpoints: Vec<Endpoint>| {
            let slots = endpoints
                .iter()
                .map(|endpoint| endpoint.worker.as_ref().unwrap().slot);
            slots.collect()
        };
        (slots(serving), slots(draining))
    }

    fn texts(&self) -> Vec<String> {
        let events = self
            .store
            .range("arbiter/events/".to_owned()..)
            .take_while(|(key, _)| key.starts_with("arbiter/events/"));
        events
            .map(|(_, (value, _))| Event::decode(&**value).unwrap().text)
            .collect()
    }

    /// Ends the worker in a slot by itself, wherever it is.
    fn kill(&mut self, pool: usize, slot: u32) {
        let now = self.now;
        for node in &mut self.nodes {
            let nth = node
                .workers
                .iter()
                .filter(|(_, worker)| worker.alive)
                .position(|(id, _)| id.pool.as_str() == POOLS[pool].0 && id.slot == slot);
            if let Some(nth) = nth {
                node.kill_worker(nth, DeathCause::Exited(1), now);
            }
        }
    }

    /// Runs until something is so, with a deadline.
    pub(super) fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = self.now + secs(30);
        while !so(self) {
            assert!(self.now < deadline, "never: {what}");
            self.run(STEP);
        }
    }
}

#[test]
fn a_pool_waits_for_the_one_it_depends_on_and_says_so_and_outlives_its_end() {
    let mut world = world(Wishes {
        max_restarts: Some(1),
        ..depending(COUPLED, LASTING)
    });
    world.apply(LASTING, 1);
    world.apply(COUPLED, 1);
    let waiting = world.ledger.list_workers(POOLS[COUPLED].0, world.now);

    assert_eq!(waiting[0].phase(), WorkerPhase::Waiting);
    let told = "pool `coupled-0` waits for pool `lasting-0`";
    assert_eq!(
        world
            .texts()
            .iter()
            .filter(|text| text.contains(told))
            .count(),
        1
    );
    world.until("both are ready", |world| world.ready(COUPLED) == 1);
    for _ in 0..2 {
        world.kill(LASTING, 0);
        world.run(secs(1));
    }
    assert_eq!(world.ready(LASTING), 0, "it was given up");
    assert_eq!(world.well(COUPLED), 1, "and the other one runs on");

    let id = world.workers().map(|(id, _)| id.clone()).next().unwrap();
    world.ledger.stop_worker(&id, None);
    world.settle();
    world.run(secs(2));
    assert_eq!(world.living(COUPLED), 0, "but is not started again");

    // Not even for the size it has: that is how an operator has it tried again.
    world.act(&Action::Scale(LASTING, 1));
    world.until("both are back", |world| world.ready(COUPLED) == 1);
}

#[test]
fn pools_that_end_together_end_in_order_whatever_they_are_called() {
    for (dependent, on) in [(COUPLED, LASTING), (LASTING, COUPLED)] {
        let mut world = world(Wishes {
            modes: [(POOLS[LASTING].0.to_owned(), "coupled")].into(),
            ..depending(dependent, on)
        });
        world.apply(on, 2);
        world.apply(dependent, 2);
        world.until("all are ready", |world| world.ready(dependent) == 2);
        world.run(secs(1));

        world.goodbye(0);
        // The owner has said what is to become of them, and may go.
        let mut pools = world.ledger.pools.values();
        assert!(pools.all(|pool| !pool.dies_with_owner()));
        world.run(millis(100));
        world.act(&Action::KillOwner(0));
        while world.living(on) > 0 {
            assert!(
                world.well(on) == 2 || world.living(dependent) == 0,
                "{} ends before those that need it",
                POOLS[on].0
            );
            world.run(STEP);
        }

        world.run(millis(500));
        assert!(world.ledger.list_pools().is_empty());
        let ordered = DeathCause::Ordered(Orderer::Owner);
        assert_eq!(world.causes.len(), 4);
        assert!(world.causes.values().all(|cause| *cause == ordered));
    }
}

#[test]
fn a_pool_is_held_back_for_half_of_its_time_and_no_longer() {
    let mut world = world(Wishes {
        modes: [(POOLS[LASTING].0.to_owned(), "coupled")].into(),
        ..depending(COUPLED, LASTING)
    });
    world.apply(LASTING, 1);
    world.apply(COUPLED, 1);
    world.until("all are ready", |world| world.ready(COUPLED) == 1);
    // Nobody hears that the dependent is gone.
    for node in 0..3 {
        world.nodes[node].cut = true;
        world.lose_stream(node, true);
    }
    let told = |world: &World| {
        let place = world.ledger.pools[&POOLS[LASTING].0.parse().unwrap()]
            .places
            .values()
            .next();
        place.unwrap().live.as_ref().unwrap().stop().is_some()
    };

    world.goodbye(0);
    world.run(millis(960));
    assert!(!told(&world), "its timeout is 2 s");
    world.run(millis(80));
    assert!(told(&world));
}

#[test]
fn a_pool_that_could_only_wait_for_ever_is_refused_with_the_reason() {
    let mut world = world(depending(COUPLED, LASTING));
    world.open(1, false);
    let refusal = |world: &mut World, depends_on: &[(usize, usize)], pool: usize| {
        let names = depends_on
            .iter()
            .map(|(from, to)| (POOLS[*from].0, POOLS[*to].0));
        world.wishes.depends_on = names.collect();
        let spec = world.spec(pool, 1);
        let owner = world.owners[POOLS[pool].2].name.clone();
        let refused = world
            .ledger
            .apply_pool(spec, owner, Epoch(0), world.now)
            .unwrap_err();
        refused.to_string()
    };

    let unknown = refusal(&mut world, &[(COUPLED, LASTING)], COUPLED);
    assert!(
        unknown.contains("there is no pool `lasting-0`; apply that one first"),
        "{unknown}"
    );
    world.apply(LASTING, 1);
    assert!(world.apply(COUPLED, 1));

    let itself = refusal(&mut world, &[(LASTING, LASTING)], LASTING);
    assert!(itself.contains("names the pool itself"), "{itself}");
    let cycle = refusal(&mut world, &[(LASTING, COUPLED)], LASTING);
    assert!(
        cycle.contains("`lasting-0` -> `coupled-0` -> `lasting-0`"),
        "{cycle}"
    );
    let foreign = refusal(&mut world, &[(3, LASTING)], 3);
    assert!(foreign.contains("belongs to owner `beam-0`"), "{foreign}");
    world
        .ledger
        .delete_pool(POOLS[LASTING].0, world.now)
        .unwrap();
    let ending = refusal(&mut world, &[(COUPLED, LASTING)], COUPLED);
    assert!(ending.contains("`lasting-0` is ending"), "{ending}");
}

#[test]
fn a_spare_serves_in_the_commit_that_records_a_death_and_steps_back_afterwards() {
    let mut world = world(Wishes {
        spares: 1,
        ..Wishes::default()
    });
    world.apply(LASTING, 2);
    world.until("all are ready", |world| world.told(LASTING).1 == [2]);
    assert_eq!(world.told(LASTING).0, [0, 1]);
    let view = world.ledger.get_pool(POOLS[LASTING].0).unwrap();
    assert_eq!((view.ready, view.live), (2, 3));

    world.kill(LASTING, 0);
    world.until("the spare serves", |world| world.told(LASTING).0 == [1, 2]);
    let written = |key: &str| world.store[key].1;
    assert_eq!(
        written("serve/endpoints/lasting-0/2"),
        written("serve/deaths/lasting-0/0")
    );

    world.until("it is a spare again", |world| world.told(LASTING).1 == [2]);
    assert_eq!(world.told(LASTING).0, [0, 1]);
    world.act(&Action::Scale(LASTING, 0));
    world.until("no worker needs no spare", |world| {
        world.living(LASTING) == 0
    });
}

#[test]
fn workers_grow_old_one_after_the_other_and_it_is_no_failure() {
    for spares in [0, 1] {
        let mut world = world(Wishes {
            spares,
            max_lifetime_ms: 3_000,
            max_restarts: Some(0),
            ..Wishes::default()
        });
        world.apply(LASTING, 3);
        world.until("all are ready", |world| {
            world.ready(LASTING) == 3 && world.told(LASTING).1.len() == spares as usize
        });

        let end = world.now + secs(30);
        while world.now < end {
            world.run(STEP);
            let serving = world.told(LASTING).0.len();
            assert!(serving >= if spares == 0 { 2 } else { 3 }, "{serving}");
        }

        assert!(
            world
                .causes
                .values()
                .all(|cause| *cause == DeathCause::Recycled)
        );
        assert!(world.causes.len() >= 3 * 6, "{}", world.causes.len());
        assert!(
            world
                .texts()
                .iter()
                .any(|text| text.contains("`max_lifetime`"))
        );
    }
}

#[test]
fn a_worker_that_grew_too_large_is_replaced_once_it_had_time_to_settle() {
    let mut world = world(Wishes {
        max_memory_bytes: 1_000,
        ..Wishes::default()
    });
    world.apply(LASTING, 2);
    world.until("all are ready", |world| world.ready(LASTING) == 2);
    let ready = world.now;

    let node = world.nodes.iter_mut().find(|node| !node.workers.is_empty());
    let (large, worker) = node.unwrap().workers.iter_mut().next().unwrap();
    worker.memory_bytes = 1_000;
    let large = large.clone();
    world.until("it is replaced", |world| world.ready(LASTING) == 1);
    let settled = world.now.since(ready);
    world.until("another serves", |world| world.ready(LASTING) == 2);
    world.run(secs(20));

    assert!(settled >= millis(9_500), "{settled:?}");
    assert_eq!(world.causes, [(large, DeathCause::Recycled)].into());
}

#[test]
fn a_worker_is_replaced_once_gateways_have_counted_its_calls_between_them_and_none_twice() {
    let mut world = world(Wishes {
        max_calls: 10,
        ..Wishes::default()
    });
    world.apply(LASTING, 2);
    world.until("all are ready", |world| world.ready(LASTING) == 2);

    world.call(0, 0, 6);
    world.call(1, 0, 3);
    for told_again in [false, true, false] {
        world.restart_gateway(0, false);
        world.restart_gateway(1, told_again);
        world.run(secs(1));
    }
    world.restart_arbiter();
    world.run(secs(4));
    assert_eq!(world.ready(LASTING), 2);
    assert_eq!(
        world.causes.len(),
        0,
        "nine calls, whoever tells them again"
    );

    // The three were forgotten with the life of the gateway that counted them, and the arbiter's.
    world.call(1, 0, 4);
    world.until("it is replaced", |world| world.ready(LASTING) == 1);
    world.until("another serves", |world| world.ready(LASTING) == 2);
    world.run(secs(20));

    let causes: Vec<_> = world.causes.values().collect();
    assert_eq!(causes, [&DeathCause::Recycled], "and its count starts anew");
    assert!(
        world
            .texts()
            .iter()
            .any(|text| text.contains("`max_calls`"))
    );
}

#[test]
fn calls_are_counted_from_when_a_running_pool_is_applied_with_a_limit() {
    let mut world = world(Wishes::default());
    world.apply(LASTING, 2);
    world.until("all are ready", |world| world.ready(LASTING) == 2);
    world.call(0, 0, 100);
    world.run(secs(1));
    assert!(world.served.is_empty(), "nobody is asked to count");

    world.wishes.max_calls = 10;
    world.apply(LASTING, 2);
    world.call(0, 0, 10);

    world.until("it is replaced", |world| world.ready(LASTING) == 1);
    assert_eq!(world.starts, 2, "and no worker was started for the change");
}

#[test]
fn a_rate_spreads_the_starts_of_a_pool() {
    let mut world = world(Wishes {
        starts_per_second: 2,
        ..Wishes::default()
    });
    world.apply(LASTING, 5);

    for started in [2, 4, 5] {
        world.run(millis(980));
        assert_eq!(world.starts, started);
    }
}

#[test]
fn a_pool_that_is_applied_anew_while_it_ends_begins_with_what_is_left_of_its_rate() {
    let mut world = world(Wishes {
        starts_per_second: 2,
        ..Wishes::default()
    });
    world.apply(LASTING, 1);
    world.act(&Action::Delete(LASTING));

    world.apply(LASTING, 2);

    // A5 is checked with every order.
    world.until("both are ready", |world| world.ready(LASTING) == 2);
    assert_eq!(world.starts, 3);
}

#[test]
fn a_running_pool_takes_another_mode_at_once_and_no_worker_is_started_for_it() {
    for (from, to) in [("coupled", "independent"), ("independent", "coupled")] {
        let mut world = world(Wishes {
            modes: [(POOLS[COUPLED].0.to_owned(), from)].into(),
            ..Wishes::default()
        });
        // Nodes that see the owner; where one does not, see the next test.
        world.nodes[2].cut = true;
        world.lose_stream(2, true);
        world.run(secs(4));
        world.apply(COUPLED, 2);
        world.until("both are ready", |world| world.ready(COUPLED) == 2);
        world.run(secs(1));

        // By an operator, whose word is no beat of the owner that the nodes would be told of anyway.
        let name = POOLS[COUPLED].0.to_owned();
        world.switched.insert(name.clone(), world.now);
        world.wishes.modes.insert(name, to);
        let (spec, owner) = (world.spec(COUPLED, 2), world.owners[0].name.clone());
        let applied = world.ledger.apply_pool(spec, owner, Epoch(0), world.now);
        applied.unwrap();
        world.settle();
        // As long as a message takes, and less than the time to the next beat.
        world.run(millis(80));
        world.act(&Action::KillOwner(0));
        world.run(millis(40));

        let lives = if to == "independent" { 2 } else { 0 };
        assert_eq!(world.living(COUPLED), lives, "{from} to {to}");
        assert_eq!(world.starts, 2, "and no other was started");
    }
}

#[test]
fn a_pool_is_not_coupled_where_its_owner_cannot_be_seen() {
    let mut world = world(Wishes::default());
    world.apply(LASTING, 3);
    world.until("one on each node", |world| world.ready(LASTING) == 3);

    assert!(!world.switch(LASTING, "coupled"));

    let mut spec = world.spec(LASTING, 3);
    spec.mode = "coupled".to_owned();
    let owner = world.owners[0].name.clone();
    let refused = world.ledger.apply_pool(spec, owner, Epoch(0), world.now);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("workers on node `n2`"), "{refused}");
    let view = world.ledger.get_pool(POOLS[LASTING].0).unwrap();
    assert_eq!(view.spec.unwrap().mode, "independent", "nothing is changed");
}

#[test]
fn a_crash_loop_ends_when_the_pool_is_applied_again_with_a_new_allowance() {
    let mut world = world(Wishes {
        max_restarts: Some(2),
        ..Wishes::default()
    });
    world.apply(LASTING, 1);
    let given_up = |world: &World| {
        let worker = &world.ledger.list_workers(POOLS[LASTING].0, world.now)[0];
        worker.phase() == WorkerPhase::CrashLoop
    };

    for _ in 0..2 {
        let before = world.starts;
        world.apply(LASTING, 1);
        world.until("it is ready", |world| world.ready(LASTING) == 1);
        while !given_up(&world) {
            world.kill(LASTING, 0);
            world.run(STEP);
        }
        assert_eq!(world.starts - before, 3, "one, and two restarts");
        world.run(secs(90));
        assert!(given_up(&world), "nothing is tried without a word");
    }
}

#[test]
fn what_a_node_guarantees_is_told_when_it_joins() {
    let world = World::new(1);

    let told = world.texts();
    assert!(
        told.contains(&"node `n0` joined, with 0 workers and guarantee G1".to_owned()),
        "{told:?}"
    );
    assert!(world.now > Tick::ZERO);
}
