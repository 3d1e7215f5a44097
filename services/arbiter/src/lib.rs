//! The arbiter: grants leases, decides who is alive and who owns what, and places workers on agents.
//!
//! Of several arbiters on one store one leads ([`election`]), and only that one answers ([`seat`]) and
//! writes ([`mandate`]).
//!
//! [`ledger`] decides, without IO; [`shared`] carries out; `rpc` has one file per service. Deadlines
//! are kept in memory and written nowhere: a heartbeat costs no write. What must survive a restart
//! (pools, sessions, nodes, jobs, events) is written when it changes.

mod config;
mod effects;
mod election;
mod events;
mod followers;
mod ledger;
mod mandate;
mod origins;
mod owners;
mod record;
mod registry;
mod rpc;
mod seat;
mod shared;
mod spec;

use std::{collections::BTreeMap, sync::Arc};

use tether_clock::{Clock, GrantorClock, HolderClock};
use tether_kit::serve::{MESSAGE_LIMIT, Server};
use tether_proto::{
    gateway::gateway_service_server::GatewayServiceServer,
    job::job_service_server::JobServiceServer,
    node::node_service_server::NodeServiceServer,
    pool::{Template, pool_service_server::PoolServiceServer},
    registry::registry_service_server::RegistryServiceServer,
    session::session_service_server::SessionServiceServer,
    worker::worker_service_server::WorkerServiceServer,
};
use tether_store::Store;
use tether_types::{Address, TemplateName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Error, Ha};
pub use tether_lifecycle::Surroundings;

use crate::{election::Election, mandate::Mandate, origins::Origins, seat::Seat, shared::Shared};

/// An arbiter that is ready to serve.
#[derive(Debug)]
pub struct Arbiter {
    seat: Arc<Seat>,
    part: Part,
}

/// What it has to do beside answering calls.
#[derive(Debug)]
enum Part {
    /// Nobody else can use its store, so it leads, always.
    Alone(Arc<Shared>),
    /// It leads when it is its turn.
    Elected(Box<Election>),
}

impl Arbiter {
    /// An arbiter on a store that `url` names. One that is alone there reads what an earlier one left;
    /// one of several does so each time it is elected, and tells others of `address`, where it is
    /// reached. What `auto` chooses goes by `surroundings`, and by what nodes offer.
    ///
    /// # Errors
    /// When the configuration cannot be used or the store cannot be read.
    pub async fn build(
        config: &Config,
        templates: BTreeMap<TemplateName, Template>,
        (url, store): (&str, Arc<dyn Store>),
        address: Option<Address>,
        surroundings: Surroundings,
    ) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(GrantorClock::start(shared::ATTENTION));
        let origins = Origins {
            terms: config.terms()?,
            templates,
            surroundings,
            clock,
        };
        let seat = Arc::new(Seat::empty());
        let part = if config.is_elected(url)? {
            tracing::info!("Arbiters on this store elect the one that leads");
            Part::Elected(Box::new(Election {
                store,
                clock: Arc::new(HolderClock::start()),
                seat: Arc::clone(&seat),
                origins,
                terms: config.leader_terms()?,
                address,
            }))
        } else {
            tracing::info!("This arbiter is alone on its store, and leads");
            let mandate = Arc::new(Mandate::unlimited());
            let shared = Arc::new(origins.shared(&store, &mandate).await?);
            seat.take(Arc::clone(&shared));
            Part::Alone(shared)
        };
        Ok(Self { seat, part })
    }

    /// A server with every service of the arbiter, ready while it leads.
    pub fn server(&self) -> Server {
        let seat = || Arc::clone(&self.seat);
        Server::new(tether_proto::DESCRIPTORS)
            .ready(self.seat.serving())
            .service(SessionServiceServer::new(rpc::Sessions(seat())))
            .service(
                PoolServiceServer::new(rpc::Pools(seat())).max_decoding_message_size(MESSAGE_LIMIT),
            )
            .service(WorkerServiceServer::new(rpc::Workers(seat())))
            .service(
                NodeServiceServer::new(rpc::Nodes(seat())).max_decoding_message_size(MESSAGE_LIMIT),
            )
            .service(
                GatewayServiceServer::new(rpc::Gateways(seat()))
                    .max_decoding_message_size(MESSAGE_LIMIT),
            )
            .service(JobServiceServer::new(rpc::Jobs(seat())))
            .service(RegistryServiceServer::new(rpc::Registrations(seat())))
    }

    /// Whether it does its part: it leads, or stands by and sees who does.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.seat.ready()
    }

    /// Keeps the deadlines while it leads, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        match self.part {
            Part::Alone(shared) => shared.keep_time(stop).await,
            Part::Elected(election) => election.run(stop).await,
        }
    }
}
