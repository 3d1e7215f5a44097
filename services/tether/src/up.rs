//! `tether up`: the four services in one process, on one store. They talk to each other through their
//! sockets, exactly as they do when they run apart.

use std::path::PathBuf;

use anyhow::Context as _;
use tether_agent::Agent;
use tether_arbiter::{Arbiter, Surroundings};
use tether_discovery::Discovery;
use tether_gateway::Gateway;
use tether_kit::{admin, manager, metrics::Metrics, parent::Fate, serve::Server};
use tether_settings::{Place, Whereabouts, surroundings};
use tether_store::Store;
use tether_types::Address;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    cli,
    config::{self, Settings},
};

pub(crate) async fn up(args: cli::Up) -> anyhow::Result<()> {
    // First of all: the later, the likelier that it has ended before.
    let parent = args.parent.open()?;
    let (mut loaded, base) = config::load(&args.settings)?;
    if args.store.is_some() {
        loaded.value.store = args.store;
        loaded
            .origins
            .insert("store".to_owned(), tether_kit::config::Origin::Flag);
    }
    config::check(&loaded)?;
    if loaded.value.store.is_none() {
        loaded.value.store = Some(format!("redb:{}", state_file()?.display()));
    }
    let stop = tether_kit::stop::on_signals()?;
    let fate = match parent {
        Some(parent) => parent.watch(stop.clone())?,
        None => Fate::default(),
    };
    let found = surroundings();
    tokio::spawn(manager::follow(stop.clone()));
    let is_up = CancellationToken::new();
    let up = is_up.clone().cancelled_owned();
    tokio::spawn(async {
        up.await;
        manager::serves("Serves");
    });
    let tokens = (stop, is_up, CancellationToken::new());
    serve(loaded.value, base, found, tokens).await?;
    Ok(fate.check()?)
}

/// Serves until `stop`; `is_up` is cancelled once everything listens, `last` once what ends with the agent has.
pub(crate) async fn serve(
    settings: Settings,
    base: PathBuf,
    surroundings: Surroundings,
    (stop, is_up, last): (CancellationToken, CancellationToken, CancellationToken),
) -> anyhow::Result<()> {
    let templates = tether_settings::named(&settings.template, &base)?;
    let at = Whereabouts::new(&settings.listen, &settings.connect)?;
    let drain = settings.gateway.drain;
    if settings.gateway.handover.is_some() {
        tracing::warn!(
            "`gateway.handover` is for a `tether-gateway` that runs by itself, and is passed over"
        );
    }

    // Everything that can be refused is refused before anything is served.
    let arbiter_at = at.bind(Place::Arbiter).await?;
    let discovery_at = at.bind(Place::Discovery).await?;
    let dns_at = settings.discovery.dns.bind().await?;
    let agent_at = at.bind(Place::Agent).await?;
    let gateway_at = at.bind(Place::Gateway).await?;
    let control_at = settings
        .gateway
        .control
        .bind(&at.listens(Place::Gateway)?)
        .await?;
    let xds_at = settings.discovery.xds.bind().await?;
    let admin_at = settings.admin.bind().await?;
    let metrics_at = settings.metrics.bind().await?;
    let mut metrics = Metrics::new();

    let url = settings.store.context("no store is named")?;
    let store: std::sync::Arc<dyn Store> = tether_store::open(&url).await?;
    let arbiter = {
        let address = at.advertised_arbiter()?;
        let on = (url.as_str(), store.clone());
        Arbiter::build(&settings.lease, templates, on, address, surroundings).await?
    };
    let mut discovery = Discovery::build(&settings.discovery, store)?;
    discovery.answer_dns(dns_at);
    let agent = Agent::build(
        &settings.agent,
        at.runtime(),
        at.find(Place::Agent)?,
        at.ways_to_arbiters()?,
        &mut metrics,
    )
    .await?;
    let gateway = Gateway::build(settings.gateway, at.arbiters()?, at.find(Place::Discovery)?)
        .controlled_at(control_at);

    // Stopping has an order: workers that end with the agent end while their deaths can still be
    // recorded and calls under way can still be told why.
    let mut serving = JoinSet::new();
    for listener in arbiter_at {
        serving.spawn(essential(
            "arbiter",
            arbiter.server().serve(listener, last.clone(), drain),
        ));
    }
    for listener in discovery_at {
        let server = Server::new(tether_proto::DESCRIPTORS)
            .ready(discovery.ready())
            .service(discovery.service());
        serving.spawn(essential(
            "discovery",
            server.serve(listener, last.clone(), drain),
        ));
    }
    if let Some((listener, server)) = xds_at.zip(discovery.xds()) {
        serving.spawn(essential(
            "xDS server",
            server.serve(listener, last.clone(), drain),
        ));
    }
    for listener in agent_at {
        let server = Server::new(tether_proto::DESCRIPTORS)
            .ready(agent.ready())
            .service(agent.service())
            .service(agent.fates())
            .service(agent.jobs())
            .service(agent.checkpoints());
        serving.spawn(essential(
            "agent",
            server.serve(listener, last.clone(), drain),
        ));
    }
    if let Some(listener) = metrics_at {
        let reading = metrics.serve(listener, last.clone());
        serving.spawn(async {
            reading.await;
            Ok(())
        });
    }
    if let Some(listener) = admin_at {
        let parts = vec![
            arbiter.ready(),
            discovery.ready(),
            agent.ready(),
            gateway.ready(),
        ];
        let probes = admin::serve(listener, parts, stop.clone(), last.clone());
        serving.spawn(essential("admin port", probes));
    }
    let joined = CancellationToken::new();
    let joins = agent.joins();
    tokio::spawn({
        let joined = joined.clone();
        async move {
            joins.await;
            joined.cancel();
        }
    });
    let background = tokio_util::task::TaskTracker::new();
    background.spawn(arbiter.run(last.clone()));
    serving.spawn(essential("discovery", discovery.run(last.clone())));
    let agent = serving.spawn(essential("agent", agent.run(stop.clone())));
    // Whoever calls before that waits at its sockets: a pool whose owner is to be watched would be refused.
    let gateway = {
        let (joined, stop) = (joined.clone(), stop.clone());
        async move {
            tokio::select! {
                () = joined.cancelled() => {}
                () = stop.cancelled() => {}
            }
            gateway.serve(gateway_at, stop).await
        }
    };
    serving.spawn(essential("gateway", gateway));
    let addresses: Vec<_> = at
        .listens(Place::Gateway)?
        .iter()
        .map(Address::to_string)
        .collect();
    tracing::info!(gateway = addresses.join(", "), store = url, "Tether is up");
    tokio::spawn(async move {
        joined.cancelled().await;
        is_up.cancel();
    });

    while let Some(ended) = serving.join_next_with_id().await {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, ended),
            Err(panic) => (panic.id(), Err(anyhow::Error::from(panic))),
        };
        if let Err(error) = ended {
            last.cancel();
            return Err(error);
        }
        if !stop.is_cancelled() {
            last.cancel();
            return Err(anyhow::anyhow!("a service stopped without being asked to"));
        }
        if id == agent.id() {
            last.cancel();
        }
    }
    tracing::info!("Tether is down");
    Ok(())
}

/// A service whose end is the end of all.
async fn essential<E: Into<anyhow::Error>>(
    name: &'static str,
    serving: impl Future<Output = Result<(), E>>,
) -> anyhow::Result<()> {
    serving
        .await
        .map_err(Into::into)
        .with_context(|| format!("the {name} failed"))
}

/// Where state is kept when nothing is said.
fn state_file() -> anyhow::Result<PathBuf> {
    let dir = tether_settings::state_dir();
    let dir = dir.context("there is no home directory to keep state in: give `--store`")?;
    std::fs::create_dir_all(&dir).with_context(|| {
        format!(
            "cannot make the state directory `{}`: make it writable, or give `--store`",
            dir.display()
        )
    })?;
    Ok(dir.join("tether.redb"))
}
