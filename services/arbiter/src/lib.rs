//! The arbiter: grants leases, decides who is alive and who owns what, and places workers on agents.
//!
//! [`ledger`] decides, without IO; [`shared`] carries out; `rpc` has one file per service. Deadlines
//! are kept in memory and written nowhere: a heartbeat costs no write. What must survive a restart
//! (pools, sessions, nodes, jobs, events) is written when it changes.

mod config;
mod effects;
mod events;
mod ledger;
mod owners;
mod record;
mod rpc;
mod shared;
mod spec;

use std::{collections::BTreeMap, sync::Arc};

use tether_clock::{BootClock, Clock as _};
use tether_kit::serve::{MESSAGE_LIMIT, Server};
use tether_lifecycle::Environment;
use tether_proto::{
    gateway::gateway_service_server::GatewayServiceServer,
    job::job_service_server::JobServiceServer,
    node::node_service_server::NodeServiceServer,
    pool::{Template, pool_service_server::PoolServiceServer},
    session::session_service_server::SessionServiceServer,
    worker::worker_service_server::WorkerServiceServer,
};
use tether_store::Store;
use tether_types::TemplateName;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Error};

use crate::{events::Events, ledger::Ledger, shared::Shared};

/// An arbiter that is ready to serve.
#[derive(Debug, Clone)]
pub struct Arbiter {
    shared: Arc<Shared>,
}

impl Arbiter {
    /// Reads what an earlier arbiter left in the store.
    ///
    /// # Errors
    /// When the configuration cannot be used or the store cannot be read.
    pub async fn build(
        config: &Config,
        templates: BTreeMap<TemplateName, Template>,
        store: Arc<dyn Store>,
    ) -> anyhow::Result<Self> {
        let clock = Arc::new(BootClock);
        let environment = Environment {
            kubernetes: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
            nomad: std::env::var_os("NOMAD_ALLOC_ID").is_some(),
            // No agent has a launcher for it yet, so it is not usable by us.
            systemd_usable: false,
            production: std::env::var("TETHER_PROFILE")
                .is_ok_and(|profile| profile == "production"),
        };
        let mut ledger = Ledger::new(config.terms()?, templates, environment);
        let mut left = store.list("arbiter/").await?;
        left.entries
            .extend(store.list(tether_store::keys::SERVE).await?.entries);
        ledger.restore(&left, clock.now())?;
        let events = Events::restore(&left);
        Ok(Self {
            shared: Arc::new(Shared::new(ledger, store, events, clock)),
        })
    }

    /// A server with every service of the arbiter.
    pub fn server(&self) -> Server {
        let shared = || Arc::clone(&self.shared);
        Server::new(tether_proto::DESCRIPTORS)
            .service(SessionServiceServer::new(rpc::Sessions(shared())))
            .service(
                PoolServiceServer::new(rpc::Pools(shared()))
                    .max_decoding_message_size(MESSAGE_LIMIT),
            )
            .service(WorkerServiceServer::new(rpc::Workers(shared())))
            .service(
                NodeServiceServer::new(rpc::Nodes(shared()))
                    .max_decoding_message_size(MESSAGE_LIMIT),
            )
            .service(
                GatewayServiceServer::new(rpc::Gateways(shared()))
                    .max_decoding_message_size(MESSAGE_LIMIT),
            )
            .service(JobServiceServer::new(rpc::Jobs(shared())))
    }

    /// Keeps the deadlines until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        self.shared.keep_time(stop).await;
    }
}
