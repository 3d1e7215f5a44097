//! What must hold at every step, and what must hold when the dust has settled.

use std::{collections::BTreeMap, time::Duration};

use prost::Message as _;
use tether_proto::{
    common::{Endpoint, WorkerRef},
    node::{self, order::Order},
};
use tether_store::keys::ServeKey;
use tether_types::{DeathCause, NodeName, WorkerId};

use super::{
    node::Worker,
    owner::POOLS,
    world::{STEP, World},
};

/// Beats on their way, and the quarter of a timeout between two of them.
const LAG: Duration = Duration::from_millis(800);

/// A message to a node, and the moments until it is acted on.
const ON_ITS_WAY: Duration = Duration::from_millis(120);

/// What a connected node may wait for word: its lease, and a reconnection.
const LEASE: Duration = Duration::from_millis(2_600);

fn pool_of(id: &WorkerId) -> (&'static str, usize, Duration) {
    let (_, mode, owner, timeout, _) = POOLS
        .iter()
        .find(|pool| pool.0 == id.pool.as_str())
        .unwrap();
    (*mode, *owner, Duration::from_millis(*timeout))
}

impl World {
    pub(super) fn workers(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.nodes.iter().flat_map(|node| &node.workers)
    }

    fn alive(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.workers().filter(|(_, worker)| worker.alive)
    }

    pub(super) fn check(&self) {
        let mut slots = BTreeMap::new();
        for (id, worker) in self.alive() {
            if let Some(other) = slots.insert((&id.pool, id.slot), id) {
                panic!("A1: {other} and {id} live at the same time");
            }
            self.check_permission(id, worker);
        }
        for (id, count) in &self.died {
            assert_eq!(
                *count, 1,
                "A3: the death of {id} is recorded more than once"
            );
        }
        self.check_innocence();
        for (key, (value, _)) in self.store.range("serve/endpoints/".to_owned()..) {
            if let Some(ServeKey::Endpoint(..)) = ServeKey::parse(key) {
                let worker = Endpoint::decode(&**value).unwrap().worker;
                let id = WorkerRef::required(worker.as_ref()).unwrap();
                assert!(!self.died.contains_key(&id), "A3: {id} is dead and served");
            }
        }
    }

    /// P1: no worker outlives what its policy grants after the last word of its owner.
    fn check_permission(&self, id: &WorkerId, worker: &Worker) {
        let (mode, owner, timeout) = pool_of(id);
        let owner = &self.owners[owner];
        let applied = self
            .applied
            .get(id.pool.as_str())
            .copied()
            .unwrap_or_default();
        let word = owner.contact.max(applied).max(self.restarted);
        let end = match mode {
            // Applied after the goodbye, it is wanted without an owner.
            "distributed" => owner
                .left
                .filter(|left| *left > applied)
                .map(|left| left.max(self.restarted) + timeout + LEASE),
            _ => Some(word + timeout + STEP + STEP),
        };
        assert!(
            end.is_none_or(|end| self.now <= end),
            "P1: {id} outlives its owner's word: {worker:?}"
        );
        if mode == "coupled" {
            // Its shim watches the process, or was told of none and waits for the deadline.
            let watched = worker.owner_pid;
            let gone = watched.is_some_and(|pid| !owner.running || owner.pid != pid);
            assert!(
                !gone || self.now <= owner.changed.max(worker.born) + STEP,
                "P1: {id} outlives its owner's process"
            );
        }
    }

    /// P3: no worker of a connected node ends for want of its owner's word while there is one.
    fn check_innocence(&self) {
        for node in &self.nodes {
            for (id, worker) in node
                .workers
                .iter()
                .filter(|(_, worker)| worker.died_at == self.now)
            {
                let (mode, owner, timeout) = pool_of(id);
                let owner = &self.owners[owner];
                let settled = node.connected.max(self.restarted) + timeout + LAG < self.now;
                // A word that is still on its way to the node does not help it.
                let fresh = owner.contact + timeout > self.now + LAG
                    && self.now.since(owner.contact) > ON_ITS_WAY;
                let blamed = worker.death == Some(DeathCause::OwnerGone);
                assert!(
                    !(mode == "independent" && settled && fresh && blamed),
                    "P3: {id} ended {:?} after its owner's word",
                    self.now.since(owner.contact)
                );
                let starved =
                    worker.death == Some(DeathCause::LeaseExpired) && node.agent.is_some();
                assert!(
                    !(starved && settled && !node.cut),
                    "P3: {id} ended for want of a lease on a connected node"
                );
            }
        }
    }

    /// P3, as seen from the orders: no independent pool is told to end before its time.
    pub(super) fn check_orders(&self, node: &NodeName, orders: &[node::Order]) {
        for order in orders.iter().filter_map(|order| order.order.as_ref()) {
            if let Order::Stop(stop) = order
                && stop.cause().to_cause(None, None) == DeathCause::OwnerGone
            {
                let id = WorkerId::try_from(stop.worker.as_ref().unwrap()).unwrap();
                let (mode, owner, timeout) = pool_of(&id);
                let contact = self.owners[owner].contact;
                let early = mode == "independent" && self.now < contact + timeout;
                // An order is repeated to a node that comes back, whatever its owner did since.
                let repeated = self
                    .ledger
                    .pools
                    .get(&id.pool)
                    .is_none_or(super::super::Pool::is_ending);
                assert!(
                    !early || repeated,
                    "P3: {id} on {node} is told to end before its time"
                );
            }
        }
    }

    /// Liveness, once all is connected and quiet; and discovery is told exactly what is ready.
    pub(super) fn check_ready(&self, sizes: &[u32]) {
        for (index, &size) in sizes.iter().enumerate() {
            let (name, ..) = POOLS[index];
            let view = self.ledger.get_pool(name).unwrap();
            assert_eq!(
                (view.ready, view.live),
                (size, size),
                "liveness of {name}: {view:?}"
            );
            let alive = self
                .alive()
                .filter(|(id, _)| id.pool.as_str() == name)
                .count();
            assert_eq!(
                alive, size as usize,
                "liveness of {name}: what really lives"
            );
        }
        let ready = self
            .alive()
            .map(|(id, _)| tether_store::keys::endpoint(&id.pool, id.slot));
        let mut ready: Vec<_> = ready.collect();
        ready.sort();
        let served: Vec<_> = self
            .store
            .keys()
            .filter(|key| key.starts_with("serve/endpoints/"))
            .cloned()
            .collect();
        assert_eq!(served, ready, "endpoints are what is ready");
        self.check_deaths();
    }

    /// A3, once quiet: what was reported is recorded, and forgotten.
    fn check_deaths(&self) {
        for id in &self.reported {
            assert_eq!(
                self.died.get(id),
                Some(&1),
                "A3: the death of {id} is not recorded"
            );
        }
        let left: Vec<_> = self
            .workers()
            .filter(|(_, worker)| !worker.alive)
            .map(|(id, _)| id)
            .collect();
        assert!(left.is_empty(), "A3: {left:?} are dead and not forgotten");
    }

    /// A4, once everything is deleted and quiet.
    pub(super) fn check_empty(&self) {
        self.check_deaths();
        assert_eq!(
            self.workers().count(),
            0,
            "A4: workers of pools that are gone"
        );
        let kept = ["arbiter/events/", "arbiter/incarnation", "arbiter/nodes/"];
        let left: Vec<_> = self
            .store
            .keys()
            .filter(|key| !kept.iter().any(|kept| key.starts_with(kept)))
            .collect();
        assert!(left.is_empty(), "A4: the store still has {left:?}");
        let ledger = &self.ledger;
        assert!(
            ledger.pools.is_empty() && ledger.sessions.is_empty(),
            "A4: pools or sessions are left"
        );
        assert!(
            ledger.due.is_empty() && ledger.homeless.is_empty(),
            "A4: places are left"
        );
        let placed = ledger
            .nodes
            .values()
            .map(|node| node.workers.len())
            .sum::<usize>();
        assert_eq!(placed, 0, "A4: nodes still have workers");
    }
}
