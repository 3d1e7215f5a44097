//! Orders as they are told, and what they are to the endpoint set.

use std::{
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use tether_breaker::State;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_endpoints::{Order, QueueLimits, Scope};
use tether_proto::{
    Failure,
    common::WorkerRef,
    gateway::{
        DrainScope, Limits, PinnedKey, QueueLimits as ToldQueue, RouteState, StandingOrder,
        TailRequest, WorkerLimits, drain_scope, limits, standing_order,
    },
};
use tether_types::{Incarnation, NodeName, PoolName, Reason, WorkerId};

use crate::{directory::Directory, record::Filter};

use super::{Control, LONGEST, board, refuse};

/// How long an order is to last.
pub(super) fn ttl(ms: u64) -> Result<Duration, Failure> {
    let ttl = Duration::from_millis(ms);
    match ttl {
        Duration::ZERO => Err(refuse(
            "a worker is left alone for a while: say for how long with `ttl_ms`, as in 600000",
        )),
        ttl if ttl > LONGEST => Err(refuse(format!(
            "a worker may be left alone for {LONGEST:?} at most, and not for {ttl:?}: drain it, where it is to get no calls any more"
        ))),
        ttl => Ok(ttl),
    }
}

/// The key of calls that belong together.
pub(super) fn key(text: &str) -> Result<Vec<u8>, Failure> {
    match text {
        "" => Err(refuse(
            "there is no key: it is what calls have in `tether-affinity`",
        )),
        text => Ok(text.into()),
    }
}

/// Which calls somebody wants to see.
pub(super) fn filter(asked: &TailRequest) -> Result<Filter, Failure> {
    let pool = match asked.pool.as_str() {
        "" => None,
        name => Some(PoolName::new(name).map_err(|error| refuse(error.to_string()))?),
    };
    let worker = asked
        .worker
        .as_ref()
        .map(|worker| WorkerRef::required(Some(worker)));
    for outcome in &asked.outcomes {
        if !Filter::OUTCOMES.contains(&outcome.as_str()) {
            let known = Filter::OUTCOMES.join(", ");
            let text = format!("no call ends with the outcome `{outcome}`, only with {known}");
            return Err(refuse(text));
        }
    }
    Ok(Filter {
        pool,
        worker: worker.transpose()?,
        outcomes: asked.outcomes.clone(),
        least: Duration::from_millis(asked.min_duration_ms),
        failed: asked.failed,
    })
}

/// An order as it stands; `None` for one that undoes another.
pub(super) fn told(order: &Order) -> Option<standing_order::Order> {
    use standing_order::Order as Told;
    let scope = |scope| Told::Drained(DrainScope { scope: Some(scope) });
    let limits = |of| Told::Limits(Limits { of: Some(of) });
    Some(match order {
        Order::Drain(Scope::Worker(worker)) => scope(drain_scope::Scope::Worker(worker.into())),
        Order::Drain(Scope::Node(node)) => scope(drain_scope::Scope::Node(node.to_string())),
        Order::Drain(Scope::Pool(pool)) => scope(drain_scope::Scope::Pool(pool.to_string())),
        Order::Eject(worker, _) => Told::Ejected(worker.into()),
        Order::Pin(key, worker) => Told::Pinned(PinnedKey {
            pool: worker.pool.to_string(),
            key: String::from_utf8_lossy(key).into_owned(),
            worker: Some(worker.into()),
        }),
        Order::Capacity(worker, Some(capacity), _) => limits(limits::Of::Worker(WorkerLimits {
            worker: Some(worker.into()),
            capacity: Some(capacity.get()),
        })),
        Order::Queue(pool, queue, _) if *queue != QueueLimits::default() => {
            limits(limits::Of::Queue(ToldQueue {
                pool: pool.to_string(),
                max_calls: queue.most.map(|most| most as u64),
                max_wait_ms: queue
                    .wait
                    .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            }))
        }
        Order::Capacity(..)
        | Order::Queue(..)
        | Order::Undrain(_)
        | Order::Restore(_)
        | Order::Unpin(..) => return None,
    })
}

/// An order, for the log.
pub(super) fn in_words(order: &Order) -> String {
    let scope = |scope: &Scope| match scope {
        Scope::Worker(worker) => worker.to_string(),
        Scope::Node(node) => format!("node {node}"),
        Scope::Pool(pool) => format!("pool {pool}"),
    };
    let key = String::from_utf8_lossy;
    match order {
        Order::Drain(whom) => format!("drain {}", scope(whom)),
        Order::Undrain(whom) => format!("undrain {}", scope(whom)),
        Order::Eject(worker, _) => format!("eject {worker}"),
        Order::Restore(worker) => format!("restore {worker}"),
        Order::Pin(pinned, worker) => format!("pin `{}` to {worker}", key(pinned)),
        Order::Unpin(pinned, pool) => format!("unpin `{}` of pool {pool}", key(pinned)),
        Order::Capacity(worker, Some(capacity), _) => format!("capacity {capacity} of {worker}"),
        Order::Capacity(worker, None, _) => format!("capacity of {worker} as it is told"),
        Order::Queue(pool, QueueLimits { most, wait }, _) => {
            let most = most.map_or_else(|| "as configured".to_owned(), |most| most.to_string());
            let wait = wait.map_or_else(|| "as configured".to_owned(), |wait| format!("{wait:?}"));
            format!("queue of pool {pool}: max_calls {most}, max_wait {wait}")
        }
    }
}

impl Control {
    /// The incarnation that an order is for.
    pub(super) fn living(&self, worker: Option<&WorkerRef>) -> Result<WorkerId, Failure> {
        let asked = WorkerRef::required(worker)?;
        let known = self.0.forwarder.directory.lock();
        let living = known.endpoints.living(&asked.pool, asked.slot);
        match living {
            Some(living) if [Incarnation(0), living.incarnation].contains(&asked.incarnation) => {
                Ok(living.clone())
            }
            Some(living) => {
                let text = format!(
                    "worker `{asked}` is gone, `{living}` lives in its place: an order for one is none for another, so give that one its own where you mean it"
                );
                Err(Failure::new(Reason::UnknownWorker, text))
            }
            None => {
                let (pool, slot) = (&asked.pool, asked.slot);
                let text = format!(
                    "this gateway knows no worker `{pool}/{slot}`; `tether gateway routes` shows those it knows"
                );
                Err(Failure::new(Reason::UnknownWorker, text))
            }
        }
    }

    /// A pool that is known.
    pub(super) fn pool(&self, name: &str) -> Result<PoolName, Failure> {
        let pool = PoolName::new(name).map_err(|error| refuse(error.to_string()))?;
        match self.0.forwarder.directory.lock().endpoints.knows(&pool) {
            true => Ok(pool),
            false => {
                let text = format!(
                    "this gateway knows no pool `{pool}`; `tether gateway routes` shows those it knows"
                );
                Err(Failure::new(Reason::UnknownPool, text))
            }
        }
    }

    /// Who is to be drained; `to_come` where there has to be anyone.
    pub(super) fn scope(&self, told: Option<&DrainScope>, there: bool) -> Result<Scope, Failure> {
        let scope = told.and_then(|told| told.scope.as_ref());
        match scope {
            None => Err(refuse(
                "nothing says who is meant: name a worker, a node or a pool",
            )),
            Some(drain_scope::Scope::Worker(worker)) => {
                Ok(Scope::Worker(self.living(Some(worker))?))
            }
            Some(drain_scope::Scope::Pool(pool)) => Ok(Scope::Pool(self.pool(pool)?)),
            Some(drain_scope::Scope::Node(name)) => {
                let node = NodeName::new(name).map_err(|error| refuse(error.to_string()))?;
                let scope = Scope::Node(node);
                let known = self.0.forwarder.directory.lock();
                let is_empty = known.endpoints.within(&scope).next().is_none();
                if there && is_empty {
                    let text = format!(
                        "this gateway knows no worker on a node `{name}`; `tether gateway routes` shows where workers are"
                    );
                    return Err(Failure::new(Reason::UnknownWorker, text));
                }
                drop(known);
                Ok(scope)
            }
        }
    }

    /// Limits that are to be set.
    pub(super) fn limits(
        &self,
        told: Option<&Limits>,
        until: Option<Tick>,
    ) -> Result<Order, Failure> {
        match told.and_then(|told| told.of.as_ref()) {
            None => Err(refuse(
                "nothing says whose limits are meant: name a pool, or a worker",
            )),
            Some(limits::Of::Queue(queue)) => {
                let pool = self.pool(&queue.pool)?;
                let most = queue
                    .max_calls
                    .map(|most| usize::try_from(most).unwrap_or(usize::MAX));
                let wait = queue.max_wait_ms.map(Duration::from_millis);
                Ok(Order::Queue(pool, QueueLimits { most, wait }, until))
            }
            Some(limits::Of::Worker(limit)) => {
                let worker = self.living(limit.worker.as_ref())?;
                let capacity = match limit.capacity {
                    None => None,
                    Some(capacity) => Some(NonZeroU32::new(capacity).ok_or_else(|| {
                        refuse("a worker with capacity 0 would have its calls wait for nothing: drain it, or eject it for a while")
                    })?),
                };
                Ok(Order::Capacity(worker, capacity, until))
            }
        }
    }

    /// An order that holds, as another process told it, and until when.
    pub(super) fn read(
        &self,
        standing: &StandingOrder,
    ) -> Result<(Order, Option<SystemTime>), Failure> {
        use standing_order::Order as Told;
        let ms = standing.until_unix_ms;
        let until = (ms > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        let tick = until.map(|until| {
            let left = until.duration_since(SystemTime::now());
            BootClock.now() + left.unwrap_or_default()
        });
        let order = match &standing.order {
            None => return Err(refuse("this version does not know such an order")),
            Some(Told::Drained(scope)) => Order::Drain(self.scope(Some(scope), false)?),
            Some(Told::Ejected(worker)) => {
                let until = tick.ok_or_else(|| refuse("nothing says when it ends"))?;
                Order::Eject(self.living(Some(worker))?, until)
            }
            Some(Told::Pinned(pinned)) => {
                Order::Pin(key(&pinned.key)?, self.living(pinned.worker.as_ref())?)
            }
            Some(Told::Limits(limits)) => self.limits(Some(limits), tick)?,
        };
        Ok((order, until))
    }

    /// How many workers of a pool take calls.
    pub(super) fn ready(&self, pool: &PoolName) -> u32 {
        let known = self.0.forwarder.directory.lock();
        let breaker = known.endpoints.pool_breaker(pool);
        if breaker.is_some_and(|breaker| !matches!(breaker.state, State::Closed { .. })) {
            return 0;
        }
        let all = known.endpoints.snapshot_of(pool, BootClock.now());
        let ready = all
            .iter()
            .filter(|view| matches!(board::state(view), RouteState::Ready | RouteState::Slow));
        u32::try_from(ready.count()).unwrap_or(u32::MAX)
    }
}

impl Directory {
    /// Carries an order out; answers whether it changes anything.
    pub(super) fn order(&self, order: Order) -> bool {
        let changes = {
            let mut known = self.lock();
            let changes = known.endpoints.order(order);
            known.settle_all();
            changes
        };
        self.ordered.send_modify(|count| *count += 1);
        self.moved();
        changes
    }

    /// When an order runs out.
    pub(super) fn next_order_deadline(&self) -> Option<Tick> {
        self.lock().endpoints.next_order_deadline()
    }

    /// Lets go of orders that have run out; answers whether any has.
    pub(super) fn check_orders(&self) -> bool {
        let expired = {
            let mut known = self.lock();
            let now = tether_clock::Clock::now(&tether_clock::BootClock);
            let expired = known.endpoints.check_orders(now);
            known.settle_all();
            expired
        };
        self.moved();
        expired
    }
}
