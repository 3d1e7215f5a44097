//! What is done with a place: filled, emptied, its worker started somewhere, stopped, given up.

use std::sync::Arc;

use tether_clock::Tick;
use tether_proto::{
    common::{self, WorkerRef},
    node::{self, StopWorker, order::Order},
    worker::EventKind,
};
use tether_store::keys;
use tether_supervise::{Action, GaveUp, Slot as Machine};
use tether_types::{DeathCause, Incarnation, NodeName, Orderer, PoolName, Slot, WorkerId};

use super::{
    Ledger, Timed, millis,
    slots::{Live, Place, Shown},
};

impl Ledger {
    pub(super) fn place(&mut self, pool: &PoolName, slot: Slot) -> Option<&mut Place> {
        let place = self.pools.get_mut(pool)?.places.get_mut(slot)?;
        Some(place)
    }

    /// Ends one worker on an operator's order; false when it does not live. The place stays, and its
    /// restart policy says whether another follows.
    pub(crate) fn stop_worker(&mut self, id: &WorkerId, grace_ms: Option<u64>) -> bool {
        let Some((id, _)) = self.find_worker(id) else {
            return false;
        };
        self.order_stop(
            &id.pool,
            id.slot,
            DeathCause::Ordered(Orderer::Operator),
            grace_ms,
        );
        true
    }

    /// Signals one worker; false when it does not live.
    pub(crate) fn signal_worker(&mut self, id: &WorkerId, signal: i32) -> bool {
        let Some((id, node)) = self.find_worker(id) else {
            return false;
        };
        let order = node::SignalWorker {
            worker: Some(WorkerRef::from(&id)),
            signal,
        };
        self.effects.order(&node, Order::Signal(order));
        if let Some(owner) = self.pools.get(&id.pool).map(|pool| pool.owner().clone()) {
            let text = format!("signal {signal} ordered by an operator");
            self.effects.worker_event(
                EventKind::WorkerSignaled,
                &id,
                Some(&node),
                &owner,
                text,
                None,
            );
        }
        true
    }

    /// Whether an order that waited for the store still stands: a worker that was buried meanwhile
    /// must not be started any more (A1).
    pub(crate) fn still_stands(&self, node: &NodeName, order: &node::Order) -> bool {
        let Some(Order::Start(start)) = &order.order else {
            return true;
        };
        let id = WorkerRef::required(start.worker.as_ref());
        id.is_ok_and(|id| self.find_worker(&id) == Some((id, node.clone())))
    }

    /// Goes on with one place after something happened to its worker.
    pub(super) fn settle_place(&mut self, pool: &PoolName, slot: Slot, now: Tick) {
        self.drop_retired(pool, slot);
        let Some(entry) = self.pools.get(pool) else {
            return;
        };
        if entry.wants(slot) {
            self.fill_place(pool, slot, now);
        } else if entry.rollout.retires(slot) {
            self.drain_place(pool, slot, now);
        } else if entry.holds(slot) {
            self.schedule(pool, slot);
        } else {
            self.stop_place(pool, slot, entry.end_cause(), None);
        }
        self.forget_ended(pool, now);
    }

    /// Makes sure that a place exists and goes on with its life.
    pub(super) fn fill_place(&mut self, pool: &PoolName, slot: Slot, now: Tick) {
        self.drop_vacant(pool, slot);
        // Before every node of before was heard, nobody knows what still runs where (A1).
        if !self.is_blocked(pool, slot)
            && let Some(entry) = self.pools.get_mut(pool)
        {
            let plan = &entry.resolved.plan;
            let seed = now.as_nanos() ^ u64::from(slot);
            let place = entry.places.get_or_insert_with(slot, || {
                let machine = Machine::new(Arc::clone(plan), Incarnation(0), seed, now);
                Place::new(machine)
            });
            if let Some(action) = place.machine.check(now) {
                self.act(pool, slot, action, None, now);
            }
        }
        self.schedule(pool, slot);
    }

    /// Goes on with the end of a worker that leaves nobody in its place.
    fn drain_place(&mut self, pool: &PoolName, slot: Slot, now: Tick) {
        let place = self.place(pool, slot);
        if let Some(action) = place.and_then(|place| place.machine.check(now)) {
            self.act(pool, slot, action, None, now);
        }
        self.schedule(pool, slot);
    }

    /// Whether a place is empty only as far as is known here.
    pub(super) fn is_blocked(&self, pool: &PoolName, slot: Slot) -> bool {
        let place = self.pools.get(pool).and_then(|pool| pool.places.get(slot));
        place.is_none_or(|place| place.live.is_none()) && self.awaits(pool, slot)
    }

    /// Has a place looked at in time.
    pub(super) fn schedule(&mut self, pool: &PoolName, slot: Slot) {
        let blocked = self.is_blocked(pool, slot);
        let Some(entry) = self.pools.get_mut(pool) else {
            return;
        };
        // What is held back has no other deadline than its pool's, and one that may be somebody's that of
        // a node.
        let held = entry.holds(slot) || blocked;
        let Some(place) = entry.places.get_mut(slot) else {
            return;
        };
        let next = place.machine.next_deadline().filter(|_| !held);
        if let Some(next) = next.filter(|&next| next < place.armed) {
            place.armed = self.wheel.arm(Timed::Place(pool.clone(), slot), next);
        }
    }

    /// Stops what is in a place, for good.
    pub(super) fn stop_place(
        &mut self,
        pool: &PoolName,
        slot: Slot,
        cause: DeathCause,
        grace_ms: Option<u64>,
    ) {
        let Some(place) = self.place(pool, slot) else {
            return;
        };
        place.leaving = true;
        // Only so that nothing follows: the order below is the same whatever the worker is at.
        place.machine.stop(cause);
        // Numbered, but no node took it: there is nothing to stop.
        if let Some(live) = place.live.take_if(|live| live.node.is_none()) {
            self.waiting.remove(&(pool.clone(), live.incarnation, slot));
        }
        self.schedule(pool, slot);
        self.order_stop(pool, slot, cause, grace_ms);
        self.publish(pool, slot);
        self.drop_vacant(pool, slot);
    }

    /// Removes a place that was to go with its worker, once that is gone.
    fn drop_vacant(&mut self, pool: &PoolName, slot: Slot) {
        let Some(entry) = self.pools.get_mut(pool) else {
            return;
        };
        let vacant = |place: &Place| place.leaving && place.live.is_none();
        if entry.places.get(slot).is_some_and(vacant) {
            self.unfold(pool, slot);
            self.vacate(pool, slot);
            self.effects.delete(keys::death(pool, slot));
            if let Some(entry) = self.pools.get_mut(pool) {
                entry.places.remove(slot);
            }
        }
    }

    /// Nothing serves at a place, and nothing is done there, whatever an earlier arbiter left.
    fn vacate(&mut self, pool: &PoolName, slot: Slot) {
        self.withdraw(pool, slot);
        self.jobs.on_vacant(pool, slot, &mut self.effects);
    }

    /// Takes a place out of service. What the loss of its node has ended stays as that left it.
    pub(super) fn withdraw(&mut self, pool: &PoolName, slot: Slot) {
        if let Some(place) = self.place(pool, slot)
            && place.shown == Shown::Served
        {
            place.shown = Shown::Nothing;
            self.effects.delete(keys::endpoint(pool, slot));
        }
    }

    pub(super) fn act(
        &mut self,
        pool: &PoolName,
        slot: Slot,
        action: Action,
        died: Option<&WorkerId>,
        now: Tick,
    ) {
        match action {
            // The machine counts the starts of its slot; numbers come from one count for all (A2).
            Action::Spawn { .. } => {
                let incarnation = self.next_incarnation();
                self.vacate(pool, slot);
                if let Some(place) = self.place(pool, slot) {
                    place.gave_up = false;
                    place.live = Some(Live::new(incarnation, None));
                }
                self.waiting.insert((pool.clone(), incarnation, slot));
                self.place_waiting_of(pool, now);
            }
            Action::Stop { grace, why } => self.order_stop(pool, slot, why, Some(millis(grace))),
            Action::GiveUp { why } => self.give_up(pool, slot, why, died),
            Action::Worn { .. } => self.recycle_next(pool, now),
        }
    }

    fn give_up(&mut self, pool: &PoolName, slot: Slot, why: GaveUp, died: Option<&WorkerId>) {
        let Some(entry) = self.pools.get_mut(pool) else {
            return;
        };
        let owner = entry.owner().clone();
        let Some(place) = entry.places.get_mut(slot) else {
            return;
        };
        place.gave_up = true;
        let last = place.last_death().cloned();
        let because = last.as_ref().map_or("", |death| death.detail.as_str());
        let text = match why {
            GaveUp::CannotStart => format!("given up, as it can never start: {because}"),
            GaveUp::NeverReady => "given up: it was started again and again and never became ready; its output says why (`tether logs`)".to_owned(),
            GaveUp::TooOften => "given up: it dies again and again shortly after it became ready; apply or scale the pool to retry".to_owned(),
        };
        let id = died.cloned().unwrap_or_else(|| WorkerId {
            pool: pool.clone(),
            slot,
            incarnation: Incarnation(0),
        });
        self.effects
            .worker_event(EventKind::WorkerCrashLoop, &id, None, &owner, text, last);
    }

    /// Orders the end of the worker in a place, unless that was done and this is not harder: a shim
    /// takes a shorter grace at any time.
    fn order_stop(
        &mut self,
        pool: &PoolName,
        slot: Slot,
        cause: DeathCause,
        grace_ms: Option<u64>,
    ) {
        let Some(entry) = self.pools.get_mut(pool) else {
            return;
        };
        let usual = millis(entry.resolved.plan.stop.grace);
        let live = entry
            .places
            .get_mut(slot)
            .and_then(|place| place.live.as_mut());
        let Some(live) = live else { return };
        let Some(node) = live.node.clone() else {
            return;
        };
        let harder = |told: &StopWorker| grace_ms.is_some_and(|grace| grace < told.grace_ms);
        if live.stop().is_none_or(harder) {
            let order = StopWorker {
                worker: Some(WorkerRef {
                    pool: pool.to_string(),
                    slot,
                    incarnation: live.incarnation.0,
                }),
                cause: common::DeathCause::from(cause).into(),
                grace_ms: grace_ms.unwrap_or(usual),
            };
            live.rare().stop = Some(order.clone());
            self.effects.order(&node, Order::Stop(order));
        }
    }

    /// Tells a node again what it may have missed while it had no stream.
    pub(super) fn repeat_stop(&mut self, node: &NodeName, id: &WorkerId) {
        let live = self
            .place(&id.pool, id.slot)
            .and_then(|place| place.live.as_ref());
        let stop = live
            .filter(|live| live.incarnation == id.incarnation && live.node.as_ref() == Some(node))
            .and_then(|live| live.stop().cloned());
        if let Some(stop) = stop {
            self.effects.order(node, Order::Stop(stop));
        }
    }
}
