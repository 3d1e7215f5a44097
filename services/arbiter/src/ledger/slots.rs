//! Places of a pool: which incarnation is where, and what its reports lead to.

use tether_clock::Tick;
use tether_lease::Margins;
use tether_proto::{
    common::{self, Endpoint, WorkerPhase, WorkerRef},
    discovery::EndpointRemoval,
    node::{self, StartWorker, StopWorker, WorkerReport, order::Order},
    worker::{EventKind, Worker},
};
use tether_store::keys;
use tether_supervise::{Action, GaveUp, Phase, Plan, Slot as Machine};
use tether_types::{Death, DeathCause, Incarnation, NodeName, Orderer, PoolName, Slot, WorkerId};

use super::{Ledger, millis};
use tether_lifecycle::{OnAgentLoss, OnOwnerLoss};

/// One place in a pool.
#[derive(Debug)]
pub(crate) struct Place {
    machine: Machine,
    /// The incarnation that is there.
    pub(super) live: Option<Live>,
    last_death: Option<common::Death>,
    /// The last incarnation that was somewhere, and where: its logs are there.
    last: Option<(Incarnation, NodeName)>,
    gave_up: Option<GaveUp>,
}

/// One incarnation, somewhere.
#[derive(Debug)]
pub(super) struct Live {
    incarnation: Incarnation,
    /// Where; none while no node takes it.
    pub(super) node: Option<NodeName>,
    phase: WorkerPhase,
    pid: u32,
    address: String,
    started: Tick,
}

impl Place {
    pub(super) fn is_live(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.pid != 0)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.live
            .as_ref()
            .is_some_and(|live| live.phase == WorkerPhase::Ready)
    }

    pub(super) fn next_deadline(&self) -> Option<Tick> {
        self.machine.next_deadline()
    }

    /// A change of plan counts from the next incarnation on; a place that was given up tries again.
    pub(super) fn change_plan(&mut self, plan: Plan, highest: u64, now: Tick) {
        if self.gave_up.take().is_some() {
            self.machine = Machine::new(plan, Incarnation(highest + 1), now.as_nanos(), now);
        } else {
            self.machine.change_plan(plan);
        }
    }

    /// Where it serves, while it does.
    pub(super) fn endpoint(&self, pool: &PoolName, slot: Slot, draining: bool) -> Option<Endpoint> {
        let live = self
            .live
            .as_ref()
            .filter(|live| live.phase == WorkerPhase::Ready)?;
        Some(Endpoint {
            worker: Some(WorkerRef {
                pool: pool.to_string(),
                slot,
                incarnation: live.incarnation.0,
            }),
            address: live.address.clone(),
            node: live
                .node
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            draining,
        })
    }

    fn view(&self, pool: &PoolName, slot: Slot, now: Tick) -> Worker {
        let live = self.live.as_ref();
        let phase = match (live, self.machine.phase()) {
            (Some(live), _) => live.phase,
            (None, Phase::CrashLoop { .. }) => WorkerPhase::CrashLoop,
            (None, Phase::Stopped) => WorkerPhase::Dead,
            (None, _) => WorkerPhase::Waiting,
        };
        Worker {
            worker: Some(WorkerRef {
                pool: pool.to_string(),
                slot,
                incarnation: live.map_or(0, |live| live.incarnation.0),
            }),
            phase: phase.into(),
            pid: live.map_or(0, |live| live.pid),
            node: live
                .and_then(|live| live.node.as_ref())
                .map(ToString::to_string)
                .unwrap_or_default(),
            address: live.map(|live| live.address.clone()).unwrap_or_default(),
            uptime_ms: live
                .filter(|live| live.pid != 0)
                .map_or(0, |live| millis(now.since(live.started))),
            restarts: u32::try_from(self.machine.snapshot().restarts).unwrap_or(u32::MAX),
            last_death: self.last_death.clone(),
        }
    }
}

impl Ledger {
    /// The workers of one pool, or of all.
    pub(crate) fn list_workers(&self, pool: &str, now: Tick) -> Vec<Worker> {
        let pools = self
            .pools
            .iter()
            .filter(|(name, _)| pool.is_empty() || name.as_str() == pool);
        pools
            .flat_map(|(name, pool)| {
                pool.places
                    .iter()
                    .map(move |(&slot, place)| place.view(name, slot, now))
            })
            .collect()
    }

    /// The worker that lives in this place, if it is this incarnation (0 for whichever lives), with
    /// the node it is on.
    pub(crate) fn find_worker(&self, id: &WorkerId) -> Option<(WorkerId, NodeName)> {
        let live = self
            .pools
            .get(&id.pool)?
            .places
            .get(&id.slot)?
            .live
            .as_ref()?;
        let wanted = id.incarnation == Incarnation(0) || id.incarnation == live.incarnation;
        let found = WorkerId {
            incarnation: live.incarnation,
            ..id.clone()
        };
        wanted.then_some((found, live.node.clone()?))
    }

    /// The incarnation whose logs are meant (0 for the newest), and the address of the agent that
    /// keeps them.
    pub(crate) fn find_logs(&self, id: &WorkerId) -> Option<(WorkerId, String)> {
        let (newest, node) = self
            .pools
            .get(&id.pool)?
            .places
            .get(&id.slot)?
            .last
            .clone()?;
        let incarnation = if id.incarnation == Incarnation(0) {
            newest
        } else {
            id.incarnation
        };
        Some((
            WorkerId {
                incarnation,
                ..id.clone()
            },
            self.agent_address(&node)?.to_owned(),
        ))
    }

    /// Ends one worker on an operator's order; false when it does not live. The place stays, and its
    /// restart policy says whether another follows.
    pub(crate) fn stop_worker(&mut self, id: &WorkerId, grace_ms: Option<u64>) -> bool {
        let Some((id, node)) = self.find_worker(id) else {
            return false;
        };
        self.order_stop(&id, &node, DeathCause::Ordered(Orderer::Operator), grace_ms);
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
        true
    }

    /// Makes sure that a place exists and goes on with its life.
    pub(super) fn fill_place(&mut self, pool: &PoolName, slot: Slot, now: Tick) {
        let (highest, seed) = (self.highest, now.as_nanos() ^ u64::from(slot));
        let Some(entry) = self.pools.get_mut(pool) else {
            return;
        };
        let plan = entry.resolved.plan;
        let place = entry.places.entry(slot).or_insert_with(|| Place {
            machine: Machine::new(plan, Incarnation(highest + 1), seed, now),
            live: None,
            last_death: None,
            last: None,
            gave_up: None,
        });
        let homeless = place.live.as_ref().is_some_and(|live| live.node.is_none());
        match place.machine.check(now) {
            Some(action) => self.act(pool, slot, action, None, now),
            None if homeless => self.put(pool, slot, now),
            None => {}
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
        let Some(place) = self
            .pools
            .get_mut(pool)
            .and_then(|pool| pool.places.get_mut(&slot))
        else {
            return;
        };
        if place.live.as_ref().is_some_and(|live| live.node.is_none()) {
            // Ordered, but nobody took it yet: there is nothing to stop.
            place.live = None;
            place.machine.stop(cause);
            place.machine.on_spawn_failed(true, Tick::ZERO);
            return;
        }
        let action = place.machine.stop(cause);
        // Told already, but harder this time: a shim takes a shorter grace at any time.
        let again = grace_ms.is_some()
            && matches!(
                place.machine.phase(),
                Phase::Stopping { .. } | Phase::Spawning
            );
        if (action.is_some() || again)
            && let Some((id, node)) = self.find_worker(&WorkerId {
                pool: pool.clone(),
                slot,
                incarnation: Incarnation(0),
            })
        {
            self.order_stop(&id, &node, cause, grace_ms);
        }
    }

    /// Removes a place whose worker is gone for good.
    pub(super) fn drop_place(&mut self, pool: &PoolName, slot: Slot) {
        let Some(entry) = self.pools.get_mut(pool) else {
            return;
        };
        if entry
            .places
            .get(&slot)
            .is_some_and(|place| place.live.is_none() && place.machine.phase() == Phase::Stopped)
        {
            entry.places.remove(&slot);
            self.effects.delete(keys::death(pool, slot));
        }
    }

    fn act(
        &mut self,
        pool: &PoolName,
        slot: Slot,
        action: Action,
        died: Option<&WorkerId>,
        now: Tick,
    ) {
        match action {
            Action::Spawn { incarnation } => {
                self.reserve(incarnation);
                if let Some(place) = self
                    .pools
                    .get_mut(pool)
                    .and_then(|pool| pool.places.get_mut(&slot))
                {
                    place.gave_up = None;
                    place.live = Some(Live {
                        incarnation,
                        node: None,
                        phase: WorkerPhase::Waiting,
                        pid: 0,
                        address: String::new(),
                        started: now,
                    });
                }
                self.put(pool, slot, now);
            }
            Action::Stop { grace, why } => {
                let id = WorkerId {
                    pool: pool.clone(),
                    slot,
                    incarnation: Incarnation(0),
                };
                if let Some((id, node)) = self.find_worker(&id) {
                    self.order_stop(&id, &node, why, Some(millis(grace)));
                }
            }
            Action::GiveUp { why } => self.give_up(pool, slot, why, died),
        }
    }

    fn give_up(&mut self, pool: &PoolName, slot: Slot, why: GaveUp, died: Option<&WorkerId>) {
        let Some(entry) = self.pools.get_mut(pool) else {
            return;
        };
        let owner = entry.owner().clone();
        let Some(place) = entry.places.get_mut(&slot) else {
            return;
        };
        place.gave_up = Some(why);
        let last = place.last_death.clone();
        let because = last.as_ref().map_or("", |death| death.detail.as_str());
        let text = match why {
            GaveUp::CannotStart => format!("given up, as it can never start: {because}"),
            GaveUp::NeverReady => "given up: it was started again and again and never became ready; its output says why (`tether logs`)".to_owned(),
            GaveUp::TooOften => "given up: it dies again and again shortly after it became ready; apply the pool again to retry".to_owned(),
        };
        let id = died.cloned().unwrap_or_else(|| WorkerId {
            pool: pool.clone(),
            slot,
            incarnation: Incarnation(0),
        });
        self.effects
            .worker_event(EventKind::WorkerCrashLoop, &id, None, &owner, text, last);
    }

    /// Finds a node for an incarnation that has none, and orders its start there.
    fn put(&mut self, pool: &PoolName, slot: Slot, now: Tick) {
        let Some(node) = self.choose_node(pool) else {
            return;
        };
        let Some(entry) = self.pools.get_mut(pool) else {
            return;
        };
        let policy = *entry.policy();
        let shortest = self.terms.node.ttl().min(policy.heartbeat_timeout);
        let lease_grace = entry.resolved.plan.stop.grace.min(Margins::usual(shortest).kill_budget);
        let (owner, template) = (entry.owner().to_string(), entry.resolved.template.clone());
        let Some(place) = entry.places.get_mut(&slot) else {
            return;
        };
        let Some(live) = &mut place.live else { return };
        live.node = Some(node.clone());
        live.started = now;
        place.last = Some((live.incarnation, node.clone()));
        let order = StartWorker {
            worker: Some(WorkerRef {
                pool: pool.to_string(),
                slot,
                incarnation: live.incarnation.0,
            }),
            template: Some(template),
            owner,
            kill_on_owner_exit: policy.on_owner_exit == OnOwnerLoss::Kill,
            kill_on_agent_loss: policy.on_agent_loss == OnAgentLoss::Kill,
            lease_grace_ms: millis(lease_grace),
        };
        self.effects.order(&node, Order::Start(order));
    }

    fn order_stop(
        &mut self,
        id: &WorkerId,
        node: &NodeName,
        cause: DeathCause,
        grace_ms: Option<u64>,
    ) {
        let grace_ms = grace_ms.unwrap_or_else(|| {
            self.pools
                .get(&id.pool)
                .map_or(0, |pool| millis(pool.resolved.plan.stop.grace))
        });
        let order = StopWorker {
            worker: Some(WorkerRef::from(id)),
            cause: common::DeathCause::from(cause).into(),
            grace_ms,
        };
        self.effects.order(node, Order::Stop(order));
    }

    /// What an agent tells of a worker.
    pub(super) fn on_report(
        &mut self,
        node: &NodeName,
        id: &WorkerId,
        report: &WorkerReport,
        now: Tick,
    ) {
        let known = self
            .find_worker(id)
            .is_some_and(|(found, at)| found == *id && at == *node);
        if !known && !self.adopt(node, id, report, now) {
            return self.reject(node, id, report);
        }
        match report.phase() {
            WorkerPhase::Dead => self.on_death(node, id, report, now),
            phase => self.on_phase(node, id, phase, report, now),
        }
    }

    /// Takes a worker that runs into an empty place, as after a restart of the arbiter; false when
    /// there is no room for it.
    fn adopt(&mut self, node: &NodeName, id: &WorkerId, report: &WorkerReport, now: Tick) -> bool {
        let Some(pool) = self.pools.get_mut(&id.pool) else {
            return false;
        };
        let fits = !pool.is_ending()
            && id.slot < pool.resolved.spec.size
            && id.incarnation.0 <= self.reserved;
        let free = pool.places.get(&id.slot).is_none_or(|place| {
            place.live.as_ref().is_none_or(|live| live.node.is_none())
                && !matches!(place.machine.phase(), Phase::Stopping { .. })
        });
        if !fits || !free {
            return false;
        }
        let machine = Machine::adopted(
            pool.resolved.plan,
            id.incarnation,
            report.pid,
            now.as_nanos(),
            now,
        );
        let live = Live {
            incarnation: id.incarnation,
            node: Some(node.clone()),
            phase: WorkerPhase::Waiting,
            pid: report.pid,
            address: report.address.clone(),
            started: now.saturating_sub(std::time::Duration::from_millis(report.uptime_ms)),
        };
        let last_death = pool
            .places
            .remove(&id.slot)
            .and_then(|place| place.last_death);
        let last = Some((id.incarnation, node.clone()));
        pool.places.insert(
            id.slot,
            Place {
                machine,
                live: Some(live),
                last_death,
                last,
                gave_up: None,
            },
        );
        true
    }

    /// A worker nobody has a place for: it ends, and its death is recorded all the same.
    fn reject(&mut self, node: &NodeName, id: &WorkerId, report: &WorkerReport) {
        match (report.phase(), report.death.as_ref()) {
            (WorkerPhase::Dead, death) => {
                let forget = node::ForgetWorker {
                    worker: Some(WorkerRef::from(id)),
                };
                self.effects.order(node, Order::Forget(forget));
                if let Some(death) = death {
                    self.record_death_event(node, id, death.clone());
                }
            }
            _ => self.order_stop(id, node, DeathCause::Ordered(Orderer::Scale), Some(0)),
        }
    }

    fn on_phase(
        &mut self,
        node: &NodeName,
        id: &WorkerId,
        phase: WorkerPhase,
        report: &WorkerReport,
        now: Tick,
    ) {
        let Some(pool) = self.pools.get_mut(&id.pool) else {
            return;
        };
        let (owner, draining) = (pool.owner().clone(), pool.draining);
        let Some(place) = pool.places.get_mut(&id.slot) else {
            return;
        };
        let Some(live) = &mut place.live else { return };
        if live.phase == phase {
            return;
        }
        live.phase = phase;
        live.pid = report.pid;
        live.address.clone_from(&report.address);
        let mut action = None;
        if report.pid != 0 {
            action = place.machine.on_spawned(report.pid, now);
        }
        let pid = report.pid;
        match phase {
            WorkerPhase::Starting => {
                let (kind, text) = match report.adopted {
                    true => (
                        EventKind::WorkerAdopted,
                        format!("found running as pid {pid}"),
                    ),
                    false => (EventKind::WorkerStarted, format!("started as pid {pid}")),
                };
                self.effects
                    .worker_event(kind, id, Some(node), &owner, text, None);
            }
            WorkerPhase::Ready => {
                place.machine.on_ready(now);
                let endpoint = place.endpoint(&id.pool, id.slot, draining);
                if let Some(endpoint) = endpoint {
                    self.effects
                        .put(keys::endpoint(&id.pool, id.slot), endpoint);
                }
                let text = format!("ready at {}", report.address);
                self.effects.worker_event(
                    EventKind::WorkerReady,
                    id,
                    Some(node),
                    &owner,
                    text,
                    None,
                );
            }
            WorkerPhase::Stopping => {
                // Taken out of service before the first signal reaches it.
                self.effects.delete(keys::endpoint(&id.pool, id.slot));
                self.effects.worker_event(
                    EventKind::WorkerEnding,
                    id,
                    Some(node),
                    &owner,
                    "ending".to_owned(),
                    None,
                );
            }
            WorkerPhase::Unspecified
            | WorkerPhase::Waiting
            | WorkerPhase::Dead
            | WorkerPhase::CrashLoop => {}
        }
        if let Some(action) = action {
            self.act(&id.pool, id.slot, action, None, now);
        }
    }

    /// A worker is dead: recorded once, and its place goes on (A3).
    fn on_death(&mut self, node: &NodeName, id: &WorkerId, report: &WorkerReport, now: Tick) {
        let death = report.death.clone().unwrap_or_default();
        let forget = node::ForgetWorker {
            worker: Some(WorkerRef::from(id)),
        };
        self.effects.order(node, Order::Forget(forget));
        self.bury(node, id, death, report.permanent, now);
    }

    /// The end of an incarnation, whoever tells it.
    pub(super) fn bury(
        &mut self,
        node: &NodeName,
        id: &WorkerId,
        death: common::Death,
        permanent: bool,
        now: Tick,
    ) {
        let cause = Death::from(&death).cause;
        let Some(place) = self
            .pools
            .get_mut(&id.pool)
            .and_then(|pool| pool.places.get_mut(&id.slot))
        else {
            return;
        };
        place.live = None;
        place.last_death = Some(death.clone());
        let action = if matches!(place.machine.phase(), Phase::Spawning) {
            match cause {
                // It never ran, or ended in the very moment of its start.
                DeathCause::SpawnFailed => place.machine.on_spawn_failed(permanent, now),
                _ => {
                    place.machine.on_spawned(0, now);
                    place.machine.on_exit(is_clean(cause), now)
                }
            }
        } else {
            place.machine.on_exit(is_clean(cause), now)
        };
        self.effects.delete(keys::endpoint(&id.pool, id.slot));
        let removal = EndpointRemoval {
            worker: Some(WorkerRef::from(id)),
            death: Some(death.clone()),
        };
        self.effects.put(keys::death(&id.pool, id.slot), removal);
        self.record_death_event(node, id, death.clone());
        self.jobs.on_death(id, &death, &mut self.effects);
        if let Some(action) = action {
            self.act(&id.pool, id.slot, action, Some(id), now);
        }
        self.fill(&id.pool, now);
    }

    fn record_death_event(&mut self, node: &NodeName, id: &WorkerId, death: common::Death) {
        let told = Death::from(&death);
        let text = match told.detail.as_str() {
            "" => told.cause.to_string(),
            detail => format!("{}: {detail}", told.cause),
        };
        let owner = self.pools.get(&id.pool).map(|pool| pool.owner().clone());
        match owner {
            Some(owner) => self.effects.worker_event(
                EventKind::WorkerDied,
                id,
                Some(node),
                &owner,
                text,
                Some(death),
            ),
            None => self.effects.events.push(tether_proto::worker::Event {
                kind: EventKind::WorkerDied.into(),
                worker: Some(WorkerRef::from(id)),
                node: node.to_string(),
                text,
                death: Some(death),
                ..Default::default()
            }),
        }
    }
}

/// Whether an end is one after which a transient worker is not started again.
fn is_clean(cause: DeathCause) -> bool {
    matches!(cause, DeathCause::Exited(0) | DeathCause::Ordered(_))
}
