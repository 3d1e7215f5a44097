//! Brings pools closer to what is wanted, and forgets those that are over.

use std::collections::BTreeSet;

use tether_clock::Tick;
use tether_proto::worker::EventKind;
use tether_types::{DeathCause, PoolName, Slot};

use super::{Ledger, Pool, pools::Next};
use crate::effects::keys;

impl Ledger {
    pub(super) fn check_pools(&mut self, now: Tick) {
        let over: Vec<_> = self
            .pools
            .values()
            .filter(|pool| !pool.is_ending())
            .filter(|pool| {
                pool.permission(self.sessions.get(pool.owner()))
                    .is_some_and(|until| now >= until)
            })
            .map(|pool| pool.name().clone())
            .collect();
        // The shims have ended the workers by now; this is for what is left of the pools.
        self.end_pools_in_order(&over, DeathCause::OwnerGone, Some(0), now);
        let due = |pool: &Pool| {
            let due = pool.next_deadline(self.sessions.get(pool.owner()));
            due.is_some_and(|due| due <= now)
        };
        let due: Vec<_> = self.pools.values().filter(|pool| due(pool)).collect();
        let due: Vec<_> = due.iter().map(|pool| pool.name().clone()).collect();
        for name in due {
            if self.pools.get(&name).is_some_and(|pool| pool.held) {
                self.release(&name, now);
            }
            self.place_waiting_of(&name, now);
        }
    }

    /// The look at a place that was armed for `at`.
    pub(super) fn check_place(&mut self, pool: &PoolName, slot: Slot, at: Tick, now: Tick) {
        let place = self.place(pool, slot);
        let Some(place) = place.filter(|place| place.armed == at) else {
            return;
        };
        place.armed = Tick::NEVER;
        let due = place.machine.next_deadline().is_some_and(|due| due <= now);
        if !due {
            self.schedule(pool, slot);
        } else if !self.is_blocked(pool, slot) {
            self.settle_place(pool, slot, now);
        }
        // Else it is gone through when nobody else can have it any more.
    }

    /// Brings every pool closer to what is wanted: something changed that concerns all.
    pub(super) fn fill_all(&mut self, now: Tick) {
        let names: Vec<_> = self.pools.keys().cloned().collect();
        for name in names {
            self.fill(&name, now);
        }
    }

    /// Brings places and workers closer to what is wanted.
    pub(super) fn fill(&mut self, name: &PoolName, now: Tick) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        let size = pool.size();
        let surplus = pool.places.slots().filter(|&slot| slot >= size);
        let surplus: BTreeSet<_> = surplus.chain(pool.rollout.places()).collect();
        let slots: Vec<_> = surplus.into_iter().chain(0..size).collect();
        self.lose_jobs_of_nobody(name);
        for slot in slots {
            self.settle_place(name, slot, now);
        }
        self.publish_pool(name);
        self.place_waiting_of(name, now);
        self.recycle_next(name, now);
        self.roll(name, now);
        self.forget_ended(name, now);
    }

    /// Forgets a pool that was ended and has no worker left, or makes it what it is to become.
    pub(super) fn forget_ended(&mut self, name: &PoolName, now: Tick) {
        let done = |pool: &Pool| pool.is_ending() && pool.places.is_empty();
        // A node that was not heard may still have a worker of it.
        if !self.pools.get(name).is_some_and(done) || self.awaits_any_of(name) {
            return;
        }
        let Some(pool) = self.pools.remove(name) else {
            return;
        };
        let owner = pool.owner().clone();
        self.forget_jobs(name, &owner);
        let gone = pool.resolved;
        match pool.next {
            Some(Next {
                resolved,
                owner,
                contact,
            }) => {
                let mut next = Pool::new(resolved, owner, contact);
                // It is the same pool to whoever limited its starts: the last ones count on (A5).
                next.starts = pool.starts;
                next.starts.change(next.resolved.spec.starts_per_second);
                self.pools.insert(name.clone(), next);
                self.pool_changed(name, "applied", now);
            }
            None => {
                self.effects.delete(keys::pool(name));
                self.effects.delete(tether_store::keys::pool(name));
                let text = format!("pool `{name}` is gone");
                self.effects
                    .owner_event(EventKind::PoolChanged, &owner, text);
            }
        }
        self.release_dependencies(&gone, now);
    }
}
