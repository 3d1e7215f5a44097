//! What the loss of a node ends, written once for all of its workers.
//!
//! A node's lease may be that of hundreds of workers, and a network that is gone ends those of thousands of
//! nodes at once. Instead of an endpoint to delete and a death to write for each worker, one record per node
//! says that the endpoints of that node up to an incarnation are over, and why. They stay in the store, and
//! whoever reads it (discovery, an arbiter that starts) takes them for ended; the record is at once the end
//! and the death. It is unfolded place by place, where something is written of a place anyway: before its next
//! worker is ordered, or when the place goes. With the last of them the record goes.

use std::{collections::BTreeMap, sync::Arc};

use tether_clock::Tick;
use tether_proto::{
    common::{self, WorkerRef},
    discovery::{EndpointRemoval, NodeLoss, PoolEpoch},
    worker::EventKind,
};
use tether_store::keys as serve;
use tether_types::{DeathCause, Incarnation, NodeName, PoolName, Slot, WorkerId};

use super::{Ledger, nodes::lost, roster::Roster, slots::Shown};
use crate::effects::keys;

/// Where more workers die at once, the history tells of their nodes and pools instead of each: it keeps no
/// more events than this twice, and what went before would be lost for it.
pub(super) const TOLD_MAX: usize = crate::events::KEPT / 2;

/// Nodes that are gone and of which it is known what died with them (A3, A4).
const GONE_MAX: usize = 20_000;

/// What is kept of losses.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// How many places each record in the store still stands for.
    records: BTreeMap<NodeName, usize>,
    /// Incarnations up to this one died with a node that is gone.
    gone: BTreeMap<NodeName, Incarnation>,
}

impl Losses {
    /// A node is back. Up to which incarnation all that it had is known to be dead.
    pub(super) fn on_return(&mut self, name: &NodeName) -> Incarnation {
        self.gone.remove(name).unwrap_or_default()
    }

    fn on_loss(&mut self, name: &NodeName, up_to: Incarnation) {
        self.gone.insert(name.clone(), up_to);
        // One with a record is kept: what is placed there when it is back must not be covered by that.
        let bare = self.gone.iter();
        let bare = bare.filter(|(name, _)| !self.records.contains_key(*name));
        if self.gone.len() > GONE_MAX
            && let Some((oldest, _)) = bare.min_by_key(|(_, up_to)| **up_to)
        {
            let oldest = oldest.clone();
            self.gone.remove(&oldest);
        }
    }

    fn hold(&mut self, name: &NodeName, places: usize) {
        *self.records.entry(name.clone()).or_default() += places;
    }

    /// One place less. True where the record stands for no other.
    fn release(&mut self, name: &NodeName) -> bool {
        let Some(left) = self.records.get_mut(name) else {
            return false;
        };
        *left -= 1;
        let last = *left == 0;
        if last {
            self.records.remove(name);
        }
        last
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl Ledger {
    /// Whether the death of an incarnation that a node tells of is recorded (A3).
    pub(super) fn is_buried(&self, node: &NodeName, incarnation: Incarnation) -> bool {
        let node = self.nodes.get(node);
        self.buried.contains(incarnation) || node.is_some_and(|node| incarnation <= node.over)
    }

    /// Records the end of nodes and of all that was placed there. Every shim there has ended its worker by
    /// now: that is what the lease is for (A1).
    pub(super) fn bury_nodes(&mut self, nodes: Vec<(NodeName, Roster)>, now: Tick) {
        let dead: usize = nodes.iter().map(|(_, workers)| workers.len()).sum();
        let each = dead <= TOLD_MAX;
        let mut pools = BTreeMap::new();
        for (name, workers) in nodes {
            self.effects.delete(keys::node(&name));
            let text = format!(
                "no beat of node `{name}` within its lease, with {} workers",
                workers.len()
            );
            self.effects.node_event(EventKind::NodeLost, &name, text);
            self.bury_node(&name, &workers, &mut pools, each, now);
        }
        for (pool, dead) in pools {
            // In the commit that records the deaths, so that no gateway hears of them without the spares.
            let entry = self.pools.get(&pool);
            if entry.is_some_and(|pool| pool.resolved.spec.spares > 0) {
                self.publish_pool(&pool);
            }
            if !each && let Some(entry) = self.pools.get(&pool) {
                let Dead { workers, nodes, .. } = dead;
                let text = format!(
                    "{workers} workers of pool `{pool}` ended with the leases of {nodes} nodes"
                );
                self.effects
                    .owner_event(EventKind::PoolChanged, entry.owner(), text);
            }
        }
    }

    fn bury_node(
        &mut self,
        name: &NodeName,
        workers: &Roster,
        pools: &mut BTreeMap<PoolName, Dead>,
        each: bool,
        now: Tick,
    ) {
        // Every number that could be there; one that waits for a node gets another before it goes there.
        let up_to = Incarnation(self.highest);
        let mut epochs = Vec::new();
        for (pool, workers) in workers.by_pool() {
            let dead = pools.entry(pool.clone()).or_insert_with(|| Dead {
                death: Arc::new(self.in_epoch(pool, of_lease())),
                workers: 0,
                nodes: 0,
            });
            dead.nodes += 1;
            let epoch = dead.death.epoch;
            if epoch > 0 {
                let pool = pool.to_string();
                epochs.push(PoolEpoch { pool, epoch });
            }
            for id in workers {
                dead.workers += 1;
                self.bury_lost(name, &id, &dead.death, each, now);
            }
        }
        if workers.len() > 0 {
            self.losses.on_loss(name, up_to);
        }
        if self.losses.records.contains_key(name) {
            let loss = NodeLoss {
                up_to_incarnation: up_to.0,
                death: Some(of_lease()),
                epochs,
            };
            self.effects.put(serve::loss(name), loss);
        }
    }

    /// One of them. An endpoint that was told is left to the record of its node.
    fn bury_lost(
        &mut self,
        name: &NodeName,
        id: &WorkerId,
        death: &Arc<common::Death>,
        each: bool,
        now: Tick,
    ) {
        let Some(place) = self.place(&id.pool, id.slot) else {
            return;
        };
        // What an earlier arbiter told of it may not say which node it is on.
        let told = place.live.as_ref().is_some_and(|live| live.told.is_some());
        let left = told && place.shown == Shown::Served;
        place.serves = false;
        if left {
            place.shown = Shown::Lost;
            self.losses.hold(name, 1);
        } else {
            self.withdraw(&id.pool, id.slot);
            self.write_death(id, common::Death::clone(death));
        }
        if each {
            self.record_death(name, id, death);
        }
        self.end(name, id, Arc::clone(death), false, now);
    }

    pub(super) fn write_death(&mut self, id: &WorkerId, death: common::Death) {
        let removal = EndpointRemoval {
            worker: Some(WorkerRef::from(id)),
            death: Some(death),
        };
        self.effects.put(serve::death(&id.pool, id.slot), removal);
    }

    /// Writes of a place what the record of its node says of it.
    pub(super) fn unfold(&mut self, pool: &PoolName, slot: Slot) {
        let Some(place) = self.place(pool, slot) else {
            return;
        };
        if place.shown != Shown::Lost {
            return;
        }
        place.shown = Shown::Nothing;
        let last = place.last.as_deref().cloned();
        self.effects.delete(serve::endpoint(pool, slot));
        let Some(last) = last else { return };
        let id = WorkerId {
            pool: pool.clone(),
            slot,
            incarnation: last.incarnation,
        };
        self.write_death(&id, common::Death::clone(&last.death));
        if let Some(node) = last.node
            && self.losses.release(&node)
        {
            self.effects.delete(serve::loss(&node));
        }
    }

    /// Takes up the losses an earlier arbiter left, once the places are there that they stand for. One that
    /// stands for none is deleted.
    pub(super) fn restore_losses(&mut self, losses: &BTreeMap<NodeName, NodeLoss>) {
        let places = self.pools.values().flat_map(|pool| pool.places.values());
        let lost = places.filter(|place| place.shown == Shown::Lost);
        let nodes = lost.filter_map(|place| place.last.as_ref()?.node.clone());
        for node in nodes.collect::<Vec<_>>() {
            self.losses.hold(&node, 1);
        }
        for (name, loss) in losses {
            let up_to = Incarnation(loss.up_to_incarnation);
            match self.nodes.get_mut(name) {
                Some(node) => node.over = up_to,
                None => self.losses.on_loss(name, up_to),
            }
        }
        for name in losses.keys() {
            if !self.losses.records.contains_key(name) {
                self.effects.delete(serve::loss(name));
            }
        }
    }
}

/// Those of one pool that die in one moment.
struct Dead {
    death: Arc<common::Death>,
    workers: usize,
    nodes: usize,
}

fn of_lease() -> common::Death {
    lost(
        DeathCause::LeaseExpired,
        "its node was not heard within the lease",
    )
}

/// What a loss says of one of its workers.
pub(super) fn death_of(loss: &NodeLoss, pool: &PoolName) -> common::Death {
    let epoch = loss.epochs.iter().find(|of| of.pool == pool.as_str());
    common::Death {
        epoch: epoch.map_or(0, |of| of.epoch),
        ..loss.death.clone().unwrap_or_default()
    }
}
