//! Places of a pool: which incarnation is where, and how it looks from outside.

use std::sync::Arc;

use tether_clock::Tick;
use tether_proto::{
    common::{self, Endpoint, WorkerPhase, WorkerRef},
    node::StopWorker,
    worker::Worker,
};
use tether_supervise::{Phase, Plan, Slot as Machine};
use tether_types::{Incarnation, NodeName, OwnerName, PoolName, Slot, WorkerId};

use super::{Ledger, Pool, calls::Calls, millis, reached::Reached};

/// One place in a pool.
#[derive(Debug)]
pub(crate) struct Place {
    pub(super) machine: Machine,
    /// The incarnation that is there.
    pub(super) live: Option<Live>,
    /// Of its last worker that died; none while none has.
    pub(super) last: Option<Box<Last>>,
    pub(super) gave_up: bool,
    /// It goes when its worker does, even where the pool has grown again meanwhile.
    pub(super) leaving: bool,
    /// For when the wheel has its look at it; never for none.
    pub(super) armed: Tick,
    /// Whether calls go there: it is ready, no spare, and not about to be replaced.
    pub(super) serves: bool,
    /// What the store has of it under `serve/endpoints/`.
    pub(super) shown: Shown,
}

/// The endpoint of a place in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// There is none.
    Nothing,
    /// There is one, of the worker that lives there, lived there last, or lived there before a restart.
    Served,
    /// There is one that the loss of its node has ended.
    Lost,
}

/// A worker that lives here no more, as far as is known.
#[derive(Debug, Clone)]
pub(super) struct Last {
    pub(super) incarnation: Incarnation,
    /// Shared by all that died with their node. None of one that an earlier arbiter knew on a node that is
    /// lost: it may live.
    pub(super) death: Option<Arc<common::Death>>,
    /// Where it was: its logs are there. None where an earlier arbiter knew that.
    pub(super) node: Option<NodeName>,
}

/// One incarnation, somewhere.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) incarnation: Incarnation,
    /// Where; none while no node takes it.
    pub(super) node: Option<NodeName>,
    pub(super) phase: WorkerPhase,
    pub(super) pid: u32,
    pub(super) address: Reached,
    /// Whether its node is lost.
    pub(super) disabled: bool,
    /// The phase its node told last on its stream, as the wire numbers it; 0 for none yet.
    pub(super) heard: i32,
    /// What discovery was told; none while it was told nothing.
    pub(super) told: Option<Told>,
    /// Apart, because of a million workers few have any of it.
    pub(super) rare: Option<Box<Rare>>,
}

/// What a worker has of which nothing was ever asked.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// What it says of itself.
    pub(super) status: String,
    /// The order that is to end it, repeated to a node that comes back and may have missed it.
    pub(super) stop: Option<StopWorker>,
    /// What it has served, where gateways count it.
    pub(super) calls: Calls,
}

impl Live {
    /// One that was just numbered, or found.
    pub(super) fn new(incarnation: Incarnation, node: Option<NodeName>) -> Self {
        Self {
            incarnation,
            node,
            phase: WorkerPhase::Waiting,
            pid: 0,
            address: Reached::default(),
            disabled: false,
            heard: 0,
            told: None,
            rare: None,
        }
    }

    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// What it says of itself.
    pub(super) fn status(&self) -> &str {
        self.rare.as_ref().map_or("", |rare| &rare.status)
    }

    pub(super) fn says(&mut self, status: &str) {
        if self.status() != status {
            status.clone_into(&mut self.rare().status);
        }
    }

    /// The order that is to end it.
    pub(super) fn stop(&self) -> Option<&StopWorker> {
        self.rare.as_ref()?.stop.as_ref()
    }
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
            last: None,
            gave_up: false,
            leaving: false,
            armed: Tick::NEVER,
            serves: false,
            shown: Shown::Nothing,
        }
    }

    /// Of its last worker that died.
    pub(super) fn last_death(&self) -> Option<&common::Death> {
        self.last.as_ref()?.death.as_deref()
    }

    /// The node whose loss has ended what the store has of it.
    pub(super) fn lost_with(&self) -> Option<&NodeName> {
        let disabled = self.live.as_ref().filter(|live| live.disabled);
        let last = self.last.as_ref().and_then(|last| last.node.as_ref());
        let node = match disabled {
            Some(live) => live.node.as_ref(),
            None => last,
        };
        node.filter(|_| self.shown == Shown::Lost)
    }

    /// The last incarnation that was somewhere, and where.
    fn last_at(&self) -> Option<(Incarnation, NodeName)> {
        let live = self.live.as_ref();
        let here = live.and_then(|live| Some((live.incarnation, live.node.clone()?)));
        here.or_else(|| {
            let last = self.last.as_ref()?;
            Some((last.incarnation, last.node.clone()?))
        })
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
    pub(super) fn change_plan(&mut self, plan: Arc<Plan>, now: Tick) {
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
            address: live.address.to_string(),
            node: live
                .node
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            draining: told.draining,
            count_calls: told.count_calls,
            ..Endpoint::default()
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
            address: live
                .map(|live| live.address.to_string())
                .unwrap_or_default(),
            uptime_ms: live
                .filter(|live| live.pid != 0)
                .map_or(0, |_| millis(now.since(self.machine.born()))),
            restarts: u32::try_from(self.machine.snapshot().restarts).unwrap_or(u32::MAX),
            last_death: self.last_death().cloned(),
            status: live
                .map(|live| live.status().to_owned())
                .unwrap_or_default(),
            disabled: live.is_some_and(|live| live.disabled),
            resources: Default::default(),
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
                let places = pool.places.iter();
                places.map(move |(slot, place)| self.view(name, pool, slot, place, now))
            })
            .collect()
    }

    fn view(&self, name: &PoolName, pool: &Pool, slot: Slot, place: &Place, now: Tick) -> Worker {
        let mut worker = place.view(name, slot, now);
        let Some(live) = &place.live else {
            return worker;
        };
        let Some(node) = &live.node else {
            worker.status = pool.why_waiting();
            return worker;
        };
        let id = WorkerId {
            pool: name.clone(),
            slot,
            incarnation: live.incarnation,
        };
        let units = self
            .nodes
            .get(node)
            .map_or(&[][..], |node| node.units.of(&id));
        for resource in units {
            let units = resource.units.iter().map(u32::to_string);
            let units = units.collect::<Vec<_>>().join(",");
            worker.resources.insert(resource.name.clone(), units);
        }
        worker
    }

    /// The worker that lives in this place, if it is this incarnation (0 for whichever lives), with
    /// the node it is on.
    pub(crate) fn find_worker(&self, id: &WorkerId) -> Option<(WorkerId, NodeName)> {
        let pool = self.pools.get(&id.pool)?;
        let live = pool.places.get(id.slot)?.live.as_ref()?;
        let wanted = id.incarnation == Incarnation(0) || id.incarnation == live.incarnation;
        let (pool, slot) = (pool.name().clone(), id.slot);
        let found = WorkerId {
            pool,
            slot,
            incarnation: live.incarnation,
        };
        wanted.then_some((found, live.node.clone()?))
    }

    /// The incarnation whose logs are meant (0 for the newest), and the address of the agent that
    /// keeps them.
    pub(crate) fn find_logs(&self, id: &WorkerId) -> Option<(WorkerId, String)> {
        let (newest, node) = self.pools.get(&id.pool)?.places.get(id.slot)?.last_at()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_small() {
        // A million of them: a field that few need goes to what is rare.
        let sizes = (size_of::<Machine>(), size_of::<Live>(), size_of::<Place>());
        assert!(sizes.2 <= 144, "{sizes:?}");
    }
}
