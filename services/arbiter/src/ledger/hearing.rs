//! What a node's stream has told of its workers, and how it is seen that both sides still agree.
//!
//! The agent sums up in each beat what it has told on this stream; here the same sum is kept of what was
//! taken in. A stream loses nothing and changes no order, so that the two differ only where one side is wrong:
//! then the whole table is asked for and compared, as with a hello.

use std::collections::BTreeSet;

use tether_clock::Tick;
use tether_proto::{
    common::{WorkerPhase, WorkerRef},
    node::{HeartbeatRequest, WorkerReport},
};
use tether_types::{DeathCause, Digest, NodeName, WorkerId};

use super::{Ledger, nodes::lost};

/// Why a worker that an agent has told of and does not know any more is taken to be dead.
const FORGOTTEN: &str = "its agent told of it and does not know it any more";

impl Ledger {
    /// A node's stream has told of a worker, and what follows from that was decided.
    pub(super) fn hear(&mut self, name: &NodeName, id: &WorkerId, phase: i32) {
        // The dead are in no sum: when they are forgotten is not the same moment on both sides.
        let phase = if phase == i32::from(WorkerPhase::Dead) {
            0
        } else {
            phase
        };
        self.unhear(name, id);
        let mut placed = false;
        if let Some(place) = self.place(&id.pool, id.slot)
            && let Some(live) = &mut place.live
            && live.incarnation == id.incarnation
            && live.node.as_ref() == Some(name)
        {
            live.heard = phase;
            placed = true;
        }
        if let Some(node) = self.nodes.get_mut(name)
            && phase != 0
        {
            node.told.add(id, phase);
            if !placed {
                node.strangers.insert(id.clone(), phase);
            }
        }
    }

    /// Takes a worker out of what a node has told.
    pub(super) fn unhear(&mut self, name: &NodeName, id: &WorkerId) {
        let mut heard = 0;
        if let Some(place) = self.place(&id.pool, id.slot)
            && let Some(live) = &mut place.live
            && live.incarnation == id.incarnation
            && live.node.as_ref() == Some(name)
        {
            heard = std::mem::take(&mut live.heard);
        }
        if let Some(node) = self.nodes.get_mut(name) {
            let stranger = node.strangers.remove(id);
            let heard = stranger.unwrap_or(heard);
            if heard != 0 {
                node.told.remove(id, heard);
            }
        }
    }

    /// A stream begins, or tells all of it again. The workers that the one before had told of.
    pub(super) fn forget_told(&mut self, name: &NodeName) -> Vec<WorkerId> {
        let Some(node) = self.nodes.get_mut(name) else {
            return Vec::new();
        };
        node.told = Digest::default();
        node.strangers.clear();
        let mut all: Vec<_> = node.workers.iter().collect();
        all.retain(|id| {
            let live = self.place(&id.pool, id.slot);
            let live = live.and_then(|place| place.live.as_mut());
            live.is_some_and(|live| std::mem::take(&mut live.heard) != 0)
        });
        all
    }

    /// Whether a beat stands for other workers than its stream was heard to tell of.
    pub(super) fn differs(&self, name: &NodeName, beat: &HeartbeatRequest) -> bool {
        let Some(node) = self.nodes.get(name) else {
            return false;
        };
        let here = (node.told.sum(), node.told.count());
        beat.digest.is_some_and(|sum| (sum, beat.count) != here)
    }

    /// An agent tells all that it has, because the sums differed. A worker it was never heard of may be one
    /// whose start is still on its way there.
    pub(super) fn resync(&mut self, name: &NodeName, table: &[WorkerReport], now: Tick) {
        let heard = self.forget_told(name);
        self.compare(name, table, heard, FORGOTTEN, now);
    }

    /// Takes in what an agent has; of what is `known` here, whatever it does not have is dead.
    pub(super) fn compare(
        &mut self,
        name: &NodeName,
        table: &[WorkerReport],
        known: Vec<WorkerId>,
        why: &str,
        now: Tick,
    ) {
        let mut told = BTreeSet::new();
        for report in table {
            if let Ok(id) = WorkerRef::required(report.worker.as_ref()) {
                if report.phase() != WorkerPhase::Dead {
                    self.repeat_stop(name, &id);
                }
                self.on_report(name, &id, report, now);
                told.insert(id);
            }
        }
        for id in known {
            if !told.contains(&id) {
                self.bury(name, &id, lost(DeathCause::Unknown, why), false, now);
            }
        }
    }
}
