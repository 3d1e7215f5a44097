//! Which workers may live on with a job, as far as their node knows.
//!
//! A worker with a job is told to outlive its node's lease by far more than others, so that its place is held
//! for as long. Its node hears of a job's end with an answer, and says with its next beat that it has heard: only
//! then is the place held no longer than any other. One key in the store for each such worker, written when it
//! changes, so that another arbiter waits as long.

use tether_clock::Tick;
use tether_types::{Incarnation, NodeName, PoolName, Slot, WorkerId};

use super::{Ledger, losses::of_lease};
use crate::{effects::keys, record::HoldRecord};

/// What a node may believe of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// It does a job.
    Held,
    /// It did, and the node may not have heard of the end, which was here.
    EndedAt(Tick),
}

impl Ledger {
    /// A worker begins with a job: its node is told at once, as it may be cut off the next moment.
    pub(super) fn begin_hold(&mut self, id: &WorkerId) {
        let Some((_, name)) = self.find_worker(id) else {
            return;
        };
        let Some(node) = self.nodes.get_mut(&name) else {
            return;
        };
        let before = node.jobs.insert(id.clone(), Hold::Held);
        if before.is_none() {
            let record = HoldRecord {
                node: name.to_string(),
                incarnation: id.incarnation.0,
            };
            self.effects.put(keys::hold(&id.pool, id.slot), record);
        }
        if before != Some(Hold::Held) {
            node.to_tell.insert(id.pool.clone());
            self.effects.acks.entry(name).or_default();
        }
    }

    /// A worker has one job less; its node is told with the next answer.
    pub(super) fn end_hold(&mut self, id: &WorkerId, now: Tick) {
        if self.jobs.has_open(id) {
            return;
        }
        for node in self.nodes.values_mut() {
            if let Some(hold) = node.jobs.get_mut(id) {
                *hold = Hold::EndedAt(now);
                node.to_tell.insert(id.pool.clone());
            }
        }
        // It may have been kept for its job alone.
        self.roll(&id.pool, now);
    }

    /// A node knows all that was decided before `known`.
    pub(super) fn drop_holds_ended_before(&mut self, name: &NodeName, known: Tick) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        let effects = &mut self.effects;
        node.jobs.retain(|id, hold| match hold {
            // In the same moment the answer may have been on its way already.
            Hold::EndedAt(at) if *at < known => {
                effects.delete(keys::hold(&id.pool, id.slot));
                false
            }
            Hold::EndedAt(_) | Hold::Held => true,
        });
    }

    /// A worker is dead.
    pub(super) fn drop_hold(&mut self, name: &NodeName, id: &WorkerId) {
        let node = self.nodes.get_mut(name);
        if node.is_some_and(|node| node.jobs.remove(id).is_some()) {
            self.effects.delete(keys::hold(&id.pool, id.slot));
        }
    }

    /// A node has said which workers it has: of others nothing lives there.
    pub(super) fn drop_holds_but_known(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        let (workers, effects) = (&node.workers, &mut self.effects);
        node.jobs.retain(|id, _| {
            let known = workers.contains(id);
            if !known {
                effects.delete(keys::hold(&id.pool, id.slot));
            }
            known
        });
    }

    /// The time for which a place was held is over: nobody else will tell that its worker is dead, which may
    /// have been one of many on its node of whom that was written long ago.
    pub(super) fn drop_holds_at(&mut self, name: &NodeName, pool: &PoolName, slot: Slot) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        let at = |id: &WorkerId| id.pool == *pool && id.slot == slot;
        let over = node.jobs.extract_if(.., |id, _| at(id));
        let over: Vec<_> = over.map(|(id, _)| id).collect();
        for id in over {
            self.effects.delete(keys::hold(pool, slot));
            let death = self.in_epoch(pool, of_lease());
            self.record_death(name, &id, &death);
        }
    }

    /// What an earlier arbiter wrote of a worker with a job, on a node that was not heard yet.
    pub(super) fn restore_hold(
        &mut self,
        rest: &str,
        node: &str,
        incarnation: u64,
        now: Tick,
    ) -> bool {
        let Some((pool, slot)) = rest.split_once('/') else {
            return false;
        };
        let (Ok(pool), Ok(slot), Ok(node)) =
            (PoolName::new(pool), slot.parse(), NodeName::new(node))
        else {
            return false;
        };
        let id = WorkerId {
            pool,
            slot,
            incarnation: Incarnation(incarnation),
        };
        let job = match self.jobs.has_open(&id) {
            true => Hold::Held,
            false => Hold::EndedAt(now),
        };
        let there = self.pools.contains_key(&id.pool);
        let node = self.nodes.get_mut(&node).filter(|_| there);
        node.map(|node| node.jobs.insert(id, job)).is_some()
    }
}
