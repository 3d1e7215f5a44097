//! What starts workers, holds them, and has them know how long they may go on: apart from the node that speaks
//! for them.
//!
//! The node counts beats, hears what is granted and passes orders on. [`Machine`](crate::machine::Machine) carries that out
//! with a zygote, shims and a lease page; a simulation of many nodes in one process, which cannot have those,
//! brings hands of its own, and runs the same node.

use std::{fmt, future::Future, pin::Pin};

use tether_clock::Tick;
use tether_placement::{Counts, Labels};
use tether_proto::node::{OwnerExit, ResourceUnits, StartWorker, WorkerReport};
use tether_types::{NodeName, WorkerId};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

pub use crate::{
    guarantee::Guarantee,
    permission::{Grants, Permissions, PoolPermission, Viewpoint},
    worker::Order,
};

/// Carries out what a node is told.
pub trait Hands: fmt::Debug + Send + Sync {
    /// Where this is, as the arbiter is told.
    ///
    /// # Errors
    /// When the machine does not say.
    fn place(&self) -> anyhow::Result<Place>;

    /// The launchers that can be had here when it is polled.
    fn launchers(&self) -> Launchers {
        Box::pin(std::future::ready(vec!["exec".to_owned()]))
    }

    /// Takes up all workers that an earlier agent left, and tells by which way each takes its orders. They
    /// report from then on. Called once, before all else.
    ///
    /// # Errors
    /// When that cannot be looked through.
    fn adopt(&mut self, wires: Wires) -> anyhow::Result<Vec<Adopted>>;

    /// Starts an incarnation that is not known yet.
    fn start(&mut self, id: WorkerId, order: StartWorker, tie: Tie);

    /// Stores how long all workers may go on, for whoever enforces it to find there; tells whether an end has
    /// moved nearer, so that they have to be told to look.
    fn permit(&mut self, granted: &Permissions, now: Tick) -> bool;

    /// An answer was taken in, and everybody was told.
    fn on_granted(&mut self, granted: &Permissions);

    /// The death of this worker is recorded.
    fn forget(&mut self, id: &WorkerId);
}

/// Will know launchers by their names.
pub type Launchers = Pin<Box<dyn Future<Output = Vec<String>> + Send>>;

/// A worker that an earlier agent left.
#[derive(Debug)]
pub struct Adopted {
    /// Which.
    pub id: WorkerId,
    /// How long before the end of its permission it is asked to end, in milliseconds.
    pub lease_grace_ms: u64,
    /// What it has of the node's counted resources.
    pub resources: Vec<ResourceUnits>,
    /// By which way it takes its orders.
    pub orders: UnboundedSender<Order>,
}

/// What the arbiter is told of a node.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name.
    pub node: NodeName,
    /// Which runtime directory, in which life of the machine: another agent on it knows the same workers.
    pub instance: String,
    /// How surely workers' processes end here.
    pub guarantee: Guarantee,
    /// By what pools choose it.
    pub labels: Labels,
    /// What it has of counted resources.
    pub resources: Counts,
    /// Which processes can be seen from here.
    pub view: Viewpoint,
}

/// What hands are given for all workers.
#[derive(Debug)]
pub struct Wires {
    /// Takes the ends of owners' processes.
    pub exits: UnboundedSender<OwnerExit>,
    /// Takes what becomes of a worker.
    pub reports: UnboundedSender<WorkerReport>,
    /// What is granted.
    pub grants: Grants,
}

/// What hands are given for one worker.
#[derive(Debug)]
pub struct Tie {
    /// Gives what it is asked to do.
    pub orders: UnboundedReceiver<Order>,
    /// Takes what becomes of it.
    pub reports: UnboundedSender<WorkerReport>,
    /// What is granted.
    pub grants: Grants,
}
