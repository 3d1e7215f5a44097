//! Places of a pool: which incarnation is where, and how it looks from outside.

use tether_clock::Tick;
use tether_proto::{
    common::{self, Endpoint, WorkerPhase, WorkerRef},
    node::StopWorker,
    worker::Worker,
};
use tether_supervise::{Phase, Plan, Slot as Machine};
use tether_types::{Incarnation, NodeName, OwnerName, PoolName, Slot, WorkerId};

use super::{Ledger, calls::Calls, millis};

/// One place in a pool.
#[derive(Debug)]
pub(crate) struct Place {
    pub(super) machine: Machine,
    /// The incarnation that is there.
    pub(super) live: Option<Live>,
    pub(super) last_death: Option<common::Death>,
    /// The last incarnation that was somewhere, and where: its logs are there.
    pub(super) last: Option<(Incarnation, NodeName)>,
    pub(super) gave_up: bool,
    /// It goes when its worker does, even where the pool has grown again meanwhile.
    pub(super) leaving: bool,
    /// What the ledger's list of deadlines has for it.
    pub(super) due: Option<Tick>,
    /// Whether calls go there: it is ready, no spare, and not about to be replaced.
    pub(super) serves: bool,
}

/// One incarnation, somewhere.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) incarnation: Incarnation,
    /// Where; none while no node takes it.
    pub(super) node: Option<NodeName>,
    pub(super) phase: WorkerPhase,
    pub(super) pid: u32,
    pub(super) address: String,
    pub(super) started: Tick,
    /// What it says of itself.
    pub(super) status: String,
    /// The order that is to end it, repeated to a node that comes back and may have missed it.
    pub(super) stop: Option<StopWorker>,
    /// What discovery was told; none while it was told nothing.
    pub(super) told: Option<Told>,
    /// Whether its node is lost.
    pub(super) disabled: bool,
    /// What it has served, where gateways count it.
    pub(super) calls: Calls,
}

/// What can change of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) draining: bool,
    pub(super) count_calls: bool,
}

impl Place {
    pub(super) fn new(machine: Machine) -> Self {
        Self {
            machine,
            live: None,
            last_death: None,
            last: None,
            gave_up: false,
            leaving: false,
            due: None,
            serves: false,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.pid != 0)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.live
            .as_ref()
            .is_some_and(|live| live.phase == WorkerPhase::Ready && !live.disabled)
    }

    /// Whether its worker runs and is to go on, or is over for good: nothing is on its way here.
    pub(super) fn is_settled(&self) -> bool {
        match self.machine.phase() {
            Phase::Ready { .. } => self.is_ready(),
            Phase::Stopped => self.live.is_none(),
            Phase::Backoff { .. }
            | Phase::Spawning
            | Phase::Starting { .. }
            | Phase::Draining { .. }
            | Phase::Stopping { .. }
            | Phase::CrashLoop { .. } => false,
        }
    }

    /// A change of plan counts from the next incarnation on; a place that was given up tries again.
    pub(super) fn change_plan(&mut self, plan: Plan, now: Tick) {
        if std::mem::take(&mut self.gave_up) {
            self.machine = Machine::new(plan, Incarnation(0), now.as_nanos(), now);
        } else {
            self.machine.change_plan(plan);
        }
    }

    /// Where it is reached, while it is ready.
    pub(super) fn endpoint(&self, pool: &PoolName, slot: Slot, told: Told) -> Option<Endpoint> {
        let live = self
            .live
            .as_ref()
            .filter(|live| live.phase == WorkerPhase::Ready && !live.disabled)?;
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
            draining: told.draining,
            count_calls: told.count_calls,
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
            status: live.map(|live| live.status.clone()).unwrap_or_default(),
            disabled: live.is_some_and(|live| live.disabled),
        }
    }
}

impl Ledger {
    /// Whether every worker that is to end with this owner is ending.
    pub(crate) fn all_told(&self, owner: &OwnerName) -> bool {
        let ending = self
            .pools
            .values()
            .filter(|pool| pool.is_ending() && pool.owner() == owner);
        let mut live = ending
            .flat_map(|pool| pool.places.values())
            .filter_map(|place| place.live.as_ref());
        live.all(|live| live.phase == WorkerPhase::Stopping)
    }

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
}
