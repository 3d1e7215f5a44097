//! Another arbiter leads while the one before still lives: it was stopped in the middle of its work, and
//! goes on later, without having seen any time pass.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use prost::Message as _;
use tether_clock::Tick;
use tether_store::{Entry, Listing};
use tether_types::{DeathCause, NodeName};

use super::world::{Packet, World, empty_ledger};
use crate::{effects::Ack, ledger::Ledger, record::PoolRecord};

/// A protection that is left out, to see that it is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A new leader takes leases it knows nothing of for over.
    NoWait,
    /// What a deposed leader writes is written.
    NoGuard,
}

/// The leader before this one, as it was when it was stopped.
#[derive(Debug)]
pub(super) struct Deposed {
    ledger: Ledger,
    links: BTreeMap<NodeName, u64>,
    goes_on_at: Tick,
}

impl World {
    /// The leader is stopped and another one takes over, before any node knows; the first goes on after
    /// `pause`.
    pub(super) fn change_leader(&mut self, pause: Duration) {
        let links = std::mem::take(&mut self.links);
        let ledger = std::mem::replace(&mut self.ledger, empty_ledger());
        self.deposed = Some(Deposed {
            ledger,
            links,
            goes_on_at: self.now + pause,
        });
        self.take_up();
    }

    /// An arbiter takes up what was written.
    pub(super) fn take_up(&mut self) {
        let entry = |(key, (value, revision)): (&String, &(bytes::Bytes, u64))| Entry {
            key: key.clone(),
            value: value.clone(),
            mod_revision: *revision,
        };
        let listing = Listing {
            entries: self.store.iter().map(entry).collect(),
            revision: self.revision,
        };
        let from = match self.flaw {
            // The leases of nodes are over by then, those of owners are not.
            Some(Flaw::NoWait) => self.now.saturating_sub(Duration::from_millis(2_600)),
            Some(Flaw::NoGuard) | None => self.now,
        };
        self.ledger = empty_ledger();
        self.ledger.restore(&listing, from).unwrap();
        self.restarted = self.now;
        for gateway in 0..self.gateways.len() {
            self.restart_gateway(gateway, false);
        }
        // The other one has seen no starts.
        self.ordered.clear();
        self.settle();
    }

    /// A deposed leader that goes on does what it believes to be due. It answers no beats, as its time
    /// is over by any clock that shows the pause; of what it decides nothing gets past the guard.
    pub(super) fn go_on(&mut self) {
        let due = |deposed: &mut Deposed| self.now >= deposed.goes_on_at;
        let Some(mut deposed) = self.deposed.take_if(due) else {
            return;
        };
        deposed.ledger.check(self.now);
        let effects = deposed.ledger.take_effects();
        if self.flaw != Some(Flaw::NoGuard) {
            return;
        }
        self.revision += 1;
        for (key, value) in effects.writes {
            match value {
                Some(value) => drop(self.store.insert(key, (value, self.revision))),
                None => drop(self.store.remove(&key)),
            }
        }
        for (name, orders) in effects.orders {
            let node = self.nodes.iter().position(|node| node.name == name);
            if let (Some(node), Some(&stream)) = (node, deposed.links.get(&name))
                && let Some(message) = deposed.ledger.message_to(&name, Ack::default(), orders)
            {
                self.send(node, stream, Packet::Down(message));
            }
        }
    }
}

/// Leaders change twice: the first is stopped with a place about to be filled again, and goes on when it
/// believes that every node is lost; the second is followed while a node is cut off, and lives.
fn change_twice(seed: u64, flaw: Option<Flaw>) {
    let mut world = World::new(seed);
    world.flaw = flaw;
    for owner in 0..2 {
        world.open(owner, false);
    }
    for (pool, size) in [(1, 2), (4, 3)] {
        world.apply(pool, size);
    }
    world.run(Duration::from_millis(1_000 + seed * 20));
    world.nodes[0].kill_worker(0, DeathCause::Exited(1), world.now);
    world.run(Duration::from_millis(100));
    world.change_leader(Duration::from_millis(2_600 + seed * 10));
    world.run(Duration::from_secs(4));

    world.nodes[0].cut = true;
    world.lose_stream(0, false);
    world.change_leader(Duration::from_millis(seed * 10));
    world.run(Duration::from_secs(1));
    world.nodes[0].cut = false;
    world.run(Duration::from_secs(4));
    let ready = |pool| world.ledger.get_pool(pool).map_or(0, |pool| pool.ready);
    let ready = (ready("lasting-0"), ready("spread-1"));
    assert_eq!(ready, (2, 3), "P3: they outlive every change");
    assert_eq!(world.starts, 6, "P3: one died before, and nobody since");
}

/// What is said of such changes with this flaw.
fn found_out(flaw: Flaw) -> Option<String> {
    (1..20).find_map(|seed| {
        let played = catch_unwind(AssertUnwindSafe(|| change_twice(seed, Some(flaw))));
        let why = played.err()?;
        why.downcast_ref::<String>().cloned()
    })
}

#[test]
fn a_change_of_leader_with_the_old_one_alive_costs_no_worker() {
    for seed in 1..20 {
        change_twice(seed, None);
    }
}

/// Renewals at once, places that were never owned at once, all others once they can be nobody's.
#[test]
fn a_new_leader_fills_at_once_what_was_never_owned_and_waits_with_all_else() {
    let mut world = World::new(1);
    world.open(1, false);
    world.apply(4, 3);
    world.run(Duration::from_secs(1));
    world.nodes[0].cut = true;
    world.lose_stream(0, false);
    world.nodes[0].kill_worker(0, DeathCause::Exited(1), world.now);
    world.run(Duration::from_millis(100));
    world.change_leader(Duration::from_secs(1));
    let changed = world.now;
    world.run(Duration::from_millis(700));
    let workers = |world: &World, pool: &str| {
        let alive = world.workers().filter(|(_, worker)| worker.alive);
        alive.filter(|(id, _)| id.pool.as_str() == pool).count()
    };
    assert_eq!(workers(&world, "spread-1"), 2);

    world.open(0, false);
    world.apply(1, 2);
    world.run(Duration::from_millis(500));

    assert_eq!(workers(&world, "lasting-0"), 2, "nobody can have them");
    assert!(
        world.nodes[1].connected < Tick::NEVER,
        "and who was heard is renewed"
    );
    while workers(&world, "spread-1") < 3 {
        assert!(
            world.now.since(changed) < Duration::from_secs(4),
            "it is filled"
        );
        world.run(Duration::from_millis(20));
    }
    let term = tether_lease::Terms::usual(Duration::from_secs(2)).unwrap();
    assert!(
        world.now.since(changed) > term.ttl() * 201 / 200,
        "after a padded term"
    );
}

/// A pool of before that could not be taken up is nobody's name, and may have workers all the same.
#[test]
fn a_pool_in_the_name_of_one_that_could_not_be_taken_up_is_no_new_one() {
    let mut world = World::new(1);
    world.open(1, false);
    world.apply(4, 1);
    world.run(Duration::from_secs(1));
    let has_it = |node: &super::node::Node| !node.workers.is_empty();
    let node = world.nodes.iter().position(has_it).unwrap();
    world.nodes[node].cut = true;
    world.lose_stream(node, false);
    let record = world.store.get_mut("arbiter/pools/spread-1").unwrap();
    let mut without_template = PoolRecord::decode(&*record.0).unwrap();
    without_template.spec.as_mut().unwrap().template = None;
    record.0 = without_template.encode_to_vec().into();
    world.change_leader(Duration::from_secs(1));
    world.run(Duration::from_millis(500));

    assert!(world.apply(4, 1));
    world.run(Duration::from_millis(500));

    assert_eq!(world.starts, 1, "it waits for the node that was not heard");
}

#[test]
fn a_new_leader_that_does_not_wait_is_found_out() {
    let why = found_out(Flaw::NoWait).expect("it is");
    assert!(why.starts_with("A1"), "{why}");
}

#[test]
fn a_deposed_leader_whose_writes_are_not_guarded_is_found_out() {
    let why = found_out(Flaw::NoGuard).expect("it is");
    assert!(why.starts_with("A1"), "{why}");
}
