//! The hands of a simulated node: what a zygote and shims do, on processes that are only written down.

use std::time::Duration;

use tether_agent::hands::{
    Adopted, Guarantee, Hands, Order, Permissions, Place, Tie, Viewpoint, Wires,
};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{
    common::{self, WorkerPhase, WorkerRef},
    node::{StartWorker, WorkerReport},
};
use tether_types::{Death, DeathCause, NodeName, Orderer, WorkerId};
use tokio::{sync::mpsc, time::sleep};

use super::processes::{Process, Processes};

/// From the order to start a worker until its shim has been asked.
const PREPARES: Duration = Duration::from_millis(20);
/// From there until it is ready.
const BECOMES_READY: Duration = Duration::from_millis(100);
/// What a worker that is told to end takes for that.
const ENDS: Duration = Duration::from_millis(50);

/// One node's.
#[derive(Debug)]
pub(crate) struct SimulatedHands {
    pub(crate) name: NodeName,
    pub(crate) processes: Processes,
    /// What a lease of this node gives, for mistakes.
    pub(crate) term: Duration,
}

impl Hands for SimulatedHands {
    fn place(&self) -> anyhow::Result<Place> {
        Ok(Place {
            node: self.name.clone(),
            instance: format!("{}/1", self.name),
            guarantee: Guarantee::G3,
            labels: Default::default(),
            resources: Default::default(),
            view: Viewpoint {
                boot_id: self.name.to_string(),
                pid_namespace: 1,
            },
        })
    }

    fn adopt(&mut self, wires: Wires) -> anyhow::Result<Vec<Adopted>> {
        let mut known = Vec::new();
        for (id, process) in self.processes.found(self.term) {
            let (orders, received) = mpsc::unbounded_channel();
            let tie = Tie {
                orders: received,
                reports: wires.reports.clone(),
                grants: wires.grants.clone(),
            };
            known.push(Adopted {
                id: id.clone(),
                resources: Vec::new(),
                lease_grace_ms: 0,
                orders,
            });
            if process.death.is_none() {
                let ready = WorkerReport {
                    adopted: true,
                    ..report(&id, WorkerPhase::Ready, process.pid)
                };
                let _ = tie.reports.send(ready);
            }
            tokio::spawn(watch(id, process, self.processes.clone(), tie));
        }
        Ok(known)
    }

    fn start(&mut self, id: WorkerId, order: StartWorker, tie: Tie) {
        tokio::spawn(start(id, order, self.processes.clone(), tie));
    }

    fn permit(&mut self, granted: &Permissions, _: Tick) -> bool {
        self.processes.permit(granted, self.term)
    }

    fn on_granted(&mut self, _: &Permissions) {}

    fn forget(&mut self, _: &WorkerId) {}
}

async fn start(id: WorkerId, order: StartWorker, processes: Processes, tie: Tie) {
    sleep(PREPARES).await;
    // As of this moment: an order may have waited.
    let until = {
        let granted = tie.grants.news.borrow();
        let pool = granted.pool(&id.pool);
        match granted.enabled(BootClock.now()) {
            true => granted
                .alive_until(&id)
                .min(pool.map_or(Tick::ZERO, |pool| pool.deadline)),
            false => Tick::ZERO,
        }
    };
    let process = processes.start(&id, until, order.kill_on_agent_loss);
    if process.death.is_none() {
        let _ = tie
            .reports
            .send(report(&id, WorkerPhase::Starting, process.pid));
        sleep(BECOMES_READY).await;
        if processes.death(&id).is_none() {
            let _ = tie
                .reports
                .send(report(&id, WorkerPhase::Ready, process.pid));
        }
    }
    watch(id, process, processes, tie).await;
}

/// Stays with a worker until its death is recorded.
async fn watch(id: WorkerId, process: Process, processes: Processes, mut tie: Tie) {
    let mut told = false;
    loop {
        if let Some(cause) = processes.death(&id).filter(|_| !told) {
            let _ = tie.reports.send(dead(&id, cause));
            told = true;
        }
        tokio::select! {
            () = process.died.notified() => {}
            order = tie.orders.recv() => match order {
                Some(Order::Stop { cause, .. }) => {
                    if processes.death(&id).is_none() {
                        let _ = tie.reports.send(report(&id, WorkerPhase::Stopping, process.pid));
                    }
                    let cause = match cause {
                        tether_shim_protocol::Cause::Ordered(_) => DeathCause::Ordered(Orderer::Owner),
                        _ => DeathCause::Unhealthy,
                    };
                    processes.end(&id, BootClock.now() + ENDS, cause);
                }
                Some(Order::Signal(_)) => {}
                Some(Order::Forget) if told => return processes.forget(&id),
                Some(Order::Forget) => {}
                None => return,
            },
        }
    }
}

fn report(id: &WorkerId, phase: WorkerPhase, pid: u32) -> WorkerReport {
    WorkerReport {
        worker: Some(WorkerRef::from(id)),
        phase: phase.into(),
        pid,
        address: format!("unix:/{id}"),
        ..WorkerReport::default()
    }
}

fn dead(id: &WorkerId, cause: DeathCause) -> WorkerReport {
    let death = Death {
        cause,
        exit_code: None,
        signal: None,
        detail: String::new(),
        stderr_tail: String::new(),
        measures: None,
    };
    WorkerReport {
        death: Some(common::Death::from(&death)),
        ..report(id, WorkerPhase::Dead, 0)
    }
}
