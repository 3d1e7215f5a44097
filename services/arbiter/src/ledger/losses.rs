//! What the loss of a node ends, written once for all of its workers.
//!
//! A node's lease may be that of hundreds of workers, and a network that is gone ends those of thousands of
//! nodes at once. Instead of an endpoint to delete and a death to write for each worker, one record per node
//! says that the endpoints of that node up to an incarnation are over. They stay in the store, and whoever reads
//! it (discovery, an arbiter that starts) takes them for ended. It does not say at first that anybody died: a node
//! that is back in time has its record deleted, and with it all serves again. Once what the workers of a pool may
//! outlive the lease by is over, they are named there as dead.
//!
//! The record is unfolded place by place, where something is written of a place anyway: before its next worker is
//! ordered, or when the place goes; and as a whole when the node is back. With the last of them the record goes.
//! Workers with a job, which may live for longer than the others of their pool, are never left to a record.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tether_clock::Tick;
use tether_proto::{
    common::{self, WorkerRef},
    discovery::{EndpointRemoval, NodeLoss, PoolDeath},
    worker::EventKind,
};
use tether_store::keys as serve;
use tether_types::{DeathCause, Incarnation, NodeName, PoolName, Slot, WorkerId};

use super::{
    Ledger, Node,
    nodes::lost,
    slots::{Last, Shown},
};

/// Where more workers die at once, the history tells of their nodes and pools instead of each: it keeps no
/// more events than this twice, and what went before would be lost for it.
pub(super) const TOLD_MAX: usize = crate::events::KEPT / 2;

/// Nodes that are gone and of which it is known what died with them (A3, A4).
const GONE_MAX: usize = 20_000;

/// Why a worker is taken to be dead that an earlier arbiter served, and its node does not know.
const DIED_UNSEEN: &str =
    "its agent does not know it: the machine was restarted while no arbiter was there to see it";

/// Up to which incarnation all of a pool died with a node.
pub(super) type Over = BTreeMap<PoolName, Incarnation>;

/// What is kept of losses.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Those in the store.
    records: BTreeMap<NodeName, Record>,
    /// What died with nodes that are gone.
    gone: BTreeMap<NodeName, Over>,
}

/// A node's loss, as the store has it.
#[derive(Debug, Default)]
struct Record {
    up_to: Incarnation,
    /// Places it was to stand for, and for how many of them it still does.
    places: Vec<(PoolName, Slot)>,
    left: usize,
    /// Pools of which all that it stands for is dead, with the epoch of their owner then.
    dead: BTreeMap<PoolName, u64>,
}

impl Losses {
    /// A node is back. What of it is known to be dead.
    pub(super) fn on_return(&mut self, name: &NodeName) -> Over {
        self.gone.remove(name).unwrap_or_default()
    }

    /// A node is gone.
    pub(super) fn on_gone(&mut self, name: &NodeName, over: Over) {
        if over.is_empty() {
            return;
        }
        self.gone.insert(name.clone(), over);
        if self.gone.len() > GONE_MAX {
            let newest = |over: &Over| over.values().max().copied();
            let oldest = self.gone.iter().min_by_key(|(_, over)| newest(over));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.gone.remove(&oldest);
            }
        }
    }

    fn hold(&mut self, name: &NodeName, mut places: Vec<(PoolName, Slot)>) {
        if places.is_empty() {
            return;
        }
        let record = self.records.entry(name.clone()).or_default();
        record.left += places.len();
        record.places.append(&mut places);
        record.places.shrink_to_fit();
    }

    /// One place less. True where the record stands for no other.
    fn release(&mut self, name: &NodeName) -> bool {
        let Some(record) = self.records.get_mut(name) else {
            return false;
        };
        record.left -= 1;
        let last = record.left == 0;
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
    pub(super) fn is_buried(&self, node: &NodeName, id: &WorkerId) -> bool {
        let with_node = |node: &Node| {
            let over = node.over.get(&id.pool);
            // One with a job does not die with the others of its pool.
            over.is_some_and(|&over| id.incarnation <= over) && !node.jobs.contains_key(id)
        };
        self.buried.contains(id.incarnation) || self.nodes.get(node).is_some_and(with_node)
    }

    /// The endpoints that are told of these workers of a lost node are over, by the record of the node where that
    /// can say all there is to say of them.
    pub(super) fn leave_to_loss<'a>(
        &mut self,
        name: &NodeName,
        workers: impl IntoIterator<Item = &'a WorkerId>,
    ) {
        let jobs = self.nodes.get(name).map(|node| node.jobs.keys());
        let jobs: Option<BTreeSet<_>> = jobs.map(|jobs| jobs.cloned().collect());
        let record = self.losses.records.get(name);
        let dead = record.map_or_else(BTreeMap::new, |record| record.dead.clone());
        let mut left = Vec::new();
        for id in workers {
            let has_job = jobs.as_ref().is_none_or(|jobs| jobs.contains(id));
            let Some(place) = self.place(&id.pool, id.slot) else {
                continue;
            };
            if place.shown != Shown::Served {
                continue;
            }
            // What an earlier arbiter told of it may not say which node it is on.
            let told = place.live.as_ref().is_none_or(|live| live.told.is_some());
            if has_job || !told || dead.contains_key(&id.pool) {
                if let Some(live) = &mut place.live {
                    live.told = None;
                }
                self.withdraw(&id.pool, id.slot);
            } else {
                place.shown = Shown::Lost;
                left.push((id.pool.clone(), id.slot));
            }
        }
        self.losses.hold(name, left);
    }

    /// An endpoint that an earlier arbiter told, on a node that is lost before this one heard it.
    pub(super) fn end_served(&mut self, name: &NodeName, id: &WorkerId) {
        let Some(place) = self.place(&id.pool, id.slot) else {
            return;
        };
        if place.shown != Shown::Served {
            return;
        }
        match &place.live {
            // Another worker is there, which nobody was told of yet.
            Some(live) if live.told.is_none() => self.withdraw(&id.pool, id.slot),
            Some(_) => {}
            None => {
                place.last = Some(Box::new(Last {
                    incarnation: id.incarnation,
                    death: None,
                    node: Some(name.clone()),
                }));
                self.leave_to_loss(name, [id]);
            }
        }
    }

    /// A node has told of all that it has: what an earlier arbiter served there and nobody has taken up died unseen.
    pub(super) fn end_unheard(&mut self, name: &NodeName, served: Vec<WorkerId>, now: Tick) {
        for id in served {
            let is_buried = self.is_buried(name, &id);
            let Some(place) = self.place(&id.pool, id.slot) else {
                continue;
            };
            if place.shown != Shown::Served {
                continue;
            }
            match &place.live {
                None if !is_buried => {
                    let death = lost(DeathCause::Unknown, DIED_UNSEEN);
                    self.bury(name, &id, death, false, now);
                }
                // Another worker is on its way there, of which nobody was told yet.
                Some(live) if live.told.is_none() && live.incarnation != id.incarnation => {
                    self.withdraw(&id.pool, id.slot);
                }
                None | Some(_) => {}
            }
        }
    }

    /// Writes what a node's loss has ended up to now.
    pub(super) fn write_loss(&mut self, name: &NodeName) {
        let up_to = Incarnation(self.highest);
        if let Some(record) = self.losses.records.get_mut(name) {
            record.up_to = up_to;
            self.effects.put(serve::loss(name), record.message());
        }
    }

    /// A node is back, or known to be dead: the store says of each place by itself what the record of its loss
    /// said. Whatever may live there is as it was before the loss.
    pub(super) fn fold_back(&mut self, name: &NodeName) {
        let Some(record) = self.losses.records.remove(name) else {
            return;
        };
        self.effects.delete(serve::loss(name));
        for (pool, slot) in record.places {
            let Some(place) = self.place(&pool, slot) else {
                continue;
            };
            if place.lost_with() != Some(name) {
                continue;
            }
            if place.live.as_ref().is_some_and(|live| live.disabled) {
                place.shown = Shown::Served;
            } else {
                self.unfold(&pool, slot);
            }
        }
    }

    /// Records the deaths of workers of lost nodes. Every shim there has ended them by now.
    pub(super) fn bury_lost(&mut self, nodes: Vec<(NodeName, Vec<WorkerId>)>, now: Tick) {
        let dead: usize = nodes.iter().map(|(_, workers)| workers.len()).sum();
        let each = dead <= TOLD_MAX;
        let mut pools = BTreeMap::new();
        for (name, workers) in &nodes {
            self.bury_on(name, workers, &mut pools, each, now);
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

    fn bury_on(
        &mut self,
        name: &NodeName,
        workers: &[WorkerId],
        pools: &mut BTreeMap<PoolName, Dead>,
        each: bool,
        now: Tick,
    ) {
        let jobs = self.nodes.get(name).map(|node| node.jobs.keys());
        let jobs: BTreeSet<_> = jobs.into_iter().flatten().cloned().collect();
        let mut over = Vec::new();
        for workers in workers.chunk_by(|a, b| a.pool == b.pool) {
            let pool = &workers[0].pool;
            let dead = pools.entry(pool.clone()).or_insert_with(|| Dead {
                death: Arc::new(self.in_epoch(pool, of_lease())),
                workers: 0,
                nodes: 0,
            });
            dead.nodes += 1;
            dead.workers += workers.len();
            // Those with a job are not what the others of their pool are, which all end at once.
            if workers.iter().any(|id| !jobs.contains(id)) {
                over.push((pool.clone(), dead.death.epoch));
            }
        }
        self.bury_pools(name, over);
        self.unseat_lost(name, workers);
        for id in workers {
            if let Some(dead) = pools.get(&id.pool) {
                self.bury_one(name, id, &dead.death, each, jobs.contains(id), now);
            }
        }
    }

    /// Of these pools, with the epochs of their owners, all that has no job is dead on a node.
    fn bury_pools(&mut self, name: &NodeName, pools: Vec<(PoolName, u64)>) {
        if pools.is_empty() {
            return;
        }
        // Every number that could be there; one that waits for a node gets another before it goes there.
        let mut up_to = Incarnation(self.highest);
        if let Some(record) = self.losses.records.get_mut(name) {
            up_to = record.up_to;
            record.dead.extend(pools.iter().cloned());
            self.effects.put(serve::loss(name), record.message());
        }
        if let Some(node) = self.nodes.get_mut(name) {
            let pools = pools.into_iter();
            node.over.extend(pools.map(|(pool, _)| (pool, up_to)));
        }
    }

    /// One of them. An endpoint that the record of its node has ended is left to that.
    fn bury_one(
        &mut self,
        name: &NodeName,
        id: &WorkerId,
        death: &Arc<common::Death>,
        each: bool,
        had_job: bool,
        now: Tick,
    ) {
        let Some(place) = self.place(&id.pool, id.slot) else {
            return;
        };
        let left = place.lost_with() == Some(name);
        if had_job {
            self.drop_hold(name, id);
        }
        if !left {
            self.withdraw(&id.pool, id.slot);
            self.write_death(id, common::Death::clone(death));
        }
        if each || had_job {
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
        let Some(node) = place.lost_with().cloned() else {
            return;
        };
        place.shown = Shown::Nothing;
        let is_disabled = place.live.as_ref().is_some_and(|live| live.disabled);
        let last = place.last.as_deref().filter(|_| !is_disabled);
        let dead = last.and_then(|last| Some((last.incarnation, last.death.clone()?)));
        self.effects.delete(serve::endpoint(pool, slot));
        if let Some((incarnation, death)) = dead {
            let id = WorkerId {
                pool: pool.clone(),
                slot,
                incarnation,
            };
            self.write_death(&id, common::Death::clone(&death));
        }
        if self.losses.release(&node) {
            self.effects.delete(serve::loss(&node));
        }
    }

    /// Takes up the losses an earlier arbiter left, once the places are there that they stand for. One that
    /// stands for none is deleted.
    pub(super) fn restore_losses(&mut self, losses: &BTreeMap<NodeName, NodeLoss>) {
        let mut lost = Vec::new();
        for (pool, entry) in &self.pools {
            let places = entry.places.iter();
            lost.extend(places.filter_map(|(slot, place)| {
                Some((place.lost_with()?.clone(), pool.clone(), slot))
            }));
        }
        for (node, pool, slot) in lost {
            self.losses.hold(&node, vec![(pool, slot)]);
        }
        for (name, loss) in losses {
            let up_to = Incarnation(loss.up_to_incarnation);
            let dead: BTreeMap<_, _> = dead_of(loss).collect();
            let over = dead.keys().map(|pool| (pool.clone(), up_to)).collect();
            match self.nodes.get_mut(name) {
                Some(node) => node.over = over,
                None => self.losses.on_gone(name, over),
            }
            match self.losses.records.get_mut(name) {
                Some(record) => (record.up_to, record.dead) = (up_to, dead),
                None => self.effects.delete(serve::loss(name)),
            }
        }
    }
}

impl Record {
    fn message(&self) -> NodeLoss {
        let of_pool = |(pool, &epoch): (&PoolName, &u64)| PoolDeath {
            pool: pool.to_string(),
            epoch,
        };
        NodeLoss {
            up_to_incarnation: self.up_to.0,
            death: Some(of_lease()).filter(|_| !self.dead.is_empty()),
            dead: self.dead.iter().map(of_pool).collect(),
        }
    }
}

fn dead_of(loss: &NodeLoss) -> impl Iterator<Item = (PoolName, u64)> {
    let dead = loss.dead.iter();
    dead.filter_map(|dead| Some((PoolName::new(&dead.pool).ok()?, dead.epoch)))
}

/// Those of one pool that die in one moment.
struct Dead {
    death: Arc<common::Death>,
    workers: usize,
    nodes: usize,
}

pub(super) fn of_lease() -> common::Death {
    lost(
        DeathCause::LeaseExpired,
        "its node was not heard within the lease, nor in the time after it",
    )
}

/// What a loss says of the death of one of its workers; none where it may live.
pub(super) fn death_of(loss: &NodeLoss, pool: &PoolName) -> Option<common::Death> {
    let dead = loss.dead.iter().find(|dead| dead.pool == pool.as_str())?;
    Some(common::Death {
        epoch: dead.epoch,
        ..loss.death.clone()?
    })
}
