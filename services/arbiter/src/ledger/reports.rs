//! What agents report of workers, and what follows.

use tether_clock::Tick;
use tether_proto::{
    common::{self, WorkerPhase, WorkerRef},
    discovery::EndpointRemoval,
    node::{self, StopWorker, WorkerReport, order::Order},
    worker::EventKind,
};
use tether_store::keys;
use tether_supervise::{Phase, Slot as Machine};
use tether_types::{Death, DeathCause, Incarnation, NodeName, Orderer, WorkerId};

use super::{
    Ledger,
    calls::Calls,
    slots::{Live, Place},
};

/// Time between SIGTERM and SIGKILL for a worker of a pool nobody knows (any more).
const REJECT_GRACE_MS: u64 = 10_000;

impl Ledger {
    /// What an agent tells of a worker.
    pub(super) fn on_report(
        &mut self,
        node: &NodeName,
        id: &WorkerId,
        report: &WorkerReport,
        now: Tick,
    ) {
        let known = self.find_worker(id) == Some((id.clone(), node.clone()));
        if !known && !self.adopt(node, id, report, now) {
            return self.reject(node, id, report);
        }
        match report.phase() {
            WorkerPhase::Dead => self.on_death(node, id, report, now),
            phase => {
                self.on_phase(node, id, phase, report, now);
                if let Some(place) = self.place(&id.pool, id.slot) {
                    place.machine.on_memory(report.memory_bytes);
                }
                self.settle_place(&id.pool, id.slot, now);
            }
        }
    }

    /// Takes a worker nobody was asked to start into an empty place, as after a restart of the
    /// arbiter; false when there is no room for it.
    fn adopt(&mut self, node: &NodeName, id: &WorkerId, report: &WorkerReport, now: Tick) -> bool {
        let (reserved, buried) = (self.reserved, self.buried.contains(id.incarnation));
        let Some(pool) = self.pools.get_mut(&id.pool) else {
            return false;
        };
        let free = pool
            .places
            .get(&id.slot)
            .is_none_or(|place| place.live.as_ref().is_none_or(|live| live.node.is_none()));
        if !free || buried || id.incarnation.0 > reserved {
            return false;
        }
        let born = now.saturating_sub(std::time::Duration::from_millis(report.uptime_ms));
        let machine = Machine::adopted(
            pool.resolved.plan,
            id.incarnation,
            report.pid,
            born,
            now.as_nanos(),
            now,
        );
        let before = pool.places.remove(&id.slot);
        if let Some(live) = before.as_ref().and_then(|place| place.live.as_ref()) {
            let waiting = (id.pool.clone(), live.incarnation, id.slot);
            self.waiting.remove(&waiting);
        }
        let place = Place {
            live: Some(Live {
                incarnation: id.incarnation,
                node: Some(node.clone()),
                phase: WorkerPhase::Waiting,
                pid: report.pid,
                address: report.address.clone(),
                started: born,
                status: report.status.clone(),
                stop: None,
                told: None,
                disabled: false,
                calls: Calls::default(),
            }),
            last: Some((id.incarnation, node.clone())),
            due: before.as_ref().and_then(|place| place.due),
            last_death: before.and_then(|place| place.last_death),
            ..Place::new(machine)
        };
        pool.places.insert(id.slot, place);
        if let Some(node) = self.nodes.get_mut(node) {
            node.workers.insert(id.clone());
        }
        self.jobs.resume(id, &mut self.effects);
        self.schedule(&id.pool, id.slot);
        true
    }

    /// A worker nobody has a place for: it ends, and its death is recorded all the same.
    fn reject(&mut self, node: &NodeName, id: &WorkerId, report: &WorkerReport) {
        if report.phase() == WorkerPhase::Dead {
            self.forget_worker(node, id);
            if !self.buried.contains(id.incarnation) {
                let death = self.in_epoch(id, report.death.clone().unwrap_or_default());
                self.record_death(node, id, death);
            }
            return;
        }
        // At once where another one may be in its place, else with the time to leave in good order.
        let rival = self.find_worker(&WorkerId {
            incarnation: Incarnation(0),
            ..id.clone()
        });
        let order = StopWorker {
            worker: Some(WorkerRef::from(id)),
            cause: common::DeathCause::from(DeathCause::Ordered(Orderer::Scale)).into(),
            grace_ms: if rival.is_some() { 0 } else { REJECT_GRACE_MS },
        };
        self.effects.order(node, Order::Stop(order));
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
        let owner = pool.owner().clone();
        let Some(place) = pool.places.get_mut(&id.slot) else {
            return;
        };
        let Some(live) = &mut place.live else { return };
        // Without a process there is nothing to tell: an agent that has just come back says so of
        // each worker that it has not reached yet.
        if report.pid == 0 && phase != WorkerPhase::Stopping {
            return;
        }
        live.status.clone_from(&report.status);
        if (live.phase, live.pid) == (phase, report.pid) {
            return;
        }
        live.phase = phase;
        live.pid = report.pid;
        live.address.clone_from(&report.address);
        let action = match report.pid {
            0 => None,
            pid => place.machine.on_spawned(pid, now),
        };
        if phase == WorkerPhase::Ready {
            live.told = None;
            place.machine.on_ready(now);
        }
        let pid = report.pid;
        let told = match phase {
            WorkerPhase::Starting if report.adopted => Some((
                EventKind::WorkerAdopted,
                format!("found running as pid {pid}"),
            )),
            WorkerPhase::Starting => {
                Some((EventKind::WorkerStarted, format!("started as pid {pid}")))
            }
            WorkerPhase::Ready => Some((
                EventKind::WorkerReady,
                format!("ready at {}", report.address),
            )),
            WorkerPhase::Stopping => {
                // Taken out of service before the first signal reaches it.
                self.effects.delete(keys::endpoint(&id.pool, id.slot));
                Some((EventKind::WorkerEnding, "ending".to_owned()))
            }
            WorkerPhase::Unspecified
            | WorkerPhase::Waiting
            | WorkerPhase::Dead
            | WorkerPhase::CrashLoop => None,
        };
        if let Some((kind, text)) = told {
            self.effects
                .worker_event(kind, id, Some(node), &owner, text, None);
        }
        // A spare takes the place of a worker that is ending, not only of one that is dead.
        self.publish(&id.pool, id.slot);
        if phase == WorkerPhase::Ready {
            self.wake_dependents(&id.pool, now);
            self.recycle_next(&id.pool, now);
        }
        if let Some(action) = action {
            self.act(&id.pool, id.slot, action, None, now);
        }
    }

    /// A worker is dead: recorded once, and its place goes on (A3).
    fn on_death(&mut self, node: &NodeName, id: &WorkerId, report: &WorkerReport, now: Tick) {
        self.forget_worker(node, id);
        let death = report.death.clone().unwrap_or_default();
        self.bury(node, id, death, report.permanent, now);
    }

    fn forget_worker(&mut self, node: &NodeName, id: &WorkerId) {
        let forget = node::ForgetWorker {
            worker: Some(WorkerRef::from(id)),
        };
        self.effects.order(node, Order::Forget(forget));
    }

    /// The end of the incarnation that lives in a place, whoever tells it.
    pub(super) fn bury(
        &mut self,
        node: &NodeName,
        id: &WorkerId,
        death: common::Death,
        permanent: bool,
        now: Tick,
    ) {
        let cause = Death::from(&death).cause;
        let death = self.in_epoch(id, death);
        if let Some(node) = self.nodes.get_mut(node) {
            node.workers.remove(id);
        }
        self.drop_hold(node, id);
        let Some(place) = self.place(&id.pool, id.slot) else {
            return;
        };
        place.live = None;
        place.last_death = Some(death.clone());
        let action = match place.machine.phase() {
            Phase::Spawning if cause == DeathCause::SpawnFailed => {
                place.machine.on_spawn_failed(permanent, now)
            }
            Phase::Spawning => {
                // It ended in the very moment of its start.
                place.machine.on_spawned(0, now);
                place.machine.on_exit(is_clean(cause), now)
            }
            _ => place.machine.on_exit(is_clean(cause), now),
        };
        self.effects.delete(keys::endpoint(&id.pool, id.slot));
        let removal = EndpointRemoval {
            worker: Some(WorkerRef::from(id)),
            death: Some(death.clone()),
        };
        self.effects.put(keys::death(&id.pool, id.slot), removal);
        self.jobs.on_death(id, &death, &mut self.effects);
        self.record_death(node, id, death);
        if let Some(action) = action {
            self.act(&id.pool, id.slot, action, Some(id), now);
        }
        self.settle_place(&id.pool, id.slot, now);
        // In the commit that records the death, so that no gateway hears of it without the spare.
        self.publish(&id.pool, id.slot);
    }

    /// Says of a death in which session of its owner it came.
    fn in_epoch(&self, id: &WorkerId, death: common::Death) -> common::Death {
        let owner = self.pools.get(&id.pool).map(|pool| pool.owner());
        let session = owner.and_then(|owner| self.sessions.get(owner));
        common::Death {
            epoch: session.map_or(0, |session| session.epoch.0),
            ..death
        }
    }

    fn record_death(&mut self, node: &NodeName, id: &WorkerId, death: common::Death) {
        self.buried.push(id.incarnation);
        let told = Death::from(&death);
        let text = match told.detail.as_str() {
            "" => told.cause.to_string(),
            detail => format!("{}: {detail}", told.cause),
        };
        let owner = self
            .pools
            .get(&id.pool)
            .map(|pool| pool.owner().to_string());
        self.effects.events.push(tether_proto::worker::Event {
            kind: EventKind::WorkerDied.into(),
            worker: Some(WorkerRef::from(id)),
            node: node.to_string(),
            owner: owner.unwrap_or_default(),
            text,
            death: Some(death),
            ..Default::default()
        });
    }
}

/// Whether an end is one after which a transient worker is not started again.
pub(super) fn is_clean(cause: DeathCause) -> bool {
    matches!(cause, DeathCause::Exited(0) | DeathCause::Ordered(_))
}
