//! The per-node agent: starts workers through their shims, watches them, and keeps one heartbeat
//! stream to the arbiter for all of them.
//!
//! ```text
//!            orders                    Launch, Ties, Stop
//! arbiter <==========> heartbeat <---> worker task <=========> shim -> worker
//!            reports       |               (one each)   link  ^
//!                          |                                  |
//!                          +-- pages: how long each may go on +
//!                          +-- owners: pidfds of owner processes
//! ```
//!
//! The agent decides nothing: which incarnation runs is the arbiter's decision, and when a worker
//! must be gone is enforced by its shim, whose timer holds even when the agent hangs or is killed.
//! An agent that starts anew finds running shims in its runtime directory and takes them over.

mod abandoned;
mod adopt;
mod beat;
mod checkpoints;
mod config;
mod container;
mod descriptors;
mod diagnosis;
mod epoch;
mod fates;
mod forkserver;
mod guarantee;
pub mod hands;
mod health;
mod heartbeat;
mod history;
mod holds;
mod jobs;
mod journal;
mod keeper;
mod launch;
mod launcher;
mod life;
mod limits;
mod link;
mod liveness;
mod machine;
mod memory;
mod metrics;
mod news;
mod notify;
mod output;
mod owners;
mod pages;
mod permission;
mod polled;
mod readiness;
mod remains;
mod report;
mod scope;
mod search;
mod service;
mod sockets;
mod supervisors;
mod sweep;
mod units;
mod upstream;
mod users;
mod worker;
mod zygote;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tether_kit::{arbiters::Arbiters, metrics::Metrics, serve::MESSAGE_LIMIT};
use tether_proto::{
    checkpoint::checkpoint_service_server::{CheckpointService, CheckpointServiceServer},
    fate::fate_service_server::{FateService, FateServiceServer},
    job::job_service_server::{JobService, JobServiceServer},
    node::agent_service_server::AgentServiceServer,
};
use tether_types::Address;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use abandoned::Abandoned;
pub use config::{Config, Error};
pub use descriptors::make_room;
pub use diagnosis::{Diagnosis, diagnose};
pub use guarantee::Guarantee;
pub use supervisors::{Runit as RunitConfig, Supervisord as SupervisordConfig};
pub use units::{Choice as SystemdChoice, Config as SystemdConfig};
pub use zygote::become_first_where_asked;

/// How long an agent that starts is waited for at most until it has joined. It does its work without, too: an arbiter that is
/// away must not have service managers take an agent for one that failed.
const JOINS: Duration = Duration::from_secs(5);

/// Where this program was started by an agent to be a small part of it, such as a shim in a unit of systemd or the keeper
/// of a service, is that until it ends. To be called first of all.
pub fn play_part_where_asked() -> Option<std::process::ExitCode> {
    units::become_shim_where_asked().or_else(keeper::keep_where_asked)
}

/// Declares what an agent counts, for the reference.
pub fn declare_metrics(metrics: &mut Metrics) {
    metrics::Metrics::declare(metrics, Guarantee::G1, false);
}

/// An agent that is ready to run.
#[derive(Debug)]
pub struct Agent {
    node: heartbeat::Node,
    ground: Arc<config::Ground>,
    workers: Arc<PathBuf>,
    fates: Arc<fates::Board>,
    shelf: Arc<checkpoints::Shelf>,
    upstream: Arc<upstream::Upstream>,
}

impl Agent {
    /// Prepares the runtime directory, takes it for this agent alone, and knocks at what an earlier one left.
    ///
    /// `address` is where [`Agent::service`] will be served, `arbiters` where arbiters are, at least one; what is counted
    /// is declared in `metrics`.
    ///
    /// # Errors
    /// When the directory cannot be made or written, or another agent uses it.
    pub async fn build(
        config: &Config,
        runtime: &std::path::Path,
        address: Address,
        arbiters: Vec<Address>,
        metrics: &mut Metrics,
    ) -> Result<Self, Error> {
        let (ground, left) = config.prepare(runtime, &address, metrics).await?;
        let workers = Arc::new(ground.workers.clone());
        let metrics = Arc::clone(&ground.metrics);
        let fates = Arc::clone(&ground.fates);
        let ground = Arc::new(ground);
        let hands = Box::new(machine::Machine::new(Arc::clone(&ground), left));
        let own = tether_settings::state_dir().map(|state| state.join(own_checkpoints(runtime)));
        let node = config
            .node()
            .map_or_else(|_| String::new(), |node| node.to_string());
        let shelf = Arc::new(checkpoints::Shelf::new(&config.checkpoints, own, node));
        let upstream = Arc::new(upstream::Upstream::new(Arbiters::new(arbiters.clone())));
        let tells = (!config.no_fates).then(|| address.clone());
        Ok(Self {
            node: heartbeat::Node::new(hands, metrics, address, Arbiters::new(arbiters))
                .telling_at(tells),
            ground,
            workers,
            fates,
            shelf,
            upstream,
        })
    }

    /// A node that has its workers held by `hands`, for a simulation: nothing of this machine is touched.
    ///
    /// # Errors
    /// As `hands` say.
    pub async fn run_with(
        hands: Box<dyn hands::Hands>,
        address: Address,
        arbiters: Vec<Address>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let guarantee = hands.place()?.guarantee;
        let metrics = metrics::Metrics::declare(&mut Metrics::default(), guarantee, false);
        let arbiters = Arbiters::new(arbiters);
        heartbeat::Node::new(hands, Arc::new(metrics), address, arbiters)
            .run(stop)
            .await
    }

    /// Whether its node has joined and holds its lease.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.node.joined()
    }

    /// What the arbiter asks of an agent directly.
    pub fn service(
        &self,
    ) -> AgentServiceServer<impl tether_proto::node::agent_service_server::AgentService> {
        AgentServiceServer::new(output::Output::new(Arc::clone(&self.workers)))
    }

    /// What gateways follow, beside discovery.
    pub fn fates(&self) -> FateServiceServer<impl FateService> {
        FateServiceServer::new(fates::Fates::new(Arc::clone(&self.fates)))
    }

    /// What workers say of their jobs.
    pub fn jobs(&self) -> JobServiceServer<impl JobService> {
        JobServiceServer::new(jobs::Jobs(Arc::clone(&self.upstream)))
    }

    /// Where workers save what their jobs go on from.
    pub fn checkpoints(&self) -> CheckpointServiceServer<impl CheckpointService> {
        let (shelf, upstream) = (Arc::clone(&self.shelf), Arc::clone(&self.upstream));
        CheckpointServiceServer::new(checkpoints::Checkpoints::new(shelf, upstream))
            .max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Ends when this node has joined and holds its lease, and so can have workers and watch owners; or where no arbiter
    /// answers, when whoever waits for that should go on without.
    pub fn joins(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ready = self.ready();
        async move {
            let _ = tokio::time::timeout(JOINS, ready.wait_for(|ready| *ready)).await;
        }
    }

    /// Serves until `stop`. Then workers tied to the agent are ended in good order; the others
    /// live on under their leases, for the next agent to take over.
    ///
    /// # Errors
    /// When what it needs of the operating system fails for good.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let sweeping = tokio::spawn(checkpoints::sweep(self.shelf, self.upstream));
        let ended = self.node.run(stop).await;
        sweeping.abort();
        self.fates.close();
        // Tasks that end now keep it too, and the program may be over before they are.
        self.ground.clear();
        ended
    }
}

/// Where an agent on this runtime directory keeps checkpoints if nobody says: what is in the state directory
/// outlives the machine, which a runtime directory may not, and another agent has another one.
fn own_checkpoints(runtime: &std::path::Path) -> PathBuf {
    let name = runtime.display().to_string();
    PathBuf::from("checkpoints").join(name.trim_matches('/').replace('/', "-"))
}
