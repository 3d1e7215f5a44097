//! What runs on each machine: the services as they ship, started as their `main` starts them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tether_agent::Agent;
use tether_arbiter::{Arbiter, Ha, Surroundings};
use tether_client::{Client, SessionOptions};
use tether_discovery::Discovery;
use tether_gateway::Gateway;
use tether_kit::{listen, serve::Server};
use tether_proto::{
    common::WorkerPhase,
    pool::{
        ApplyPoolRequest, PolicyOverrides, PoolSpec, Readiness, ReadinessKind, Restart, Template,
    },
    worker::ListWorkersRequest,
};
use tether_store::Store;
use tether_types::{Address, NodeName, WorkerId};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    census::{Census, Said},
    clocks::{self, Host},
    hands::SimulatedHands,
    processes::Processes,
    tap::Tap,
};

/// Where every service listens on its machine.
const PORT: u16 = 7000;

/// What a node's lease gives: hardly more than a change of leader takes, and two beats.
pub(crate) const NODE_TTL: Duration = Duration::from_secs(6);
/// How long workers of the pool that has it live on disabled.
pub(crate) const GRACE: Duration = Duration::from_secs(3);
/// How long an owner's session lasts.
const SESSION_TTL: Duration = Duration::from_secs(7);
/// How long workers wait for their owner.
pub(crate) const OWNER_TIMEOUT: Duration = Duration::from_secs(9);
/// How long what is cut off from the store may have led before.
pub(crate) const LEADER_TTL: Duration = Duration::from_secs(3);

/// The pools: their names, sizes and graces.
pub(crate) const POOLS: [(&str, u32, Duration); 2] =
    [("digits", 3, Duration::ZERO), ("letters", 2, GRACE)];

/// What software ends with, which is not to happen.
pub(crate) type Ended = turmoil::Result;

/// The address of a machine's service.
pub(crate) fn at(name: &str) -> Address {
    Address::Tcp {
        host: name.to_owned(),
        port: PORT,
    }
}

async fn listener() -> anyhow::Result<listen::Listener> {
    Ok(listen::bind(&at("0.0.0.0"), true).await?)
}

/// An arbiter among several.
pub(crate) async fn arbiter(name: &'static str, tap: Tap) -> Ended {
    clocks::arrive(tap.host);
    let config = tether_arbiter::Config {
        node_ttl: NODE_TTL,
        node_beat: Duration::from_secs(1),
        session_ttl: SESSION_TTL,
        ha: Ha::Elected,
        leader_ttl: LEADER_TTL,
        leader_renew: Duration::from_millis(500),
        leader_guard: Duration::from_millis(300),
    };
    let store: Arc<dyn Store> = Arc::new(tap);
    let url = ("etcd://simulated", store);
    let arbiter = Arbiter::build(
        &config,
        BTreeMap::new(),
        url,
        Some(at(name)),
        Surroundings::default(),
    )
    .await?;
    let stop = CancellationToken::new();
    let server = arbiter.server();
    let serving = server.serve(listener().await?, stop.clone(), Duration::from_secs(1));
    let (served, ()) = tokio::join!(serving, arbiter.run(stop.clone()));
    Ok(served?)
}

/// Discovery, on the same store.
pub(crate) async fn discovery(host: Host, store: Arc<dyn Store>) -> Ended {
    clocks::arrive(host);
    let discovery = Discovery::build(&tether_discovery::Config::default(), store)?;
    let stop = CancellationToken::new();
    let server = Server::new(tether_proto::DESCRIPTORS).service(discovery.service());
    let serving = server.serve(listener().await?, stop.clone(), Duration::from_secs(1));
    let (served, ran) = tokio::join!(serving, discovery.run(stop.clone()));
    served?;
    Ok(ran?)
}

/// The gateway.
pub(crate) async fn gateway(host: Host, arbiters: Vec<Address>, discovery: Address) -> Ended {
    clocks::arrive(host);
    let config = tether_gateway::Config::default();
    let gateway = Gateway::build_here(config, arbiters, discovery);
    gateway
        .serve(vec![listener().await?], CancellationToken::new())
        .await?;
    Ok(())
}

/// An agent's node.
pub(crate) async fn node(
    name: &'static str,
    processes: Processes,
    arbiters: Vec<Address>,
) -> Ended {
    clocks::arrive(processes.host);
    let hands = SimulatedHands {
        name: NodeName::new(name)?,
        processes,
        term: NODE_TTL,
    };
    Agent::run_with(
        Box::new(hands),
        at(name),
        arbiters,
        CancellationToken::new(),
    )
    .await?;
    Ok(())
}

/// An owner: opens a session, applies its pools, and does so again where it lost that.
pub(crate) async fn owner(host: Host, gateway: Address) -> Ended {
    clocks::arrive(host);
    loop {
        let client = Client::connect(&gateway);
        let options = SessionOptions {
            ttl: None,
            process: None,
        };
        if let Ok(session) = client.open_session("beam@sim".parse()?, options).await {
            let mut applied = 0;
            while applied < POOLS.len() {
                let request = ApplyPoolRequest {
                    pool: Some(pool(POOLS[applied])),
                    owner: session.owner().to_string(),
                    epoch: session.epoch().0,
                };
                match client.pools().apply_pool(request).await {
                    Ok(_) => applied += 1,
                    Err(status) => {
                        tracing::info!(%status, "A pool is not applied yet");
                        if session.acting().check().is_err() {
                            break;
                        }
                        sleep(Duration::from_millis(300)).await;
                    }
                }
            }
            let why = session.lost().await;
            tracing::info!(%why, "The owner's session is lost");
        }
        sleep(Duration::from_millis(300)).await;
    }
}

fn pool((name, size, grace): (&str, u32, Duration)) -> PoolSpec {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    PoolSpec {
        name: name.to_owned(),
        mode: "distributed".to_owned(),
        template: Some(Template {
            command: "simulated".to_owned(),
            readiness: Some(Readiness {
                kind: ReadinessKind::Started.into(),
                ..Readiness::default()
            }),
            restart: Some(Restart {
                delay_ms: Some(100),
                max_delay_ms: Some(500),
                max_restarts: Some(1_000),
                ..Restart::default()
            }),
            ..Template::default()
        }),
        size,
        policy: Some(PolicyOverrides {
            on_owner_silent: Some("run_for_timeout".to_owned()),
            heartbeat_interval_ms: Some(1_000),
            heartbeat_timeout_ms: Some(millis(OWNER_TIMEOUT)),
            partition_grace_ms: Some(millis(grace)),
            job_ttl_ms: Some(0),
            ..PolicyOverrides::default()
        }),
        ..PoolSpec::default()
    }
}

/// Asks the ledger who is there, when it is time for that.
pub(crate) async fn auditor(host: Host, gateway: Address, when: Duration, census: Census) -> Ended {
    clocks::arrive(host);
    sleep(when).await;
    loop {
        let client = Client::connect(&gateway);
        let request = ListWorkersRequest::default();
        match client.workers().list_workers(request).await {
            Ok(listed) => {
                let mut said = Said::default();
                for worker in listed.into_inner().workers {
                    let id = worker
                        .worker
                        .as_ref()
                        .and_then(|id| WorkerId::try_from(id).ok());
                    let (Some(id), phase) = (id, worker.phase()) else {
                        continue;
                    };
                    match phase {
                        WorkerPhase::Ready => said.ready.insert(id.to_string()),
                        WorkerPhase::Dead => false,
                        other => said.other.insert(format!("{id} {other:?}")),
                    };
                }
                if let Ok(mut census) = census.lock() {
                    *census = Some(said);
                }
            }
            Err(status) => tracing::info!(%status, "The ledger does not say who is there"),
        }
        sleep(Duration::from_millis(300)).await;
    }
}
