//! What agents report of workers, and what follows.

use std::sync::Arc;

use tether_clock::Tick;
use tether_proto::{
    common::{self, WorkerPhase, WorkerRef},
    node::{self, StopWorker, WorkerReport, order::Order},
    worker::EventKind,
};
use tether_supervise::{Action, Phase, Slot as Machine};
use tether_types::{Death, DeathCause, Incarnation, NodeName, Orderer, PoolName, WorkerId};

use super::{
    Ledger, Timed,
    reached::Reached,
    slots::{Last, Live, Place},
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
        match report.phase() {
            WorkerPhase::Dead => self.free_units(node, id),
            _ => self.note_units(node, id, report),
        }
        self.act_on_report(node, id, report, now);
        self.hear(node, id, report.phase);
    }

    fn act_on_report(&mut self, node: &NodeName, id: &WorkerId, report: &WorkerReport, now: Tick) {
        let found = self.find_worker(id);
        let known = found.filter(|(found, at)| found == id && at == node);
        let Some(id) = known
            .map(|(id, _)| id)
            .or_else(|| self.adopt(node, id, report, now))
        else {
            return self.reject(node, id, report);
        };
        let id = &id;
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
    /// arbiter; none when there is no room for it.
    fn adopt(
        &mut self,
        node: &NodeName,
        id: &WorkerId,
        report: &WorkerReport,
        now: Tick,
    ) -> Option<WorkerId> {
        let (reserved, buried) = (self.reserved, self.is_buried(node, id));
        let (node, _) = self.nodes.get_key_value(node)?;
        let node = node.clone();
        let pool = self.pools.get(&id.pool)?;
        // With the names that are there already, so that each is in memory once.
        let id = WorkerId {
            pool: pool.name().clone(),
            ..*id
        };
        let free = pool
            .places
            .get(id.slot)
            .is_none_or(|place| place.live.as_ref().is_none_or(|live| live.node.is_none()));
        if !free || buried || id.incarnation.0 > reserved {
            return None;
        }
        self.unfold(&id.pool, id.slot);
        let pool = self.pools.get_mut(&id.pool)?;
        let born = now.saturating_sub(std::time::Duration::from_millis(report.uptime_ms));
        let machine = Machine::adopted(
            Arc::clone(&pool.resolved.plan),
            id.incarnation,
            born,
            now.as_nanos(),
            now,
        );
        let before = pool.places.remove(id.slot);
        if let Some(live) = before.as_ref().and_then(|place| place.live.as_ref()) {
            let waiting = (id.pool.clone(), live.incarnation, id.slot);
            self.waiting.remove(&waiting);
        }
        let mut live = Live::new(id.incarnation, Some(node.clone()));
        live.pid = report.pid;
        live.address = Reached::at(&report.address);
        live.says(&report.status);
        let mut place = Place::new(machine);
        place.live = Some(live);
        if let Some(before) = before {
            (place.armed, place.shown) = (before.armed, before.shown);
            place.last = before.last;
        }
        pool.places.insert(id.slot, place);
        self.seat(&node, &id);
        self.jobs.resume(&id, &mut self.effects);
        self.may_be_stale(&id.pool);
        self.schedule(&id.pool, id.slot);
        Some(id)
    }

    /// A worker nobody has a place for: it ends, and its death is recorded all the same.
    fn reject(&mut self, node: &NodeName, id: &WorkerId, report: &WorkerReport) {
        if report.phase() == WorkerPhase::Dead {
            self.forget_worker(node, id);
            if !self.is_buried(node, id) {
                let death = report.death.clone().unwrap_or_default();
                let death = self.in_epoch(&id.pool, death);
                self.record_death(node, id, &death);
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
        let Some(place) = pool.places.get_mut(id.slot) else {
            return;
        };
        let Some(live) = &mut place.live else { return };
        // Without a process there is nothing to tell: an agent that has just come back says so of
        // each worker that it has not reached yet.
        if report.pid == 0 && phase != WorkerPhase::Stopping {
            return;
        }
        live.says(&report.status);
        if (live.phase, live.pid) == (phase, report.pid) {
            return;
        }
        live.phase = phase;
        live.pid = report.pid;
        live.address = Reached::at(&report.address);
        let action = match report.pid {
            0 => None,
            _ => place.machine.on_spawned(now),
        };
        if phase == WorkerPhase::Ready {
            live.told = None;
            place.machine.on_ready(now);
        }
        let pid = report.pid;
        let mut ending = false;
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
                ending = true;
                Some((EventKind::WorkerEnding, "ending".to_owned()))
            }
            WorkerPhase::Unspecified
            | WorkerPhase::Waiting
            | WorkerPhase::Dead
            | WorkerPhase::CrashLoop => None,
        };
        if ending {
            self.withdraw(&id.pool, id.slot);
        }
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
        self.roll(&id.pool, now);
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
        if self.place(&id.pool, id.slot).is_none() {
            return;
        }
        let death = Arc::new(self.in_epoch(&id.pool, death));
        self.unseat(node, id);
        self.drop_hold(node, id);
        self.unfold(&id.pool, id.slot);
        self.withdraw(&id.pool, id.slot);
        self.write_death(id, common::Death::clone(&death));
        self.record_death(node, id, &death);
        self.end(node, id, death, permanent, now);
        // In the commit that records the death, so that no gateway hears of it without the spare.
        self.publish(&id.pool, id.slot);
    }

    /// A place goes on after its worker's death, which is written by whoever calls this.
    pub(super) fn end(
        &mut self,
        node: &NodeName,
        id: &WorkerId,
        death: Arc<common::Death>,
        permanent: bool,
        now: Tick,
    ) {
        let cause = death.cause().to_cause(death.exit_code, death.signal);
        self.end_attempts(id, &death, now);
        let Some(entry) = self.pools.get_mut(&id.pool) else {
            return;
        };
        let stays = entry.wants(id.slot);
        let Some(place) = entry.places.get_mut(id.slot) else {
            return;
        };
        place.live = None;
        place.last = Some(Box::new(Last {
            incarnation: id.incarnation,
            death: Some(death),
            node: Some(node.clone()),
        }));
        let action = fall(place, cause, permanent, now);
        let next = place.machine.next_deadline().filter(|&next| next > now);
        if let (None, Some(next), true) = (action, next, stays && !place.leaving) {
            // Nothing is to be done before its next start is due, which a million may wait for at once.
            if next < place.armed {
                let timed = Timed::Place(id.pool.clone(), id.slot);
                place.armed = self.wheel.arm(timed, next);
            }
            return;
        }
        if let Some(action) = action {
            self.act(&id.pool, id.slot, action, Some(id), now);
        }
        self.settle_place(&id.pool, id.slot, now);
        self.roll(&id.pool, now);
    }

    /// Says of a death in which session of its owner it came.
    pub(super) fn in_epoch(&self, pool: &PoolName, death: common::Death) -> common::Death {
        let owner = self.pools.get(pool).map(|pool| pool.owner());
        let session = owner.and_then(|owner| self.sessions.get(owner));
        common::Death {
            epoch: session.map_or(0, |session| session.epoch.0),
            ..death
        }
    }

    pub(super) fn record_death(&mut self, node: &NodeName, id: &WorkerId, death: &common::Death) {
        self.buried.push(id.incarnation);
        let told = Death::from(death);
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
            death: Some(death.clone()),
            ..Default::default()
        });
    }
}

/// The end of its worker, as the machine of a place takes it.
fn fall(place: &mut Place, cause: DeathCause, permanent: bool, now: Tick) -> Option<Action> {
    match place.machine.phase() {
        Phase::Spawning if cause == DeathCause::SpawnFailed => {
            place.machine.on_spawn_failed(permanent, now)
        }
        Phase::Spawning => {
            // It ended in the very moment of its start.
            place.machine.on_spawned(now);
            place.machine.on_exit(is_clean(cause), now)
        }
        _ => place.machine.on_exit(is_clean(cause), now),
    }
}

/// Whether an end is one after which a transient worker is not started again.
pub(super) fn is_clean(cause: DeathCause) -> bool {
    matches!(cause, DeathCause::Exited(0) | DeathCause::Ordered(_))
}
