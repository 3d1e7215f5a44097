//! The hands of a node on a real machine: zygote, shims, fork servers, and the lease page.

use std::sync::Arc;

use anyhow::Context as _;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::node::StartWorker;
use tether_types::WorkerId;
use tokio::sync::mpsc;

use crate::{
    adopt::{self, History, Left},
    config::Ground,
    forkserver::{self, ForkServers, Keeper},
    hands::{Adopted, Hands, Launchers, Place, Tie, Wires},
    launcher,
    owners::Owners,
    permission::{Permissions, Viewpoint},
    worker::{self, Ties},
};

/// One machine's.
#[derive(Debug)]
pub(crate) struct Machine {
    ground: Arc<Ground>,
    /// Until it is adopted.
    left: Left,
    history: History,
    owners: Option<Owners>,
    forkservers: ForkServers,
    requests: Option<mpsc::UnboundedReceiver<forkserver::Request>>,
}

impl Machine {
    pub(crate) fn new(ground: Arc<Ground>, left: Left) -> Self {
        let (forkservers, requests) = forkserver::channel();
        Self {
            ground,
            left,
            history: History::default(),
            owners: None,
            forkservers,
            requests: Some(requests),
        }
    }

    fn ties(&self, tie: Tie) -> Ties {
        Ties {
            ground: Arc::clone(&self.ground),
            grants: tie.grants,
            orders: tie.orders,
            reports: tie.reports,
            forkservers: self.forkservers.clone(),
        }
    }
}

impl Hands for Machine {
    fn place(&self) -> anyhow::Result<Place> {
        let view = Viewpoint {
            boot_id: tether_kit::process::boot_id().context("cannot read the machine's boot id")?,
            pid_namespace: tether_kit::process::pid_namespace()
                .context("cannot see the own PID namespace")?,
        };
        Ok(Place {
            node: self.ground.node.clone(),
            instance: self.ground.instance.clone(),
            guarantee: self.ground.guarantee,
            labels: self.ground.labels.clone(),
            resources: self.ground.resources.clone(),
            view,
        })
    }

    fn launchers(&self) -> Launchers {
        let ground = Arc::clone(&self.ground);
        Box::pin(async move { launcher::offered(&ground).await })
    }

    /// What they need to be watched is done later.
    fn adopt(&mut self, wires: Wires) -> anyhow::Result<Vec<Adopted>> {
        self.owners = Some(Owners::new(wires.exits).context("cannot watch processes")?);
        let left = std::mem::take(&mut self.left);
        self.history = left.history;
        if let Some(requests) = self.requests.take() {
            let (ground, permissions) = (Arc::clone(&self.ground), wires.grants.steps.clone());
            let way = (self.forkservers.clone(), requests);
            let keeper = Keeper::new(ground, permissions, way, left.forkservers)
                .context("cannot look through the runtime directory")?;
            tokio::spawn(keeper.run());
        }
        let mut known = Vec::new();
        let mut tied = Vec::new();
        for found in left.workers {
            let (orders, received) = mpsc::unbounded_channel();
            known.push(Adopted {
                id: found.id.clone(),
                lease_grace_ms: found.entry.order.lease_grace_ms,
                resources: found.entry.order.resources.clone(),
                orders,
            });
            let tie = Tie {
                orders: received,
                reports: wires.reports.clone(),
                grants: wires.grants.clone(),
            };
            tied.push((self.ties(tie), found));
        }
        tokio::spawn(adopt::watch(worker::hold(tied)));
        Ok(known)
    }

    fn start(&mut self, id: WorkerId, order: StartWorker, tie: Tie) {
        let order = match self.ground.ceiling {
            Some(ceiling) => ceiling.hold(order),
            None => order,
        };
        tokio::spawn(worker::start(id, order, self.ties(tie)));
    }

    fn permit(&mut self, granted: &Permissions, now: Tick) -> bool {
        self.ground.fates.permit(granted);
        self.ground.pages.store(granted, now)
    }

    fn on_granted(&mut self, granted: &Permissions) {
        if let Some(owners) = &mut self.owners {
            owners.watch(granted);
        }
        self.ground.sockets.check(BootClock.now());
    }

    fn forget(&mut self, id: &WorkerId) {
        self.ground.fates.forget(id);
        self.history
            .keep(worker::directory(&self.ground.workers, id));
    }
}
