//! What workers act on: a resource for each slot with its fence, and gateways that follow who owns what.

use tether_lease::Fence;
use tether_types::Epoch;

use crate::{
    Mutant,
    agenda::Event,
    oracle::STALE,
    world::{SECOND, World},
};

/// What the workers of a slot write to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Resource {
    fence: Fence,
    /// What is on its disk.
    stored: Epoch,
    /// The highest epoch that ever had effect: for the oracle.
    pub(crate) highest: Epoch,
}

/// A gateway's knowledge.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Gateway {
    fences: [Fence; 2],
    /// Since when it hears nothing of the store.
    cut: Option<u64>,
}

impl World {
    /// A worker acts: on its resource at once and through its gateway, and now and then so that it arrives late.
    pub(crate) fn act(&mut self, index: usize, epoch: Epoch) {
        self.write(index, epoch);
        if self.chance.one_in(12) {
            let at = self.now + self.chance.span(60 * SECOND);
            let node = self.nodes[index].id;
            self.agenda.add(at, Event::Write { node, epoch });
        }
    }

    /// What was written arrives.
    pub(crate) fn write(&mut self, index: usize, epoch: Epoch) {
        let slot = self.nodes[index].slot;
        if self.setup.crashing_resources && self.chance.one_in(3) {
            self.restart_resource(slot);
        }
        let resource = &mut self.resources[slot];
        if resource.fence.admit(epoch).is_ok() || self.mutant == Some(Mutant::NoFence) {
            // Stored before it has effect.
            resource.stored = resource.fence.seen();
            self.check_effective(slot, epoch);
        }
        self.call(index % 2, slot, epoch);
    }

    fn call(&mut self, at: usize, slot: usize, epoch: Epoch) {
        let gateway = &mut self.gateways[at];
        let blind = gateway.cut.is_some_and(|since| self.now > since + STALE);
        if !blind && gateway.fences[slot].admit(epoch).is_ok() {
            self.check_gateway(at, slot, epoch);
        }
    }

    /// A resource starts anew, with what it stored.
    fn restart_resource(&mut self, slot: usize) {
        let resource = &mut self.resources[slot];
        resource.fence = match self.mutant {
            Some(Mutant::FenceNotPersisted) => Fence::default(),
            _ => Fence::at(resource.stored),
        };
    }

    /// A grant was committed: gateways that watch are told.
    pub(crate) fn announce(&mut self, slot: usize, epoch: Epoch) {
        let from_now = self.mutant == Some(Mutant::WatchFromNow);
        for gateway in &mut self.gateways {
            // A watch breaks now and then, and is resumed at the revision where it broke.
            let broke = self.chance.one_in(4);
            if gateway.cut.is_none() && !(broke && from_now) {
                let _ = gateway.fences[slot].admit(epoch);
            }
        }
    }

    pub(crate) fn cut_gateway(&mut self, at: usize) {
        self.gateways[at].cut.get_or_insert(self.now);
    }

    /// A gateway watches again, from where it stopped.
    pub(crate) fn rejoin_gateway(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        gateway.cut = None;
        if self.mutant == Some(Mutant::WatchFromNow) {
            return;
        }
        for (fence, owner) in gateway.fences.iter_mut().zip(self.store.owners) {
            if let Some(owner) = owner {
                let _ = fence.admit(owner.epoch);
            }
        }
    }
}
