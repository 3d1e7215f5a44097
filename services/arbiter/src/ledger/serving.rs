//! Which workers calls go to: spares step in for the dead, and worn workers are replaced.
//!
//! A pool with spares has the slots 0 to `size + spares`, and each worker keeps its slot for life. Calls
//! go to the first `size` of those that are ready; the others are told to discovery as draining, so
//! that gateways know them and send them nothing. When a worker dies the next spare serves in the same
//! commit, and when its slot has a ready worker again the spare steps back, letting the calls it has
//! come to their end. So it takes no memory to know who serves, neither here nor after a restart, and an
//! affinity key that went to the slot that died comes back to it. While it is away, the keys of the
//! others move no more than any change of the set of slots moves them.

use tether_clock::Tick;
use tether_proto::{common::Endpoint, worker::EventKind};
use tether_store::keys;
use tether_supervise::{Phase, Recycle};
use tether_types::{PoolName, Slot, WorkerId};

use super::{
    Ledger,
    slots::{Shown, Told},
};

/// The label by which a node says where it is.
const ZONE: &str = "zone";

/// Of a pool, one in so many workers is recycled at a time, and always at least one.
const RECYCLED_PART: u32 = 10;

impl Ledger {
    /// Tells discovery what changed at a place, and at the others where there are spares.
    pub(super) fn publish(&mut self, pool: &PoolName, slot: Slot) {
        let spares = self
            .pools
            .get(pool)
            .map_or(0, |pool| pool.resolved.spec.spares);
        let slots = if spares == 0 {
            slot..=slot
        } else {
            0..=Slot::MAX
        };
        self.publish_slots(pool, slots);
    }

    /// Tells discovery all that changed in a pool.
    pub(super) fn publish_pool(&mut self, pool: &PoolName) {
        self.publish_slots(pool, 0..=Slot::MAX);
    }

    fn publish_slots(&mut self, name: &PoolName, slots: std::ops::RangeInclusive<Slot>) {
        self.jobs.waiting.look_again(name);
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        let session = self.sessions.get(pool.owner());
        let epoch = session.map_or(0, |session| session.epoch.0);
        let spec = &pool.resolved.spec;
        let drained = pool.draining;
        let count_calls = pool.resolved.plan.recycle.max_calls.is_some();
        let template = &pool.resolved.template;
        let (capacity, weight) = (template.capacity, template.weight);
        let mut free = if spec.spares > 0 {
            spec.size
        } else {
            Slot::MAX
        };
        for (slot, place) in pool.places.range_mut(slots) {
            // Ready as its agent says, and here: not drained, and not told to stop.
            let goes_on = matches!(place.machine.phase(), Phase::Ready { .. });
            place.serves = place.is_ready() && goes_on && free > 0;
            free -= Slot::from(place.serves);
            let told = Told {
                draining: drained || !place.serves,
                count_calls,
            };
            if let Some(endpoint) = place.endpoint(name, slot, told)
                && let Some(live) = &mut place.live
                && live.told.replace(told) != Some(told)
            {
                place.shown = Shown::Served;
                let node = live.node.as_ref().and_then(|node| self.nodes.get(node));
                let zone = node.and_then(|node| node.labels.get(ZONE));
                let endpoint = Endpoint {
                    zone: zone.cloned().unwrap_or_default(),
                    fates: node.map(|node| node.fates.clone()).unwrap_or_default(),
                    capacity,
                    weight,
                    epoch,
                    ..endpoint
                };
                self.effects.put(keys::endpoint(name, slot), endpoint);
            }
        }
    }

    /// Publishes what was published of these, as something of their node is another.
    pub(super) fn publish_anew(&mut self, workers: &[WorkerId]) {
        for id in workers {
            let place = self.place(&id.pool, id.slot);
            let live = place.and_then(|place| place.live.as_mut());
            if live.is_some_and(|live| live.told.take().is_some()) {
                self.publish(&id.pool, id.slot);
            }
        }
    }

    /// Replaces worn workers of a pool, as many at once as it can spare: while any other place is
    /// without a settled worker, that one counts among them, so that a replacement that does not
    /// become ready costs no further worker.
    pub(super) fn recycle_next(&mut self, name: &PoolName, now: Tick) {
        while let Some(slot) = self.next_to_recycle(name)
            && let Some(pool) = self.pools.get_mut(name)
            && let Some(place) = pool.places.get_mut(slot)
            && let (Some(live), Some(why)) = (&place.live, place.machine.worn())
        {
            let id = WorkerId {
                pool: name.clone(),
                slot,
                incarnation: live.incarnation,
            };
            if !place.machine.recycle(now) {
                return;
            }
            let text = format!(
                "takes no new calls, as it reached its `{}`: another one takes its place",
                why.key()
            );
            let node = live.node.clone();
            let owner = pool.owner().clone();
            self.effects.worker_event(
                EventKind::WorkerEnding,
                &id,
                node.as_ref(),
                &owner,
                text,
                None,
            );
            self.publish(name, slot);
            self.schedule(name, slot);
        }
    }

    fn next_to_recycle(&self, name: &PoolName) -> Option<Slot> {
        let pool = self.pools.get(name)?;
        if pool.resolved.plan.recycle == Recycle::default()
            || pool.is_ending()
            || self.missing_dependency(name).is_some()
        {
            return None;
        }
        let spec = &pool.resolved.spec;
        let part = (spec.size / RECYCLED_PART).max(1);
        let at_once = match spec.spares {
            0 => part,
            spares => part.min(spares),
        };
        let staying = pool.places.iter().filter(|(_, place)| !place.leaving);
        let under_way = staying.clone().filter(|(_, place)| !place.is_settled());
        if under_way.count() >= usize::try_from(at_once).unwrap_or(usize::MAX) {
            return None;
        }
        let worn = staying.filter(|(_, place)| place.is_ready() && place.is_settled());
        let mut worn = worn.filter(|(_, place)| place.machine.worn().is_some());
        worn.next().map(|(slot, _)| slot)
    }
}
