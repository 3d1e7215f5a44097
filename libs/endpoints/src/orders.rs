//! What people on call have ordered of one gateway: who is given no calls, which key is whose, and other limits.
//!
//! An order binds an incarnation, never its place: whoever follows has done nothing that it was given for. A drained node
//! or pool is the exception, as it is drained for all that is or comes there. What discovery tells changes no order, and
//! an order nothing that discovery tells: the stricter of the two holds (E11).

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::Duration,
};

use tether_clock::Tick;
use tether_types::{NodeName, PoolName, Slot, WorkerId};

use crate::{Endpoint, Endpoints, pool::Live};

/// Who is drained.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// One incarnation.
    Worker(WorkerId),
    /// All workers of a node, whenever they come.
    Node(NodeName),
    /// All workers of a pool, whenever they come.
    Pool(PoolName),
}

impl Scope {
    /// Whether it has this worker in it.
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Worker(worker) => *worker == endpoint.worker,
            Self::Node(node) => endpoint.node.as_ref() == Some(node),
            Self::Pool(pool) => *pool == endpoint.worker.pool,
        }
    }
}

/// Something that is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// No new calls for these.
    Drain(Scope),
    /// Not any more.
    Undrain(Scope),
    /// This one is left alone until then.
    Eject(WorkerId, Tick),
    /// It is given calls, though its own calls may have had it left alone.
    Restore(WorkerId),
    /// Calls of this key go to this incarnation while it lives.
    Pin(Vec<u8>, WorkerId),
    /// Not any more.
    Unpin(Vec<u8>, PoolName),
    /// This one serves so many calls at once, whatever discovery tells; `None` for as many as that.
    Capacity(WorkerId, Option<NonZeroU32>, Option<Tick>),
    /// Calls of this pool wait so.
    Queue(PoolName, QueueLimits, Option<Tick>),
}

/// How calls of a pool wait; `None` for as those of any pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueLimits {
    /// How many may.
    pub most: Option<usize>,
    /// For how long.
    pub wait: Option<Duration>,
}

/// The orders that hold.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    drained: BTreeSet<Scope>,
    ejected: BTreeMap<WorkerId, Tick>,
    capacities: BTreeMap<WorkerId, (NonZeroU32, Option<Tick>)>,
    pins: BTreeMap<(PoolName, Vec<u8>), WorkerId>,
    queues: BTreeMap<PoolName, (QueueLimits, Option<Tick>)>,
}

/// What the orders say of one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) drained: bool,
    pub(crate) ejected: Option<Tick>,
    pub(crate) capacity: Option<NonZeroU32>,
}

impl Orders {
    /// What holds for a worker.
    pub(crate) fn of(&self, endpoint: &Endpoint) -> Bound {
        let capacity = self.capacities.get(&endpoint.worker);
        Bound {
            drained: self.drained.iter().any(|scope| scope.has(endpoint)),
            ejected: self.ejected.get(&endpoint.worker).copied(),
            capacity: capacity.map(|(capacity, _)| *capacity),
        }
    }

    fn queue(&self, pool: &PoolName) -> QueueLimits {
        let limits = self.queues.get(pool).map(|(limits, _)| *limits);
        limits.unwrap_or_default()
    }

    fn stands(&self, order: &Order) -> bool {
        match order {
            Order::Drain(scope) => self.drained.contains(scope),
            Order::Eject(worker, _) => self.ejected.contains_key(worker),
            Order::Pin(key, worker) => {
                let pinned = self.pins.get(&(worker.pool.clone(), key.clone()));
                pinned == Some(worker)
            }
            Order::Capacity(worker, ..) => self.capacities.contains_key(worker),
            Order::Queue(pool, ..) => self.queues.contains_key(pool),
            Order::Undrain(_) | Order::Restore(_) | Order::Unpin(..) => false,
        }
    }

    pub(crate) fn pins(&self, pool: &PoolName) -> BTreeMap<Vec<u8>, WorkerId> {
        let pins = self.pins.iter().filter(|((of, _), _)| of == pool);
        let pins = pins.map(|((_, key), worker)| (key.clone(), worker.clone()));
        pins.collect()
    }

    /// Takes an order; answers whether it changes what holds.
    fn take(&mut self, order: Order) -> bool {
        match order {
            Order::Drain(scope) => self.drained.insert(scope),
            Order::Undrain(scope) => self.drained.remove(&scope),
            Order::Eject(worker, until) => self.ejected.insert(worker, until) != Some(until),
            Order::Restore(worker) => self.ejected.remove(&worker).is_some(),
            Order::Pin(key, worker) => {
                let before = self.pins.insert((worker.pool.clone(), key), worker.clone());
                before != Some(worker)
            }
            Order::Unpin(key, pool) => self.pins.remove(&(pool, key)).is_some(),
            Order::Capacity(worker, capacity, until) => {
                set(&mut self.capacities, worker, capacity, until)
            }
            Order::Queue(pool, limits, until) => {
                let limits = (limits != QueueLimits::default()).then_some(limits);
                set(&mut self.queues, pool, limits, until)
            }
        }
    }

    /// Lets go of what has run out; answers whether anything has.
    fn expire(&mut self, now: Tick) -> bool {
        let lasts = |until: &Option<Tick>| until.is_none_or(|until| now < until);
        let before = self.ejected.len() + self.capacities.len() + self.queues.len();
        self.ejected.retain(|_, until| now < *until);
        self.capacities.retain(|_, (_, until)| lasts(until));
        self.queues.retain(|_, (_, until)| lasts(until));
        before != self.ejected.len() + self.capacities.len() + self.queues.len()
    }

    fn next_deadline(&self) -> Option<Tick> {
        let ejected = self.ejected.values().copied();
        let capacities = self.capacities.values().filter_map(|(_, until)| *until);
        let queues = self.queues.values().filter_map(|(_, until)| *until);
        ejected.chain(capacities).chain(queues).min()
    }

    /// Incarnations that never come back take their orders with them.
    fn forget(&mut self, is_gone: impl Fn(&WorkerId) -> bool) {
        self.drained
            .retain(|scope| !matches!(scope, Scope::Worker(worker) if is_gone(worker)));
        self.ejected.retain(|worker, _| !is_gone(worker));
        self.capacities.retain(|worker, _| !is_gone(worker));
        self.pins.retain(|_, pinned| !is_gone(pinned));
    }
}

fn set<K: Ord, V: PartialEq>(
    limits: &mut BTreeMap<K, (V, Option<Tick>)>,
    whose: K,
    limit: Option<V>,
    until: Option<Tick>,
) -> bool {
    match limit {
        None => limits.remove(&whose).is_some(),
        Some(limit) => match limits.get_mut(&whose) {
            Some(known) if known.0 == limit && known.1 == until => false,
            _ => limits.insert(whose, (limit, until)).is_none_or(|_| true),
        },
    }
}

impl Endpoints {
    /// Somebody orders something. Answers whether it changes what holds; waiting calls may have somewhere to go then,
    /// as `next` says.
    pub fn order(&mut self, order: Order) -> bool {
        let mut changes = false;
        if let Order::Restore(worker) = &order {
            let pool = self.pools.get_mut(&worker.pool);
            let live = pool.and_then(|pool| pool.incarnate_mut(worker));
            changes = live.is_some_and(|live| live.breaker.close());
        }
        changes |= self.orders.take(order);
        if changes {
            self.obey();
        }
        changes
    }

    /// Only time passed. Answers whether an order has run out with it.
    pub fn check_orders(&mut self, now: Tick) -> bool {
        let expired = self.orders.expire(now);
        if expired {
            self.obey();
        }
        expired
    }

    /// When `check_orders` will change something by itself.
    pub fn next_order_deadline(&self) -> Option<Tick> {
        self.orders.next_deadline()
    }

    /// Whether what was ordered holds: it was not undone, has not run out, and its worker is not dead.
    pub fn stands(&self, order: &Order) -> bool {
        self.orders.stands(order)
    }

    /// Workers that an order to drain is for.
    pub fn within<'a>(&'a self, scope: &'a Scope) -> impl Iterator<Item = &'a Endpoint> {
        let living = self.pools.values().flat_map(|pool| pool.lives());
        let endpoints = living.map(|live| &live.endpoint);
        endpoints.filter(|endpoint| scope.has(endpoint))
    }

    /// How many calls are under way on workers that an order to drain is for, those that have left alive too.
    pub fn under_way(&self, scope: &Scope) -> u64 {
        let living = self.pools.values().flat_map(|pool| pool.lives());
        let living = living.map(|live| (&live.endpoint, live.in_flight));
        let departed = self.pools.values().flat_map(|pool| pool.departed.values());
        let departed = departed.map(|left| (&left.endpoint, left.in_flight));
        let within = living
            .chain(departed)
            .filter(|(endpoint, _)| scope.has(endpoint));
        within.map(|(_, in_flight)| u64::from(in_flight)).sum()
    }

    /// How many calls of a pool may wait.
    pub fn most_waiting(&self, pool: &PoolName) -> usize {
        self.orders.queue(pool).most.unwrap_or(self.most_waiting)
    }

    /// How long calls of a pool wait, where that is ordered.
    pub fn ordered_wait(&self, pool: &PoolName) -> Option<Duration> {
        self.orders.queue(pool).wait
    }

    /// The incarnation that lives in a place.
    pub fn living(&self, pool: &PoolName, slot: Slot) -> Option<&WorkerId> {
        let place = self.pools.get(pool)?.slots.get(&slot)?;
        place.live.as_ref().map(|live| &live.endpoint.worker)
    }

    /// This incarnation died, whether its pool is still known or not.
    pub(crate) fn forget_orders_of(&mut self, dead: &WorkerId) {
        self.orders.forget(|worker| worker == dead);
        self.untie_pins(&dead.pool);
    }

    /// No incarnation lower than that lives in this place any more, whether anybody told its death or not.
    pub(crate) fn forget_orders_before(&mut self, next: &WorkerId) {
        self.orders.forget(|worker| {
            (&worker.pool, worker.slot) == (&next.pool, next.slot)
                && worker.incarnation < next.incarnation
        });
        self.untie_pins(&next.pool);
    }

    /// Lets go of keys that no order ties any more.
    fn untie_pins(&mut self, name: &PoolName) {
        if let Some(pool) = self.pools.get_mut(name)
            && !pool.pins.is_empty()
        {
            pool.pins = self.orders.pins(name);
        }
    }

    fn obey(&mut self) {
        for (name, pool) in &mut self.pools {
            pool.pins = self.orders.pins(name);
            pool.moved = true;
            for live in pool.lives_mut() {
                live.bound = self.orders.of(&live.endpoint);
            }
        }
    }

    /// A worker came or changed.
    pub(crate) fn bind(&mut self, worker: &WorkerId) {
        let Some(pool) = self.pools.get_mut(&worker.pool) else {
            return;
        };
        if let Some(live) = pool.incarnate_mut(worker) {
            live.bound = self.orders.of(&live.endpoint);
        }
    }
}

impl Live {
    /// Whether it takes no new calls, and finishes those it has.
    pub(crate) fn drains(&self) -> bool {
        self.endpoint.draining || self.bound.drained || self.fate.ends
    }

    /// How many calls it serves at once.
    pub(crate) fn capacity(&self) -> Option<NonZeroU32> {
        self.bound.capacity.or(self.endpoint.capacity)
    }
}
