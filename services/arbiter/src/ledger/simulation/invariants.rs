//! What must hold at every step, and what must hold when the dust has settled.

use std::{collections::BTreeMap, time::Duration};

use prost::Message as _;
use tether_clock::Tick;
use tether_proto::{
    common::{Endpoint, WorkerRef},
    discovery::NodeLoss,
    node::{self, order::Order},
    worker::EventKind,
};
use tether_store::keys::ServeKey;
use tether_supervise::Phase;
use tether_types::{DeathCause, NodeName, WorkerId};

use super::{
    node::Worker,
    owner::POOLS,
    world::{STEP, World},
};
use crate::{effects::Effects, ledger::placing::Spread};

const SECOND: Duration = Duration::from_secs(1);

/// Beats on their way, and the quarter of a timeout between two of them.
const LAG: Duration = Duration::from_millis(800);

/// A message to a node, and the moments until it is acted on.
const ON_ITS_WAY: Duration = Duration::from_millis(120);

/// What a connected node may wait for word: its lease, and a reconnection.
const LEASE: Duration = Duration::from_millis(2_600);

impl World {
    fn pool_of(&self, id: &WorkerId) -> (&'static str, usize, Duration) {
        let (name, _, owner, timeout, _) = POOLS
            .iter()
            .find(|pool| pool.0 == id.pool.as_str())
            .unwrap();
        (self.mode_of(name), *owner, Duration::from_millis(*timeout))
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.nodes.iter().flat_map(|node| &node.workers)
    }

    fn alive(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.workers().filter(|(_, worker)| worker.alive)
    }

    pub(super) fn check(&self) {
        let mut slots = BTreeMap::new();
        for (id, worker) in self.alive() {
            if let Some(other) = slots.insert((&id.pool, id.slot), id) {
                panic!("A1: {other} and {id} live at the same time");
            }
            self.check_permission(id, worker);
        }
        for (id, count) in &self.died {
            assert_eq!(
                *count, 1,
                "A3: the death of {id} is recorded more than once"
            );
        }
        self.check_places();
        self.check_spread();
        self.check_innocence();
        self.check_calls();
        self.check_jobs();
        for (name, node) in &self.ledger.nodes {
            let is_held = !node.lease.remaining(self.now).is_zero();
            assert!(
                is_held || node.loss.is_some(),
                "A8: the lease of {name} is over, and it is not lost"
            );
        }
        for endpoint in self.endpoints() {
            let node = self.ledger.nodes.get(&endpoint.node.parse().unwrap());
            assert!(
                node.is_some_and(|node| node.loss.is_none()),
                "A8: {endpoint:?} is served by a node without a lease"
            );
            let id = WorkerRef::required(endpoint.worker.as_ref()).unwrap();
            assert!(!self.died.contains_key(&id), "A3: {id} is dead and served");
        }
    }

    /// What a pool knows of where its workers are is what nodes have.
    fn check_spread(&self) {
        let mut spread: BTreeMap<_, Spread> = BTreeMap::new();
        for node in self.ledger.nodes.values() {
            let mut workers = BTreeMap::<_, usize>::new();
            for id in node.workers.iter() {
                *workers.entry(id.pool).or_default() += 1;
            }
            for (pool, count) in workers {
                spread.entry(pool).or_default().change(0, count);
            }
        }
        for (name, pool) in &self.ledger.pools {
            let spread = spread.remove(name).unwrap_or_default();
            assert_eq!(pool.spread, spread, "where {name} is");
        }
    }

    /// A10: each worker is where it may be, and has what it asks for to itself.
    fn check_places(&self) {
        for node in &self.nodes {
            let mut taken = BTreeMap::new();
            let workers = node.workers.iter().filter(|(_, worker)| worker.alive);
            for (id, worker) in workers {
                let wanted = self.wishes.placement(id.pool.as_str());
                let in_zone = wanted
                    .labels
                    .get("zone")
                    .is_none_or(|zone| zone == node.zone);
                assert!(
                    in_zone,
                    "A10: {id} is on {} in zone {}",
                    node.name, node.zone
                );
                let has: usize = worker
                    .units
                    .iter()
                    .map(|resource| resource.units.len())
                    .sum();
                let asked = wanted
                    .resources
                    .get("gpu")
                    .map_or(0, |&count| count as usize);
                assert_eq!(has, asked, "A10: {id} has {:?}", worker.units);
                for &unit in worker.units.iter().flat_map(|resource| &resource.units) {
                    assert!(
                        unit < node.gpus,
                        "A10: {id} has unit {unit} of {}",
                        node.gpus
                    );
                    if let Some(other) = taken.insert(unit, id) {
                        panic!("A10: {other} and {id} on {} share unit {unit}", node.name);
                    }
                }
            }
        }
    }

    /// What discovery takes to serve.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        let entries = self.store.range("serve/endpoints/".to_owned()..);
        let of_endpoint = |key: &str| matches!(ServeKey::parse(key), Some(ServeKey::Endpoint(..)));
        let entries = entries.filter(move |(key, _)| of_endpoint(key));
        let endpoints = entries.map(|(_, (value, _))| Endpoint::decode(&**value).unwrap());
        endpoints.filter(|endpoint| {
            let loss = self.store.get(&format!("serve/losses/{}", endpoint.node));
            let loss = loss.map(|(value, _)| NodeLoss::decode(&**value).unwrap());
            let incarnation = endpoint.worker.as_ref().unwrap().incarnation;
            loss.is_none_or(|loss| incarnation > loss.up_to_incarnation)
        })
    }

    /// When the first thing is due, by looking at all of them.
    pub(super) fn first_due(&self) -> Tick {
        let ledger = &self.ledger;
        let places = ledger.pools.values().flat_map(|pool| {
            let places = pool
                .places
                .iter()
                .filter(|(slot, _)| !pool.holds(*slot) && !ledger.is_blocked(pool.name(), *slot));
            places.filter_map(|(_, place)| place.machine.next_deadline())
        });
        let pools = ledger.pools.values();
        let pools = pools.filter_map(|pool| pool.next_deadline(ledger.sessions.get(pool.owner())));
        let sessions = ledger.sessions.values();
        let sessions = sessions.filter_map(super::super::Session::next_deadline);
        let nodes = ledger
            .nodes
            .values()
            .filter_map(|node| node.next_deadline());
        let all = places.chain(pools).chain(sessions).chain(nodes);
        all.min().unwrap_or(Tick::NEVER)
    }

    /// Whether the pool of a worker got another mode of which its node need not have heard.
    fn may_not_know(&self, id: &WorkerId) -> bool {
        let Some(&switched) = self.switched.get(id.pool.as_str()) else {
            return false;
        };
        let node = self.nodes.iter();
        let mut node = node.filter(|node| node.workers.contains_key(id));
        node.any(|node| {
            let connected = node.connected;
            connected == Tick::NEVER || self.now < connected.max(switched) + LAG
        })
    }

    /// P1: no worker outlives what its policy grants after the last word of its owner.
    fn check_permission(&self, id: &WorkerId, worker: &Worker) {
        let (mode, owner, timeout) = self.pool_of(id);
        let owner = &self.owners[owner];
        let applied = self
            .applied
            .get(id.pool.as_str())
            .copied()
            .unwrap_or_default();
        let word = owner.contact.max(applied).max(self.restarted);
        let end = match mode {
            // Applied after the goodbye, it is wanted without an owner.
            "distributed" => owner
                .left
                .filter(|left| *left > applied)
                .map(|left| left.max(self.restarted) + timeout + LEASE),
            _ => Some(word + timeout + STEP + STEP),
        };
        // Of another policy it hears from its node; until then it keeps what it was told.
        let end = match self.may_not_know(id) && worker.owner_deadline == Tick::NEVER {
            true => end.map(|end| end.max(worker.node_deadline + STEP)),
            false => end,
        };
        assert!(
            end.is_none_or(|end| self.now <= end),
            "P1: {id} outlives its owner's word: {worker:?}"
        );
        if mode == "coupled" {
            // Its shim watches the process, or was told of none and waits for the deadline. One of a
            // pool that was coupled a moment ago, or whose owner has said goodbye, has other orders; and one that is
            // told to watch a process that is gone already can only end then.
            let watched = worker.owner_pid.filter(|_| worker.kill_on_owner_exit);
            let gone = watched.is_some_and(|pid| !owner.running || owner.pid != pid);
            assert!(
                !gone || self.now <= owner.changed.max(worker.watches) + STEP,
                "P1: {id} outlives its owner's process"
            );
        }
    }

    /// P3: no worker of a connected node ends for want of its owner's word while there is one.
    fn check_innocence(&self) {
        for node in &self.nodes {
            for (id, worker) in node
                .workers
                .iter()
                .filter(|(_, worker)| worker.died_at == self.now)
            {
                let (mode, owner, timeout) = self.pool_of(id);
                let owner = &self.owners[owner];
                let switched = self.switched.get(id.pool.as_str()).copied();
                let began = node.connected.max(self.restarted);
                let began = began.max(switched.unwrap_or_default());
                let settled = began + timeout + LAG < self.now;
                // A word that is still on its way to the node does not help it.
                let fresh = owner.contact + timeout > self.now + LAG
                    && self.now.since(owner.contact) > ON_ITS_WAY;
                let blamed = worker.death == Some(DeathCause::OwnerGone);
                assert!(
                    !(mode == "independent" && settled && fresh && blamed),
                    "P3: {id} ended {:?} after its owner's word",
                    self.now.since(owner.contact)
                );
                let starved =
                    worker.death == Some(DeathCause::LeaseExpired) && node.agent.is_some();
                assert!(
                    !(starved && settled && !node.cut),
                    "P3: {id} ended for want of a lease on a connected node"
                );
            }
        }
    }

    /// P3, as seen from the orders: no independent pool is told to end before its time.
    pub(super) fn check_orders(&self, node: &NodeName, orders: &[node::Order]) {
        for order in orders.iter().filter_map(|order| order.order.as_ref()) {
            if let Order::Stop(stop) = order
                && stop.cause().to_cause(None, None) == DeathCause::OwnerGone
            {
                let id = WorkerId::try_from(stop.worker.as_ref().unwrap()).unwrap();
                let (mode, owner, timeout) = self.pool_of(&id);
                let contact = self.owners[owner].contact;
                let early = mode == "independent" && self.now < contact + timeout;
                // An order is repeated to a node that comes back, whatever its owner did since.
                let repeated = self
                    .ledger
                    .pools
                    .get(&id.pool)
                    .is_none_or(super::super::Pool::is_ending);
                assert!(
                    !early || repeated,
                    "P3: {id} on {node} is told to end before its time"
                );
            }
        }
    }

    /// A5: what is ordered to start may be started.
    pub(super) fn check_starts(&mut self, effects: &Effects) {
        let orders = effects.orders.values().flatten();
        for order in orders.filter_map(|order| order.order.as_ref()) {
            let Order::Start(start) = order else { continue };
            let id = WorkerRef::required(start.worker.as_ref()).unwrap();
            let Some(pool) = self.ledger.pools.get(&id.pool) else {
                continue;
            };
            for other in &pool.resolved.depends_on {
                // As of what was written before this moment, or with it.
                let served = |key: &String| key.starts_with(&format!("serve/endpoints/{other}/"));
                let written = |(key, value): (&String, &Option<_>)| served(key) && value.is_some();
                let of_other = |endpoint: Endpoint| {
                    let worker = endpoint.worker.unwrap();
                    worker.pool == other.as_str()
                };
                // A node that is back serves again as its loss is taken back.
                let back = |(key, value): (&String, &Option<_>)| {
                    key.starts_with("serve/losses/") && value.is_none()
                };
                let back = effects.writes.iter().any(back) && self.store.keys().any(served);
                assert!(
                    back || self.endpoints().any(of_other) || effects.writes.iter().any(written),
                    "A5: {id} is started without {other}"
                );
            }
            let limit = self.wishes.starts_per_second as usize;
            let ordered = self.ordered.entry(id.pool.to_string()).or_default();
            ordered.push_back(self.now);
            while ordered.front().is_some_and(|&at| at + SECOND <= self.now) {
                ordered.pop_front();
            }
            assert!(
                limit == 0 || ordered.len() <= limit,
                "A5: {} starts of {} within a second",
                ordered.len(),
                id.pool
            );
        }
    }

    /// A6, as discovery is told it; and no more than a few are recycled at once.
    pub(super) fn check_serving(&self) {
        let mut serving = Vec::new();
        if self.wishes.spares > 0 {
            serving.extend(self.endpoints());
        }
        for (name, pool) in &self.ledger.pools {
            let spec = &pool.resolved.spec;
            let recycled = pool.places.values().filter(|place| {
                matches!(
                    place.machine.phase(),
                    Phase::Draining { .. }
                        | Phase::Stopping {
                            why: DeathCause::Recycled
                        }
                ) && !place.leaving
                    // Nobody is missed that nobody was told of.
                    && place.live.as_ref().is_some_and(|live| live.told.is_some())
            });
            // Fewer may be wanted than were when they began.
            let recycled = recycled.count();
            let (surge, unavailable) = self.budget();
            let most = if self.rolls { surge + unavailable } else { 0 };
            // One more where it was recycled, and workers began to be replaced after that. Those that are on their
            // way out go on with it, whatever is said of their node or their pool meanwhile.
            let most = most as usize + 1;
            assert!(
                recycled <= most,
                "{recycled} of {name} are replaced at once"
            );
            let extra = pool.rollout.places().count();
            assert!(
                extra <= surge as usize,
                "A11: {name} has {extra} places too many"
            );
            if spec.spares == 0 || pool.is_ending() || pool.draining {
                continue;
            }
            let of_pool = |endpoint: &Endpoint| {
                let worker = endpoint.worker.as_ref().unwrap();
                worker.pool == name.as_str() && !endpoint.draining
            };
            let serving = serving.iter().filter(|endpoint| of_pool(endpoint));
            let able = pool.places.values().filter(|place| {
                place.is_ready() && matches!(place.machine.phase(), Phase::Ready { .. })
            });
            // What an arbiter before this one told stands until its node is heard.
            if self.ledger.all_heard() && self.now > self.restarted + LEASE {
                assert_eq!(
                    serving.count(),
                    able.count().min(spec.size as usize),
                    "A6: {name}"
                );
            }
        }
    }

    /// What may be beyond and short of the size of each pool.
    fn budget(&self) -> (u32, u32) {
        let (surge, unavailable) = self.wishes.budget;
        let unavailable = unavailable.max(u32::from(surge == 0));
        (surge, unavailable + self.wishes.spares)
    }

    /// A11, where workers were told to go: enough are left, and none of those does a job.
    pub(super) fn check_rollout(&self, effects: &Effects) {
        let of_kind = |kind: EventKind| {
            effects
                .events
                .iter()
                .filter(move |event| event.kind() == kind)
        };
        let replaced = of_kind(EventKind::WorkerEnding);
        let replaced = replaced.filter(|event| event.text.starts_with("takes no new calls"));
        let by_rollout = replaced.filter(|event| !event.text.contains("reached its"));
        for event in by_rollout {
            let id = WorkerRef::required(event.worker.as_ref()).unwrap();
            assert!(!self.ledger.jobs.has_open(&id), "A11: {id} does a job");
            let Some(pool) = self.ledger.pools.get(&id.pool) else {
                continue;
            };
            let was_ready = pool
                .places
                .get(id.slot)
                .is_some_and(|place| place.is_ready());
            if !was_ready || of_kind(EventKind::NodeLost).next().is_some() {
                continue;
            }
            let able = pool.places.values().filter(|place| {
                place.is_ready() && matches!(place.machine.phase(), Phase::Ready { .. })
            });
            // Others may have died in the same moment, after that.
            let died = of_kind(EventKind::WorkerDied).count()
                + of_kind(EventKind::WorkerEnding)
                    .filter(|event| event.text == "ending")
                    .count();
            let (_, unavailable) = self.budget();
            let least = pool.size().saturating_sub(unavailable) as usize;
            assert!(
                able.clone().count() + died >= least,
                "A11: {} of {} are left of {}",
                able.count(),
                pool.size(),
                id.pool
            );
        }
    }

    /// Liveness, once all is connected and quiet; and discovery is told exactly what is ready.
    pub(super) fn check_ready(&self, sizes: &[u32]) {
        for (index, &size) in sizes.iter().enumerate() {
            let (name, ..) = POOLS[index];
            let view = self.ledger.get_pool(name).unwrap();
            let places = &self.ledger.pools[&name.parse().unwrap()].places;
            assert_eq!(
                (view.ready, view.live),
                (size, size + if size == 0 { 0 } else { self.wishes.spares }),
                "liveness of {name}: {view:?}, {places:?}, waiting {:?}",
                self.ledger.waiting
            );
            let version = self.wishes.version_of(name).to_string();
            for (id, worker) in self.alive().filter(|(id, _)| id.pool.as_str() == name) {
                let kept = self.ledger.jobs.has_open(id);
                assert!(
                    kept || worker.version == version,
                    "A11: {id} was not replaced"
                );
            }
            let alive = self
                .alive()
                .filter(|(id, _)| id.pool.as_str() == name)
                .count();
            assert_eq!(
                alive, view.live as usize,
                "liveness of {name}: what really lives"
            );
        }
        let ready = self
            .alive()
            .map(|(id, _)| tether_store::keys::endpoint(&id.pool, id.slot));
        let mut ready: Vec<_> = ready.collect();
        ready.sort();
        let served: Vec<_> = self
            .store
            .keys()
            .filter(|key| key.starts_with("serve/endpoints/"))
            .cloned()
            .collect();
        assert_eq!(served, ready, "endpoints are what is ready");
        self.check_deaths();
    }

    /// A3, once quiet: what was reported is recorded, and forgotten.
    fn check_deaths(&self) {
        for id in &self.reported {
            assert_eq!(
                self.died.get(id),
                Some(&1),
                "A3: the death of {id} is not recorded"
            );
        }
        let left: Vec<_> = self
            .workers()
            .filter(|(_, worker)| !worker.alive)
            .map(|(id, _)| id)
            .collect();
        assert!(left.is_empty(), "A3: {left:?} are dead and not forgotten");
    }

    /// A4, once everything is deleted and quiet.
    pub(super) fn check_empty(&self) {
        self.check_deaths();
        assert_eq!(
            self.workers().count(),
            0,
            "A4: workers of pools that are gone"
        );
        let kept = ["arbiter/events/", "arbiter/incarnation", "arbiter/nodes/"];
        let left: Vec<_> = self
            .store
            .keys()
            .filter(|key| !kept.iter().any(|kept| key.starts_with(kept)))
            .collect();
        assert!(left.is_empty(), "A4: the store still has {left:?}");
        let ledger = &self.ledger;
        assert!(
            ledger.pools.is_empty() && ledger.sessions.is_empty(),
            "A4: pools or sessions are left"
        );
        assert!(ledger.waiting.is_empty(), "A4: places are left");
        assert!(ledger.losses.is_empty(), "A4: losses are left");
        let placed = ledger
            .nodes
            .values()
            .map(|node| node.workers.len())
            .sum::<usize>();
        assert_eq!(placed, 0, "A4: nodes still have workers");
    }
}
