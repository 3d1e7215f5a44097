//! `tether-discovery`: discovery as a process of its own.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tether_discovery::{Config, Discovery};
use tether_kit::{admin, manager, serve::Server};
use tether_settings::{
    Admin, At as _, Check, Connect, Ignored, Listen, Place, Whereabouts, Wrong, check::some_time,
    check_whereabouts, service,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long watchers may take to end.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(1);

const NO_STORE: &str =
    "discovery of its own needs the arbiter's store: set `store = \"etcd://host:2379\"`";

/// What discovery reads of the configuration file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    listen: Listen,
    connect: Connect,
    discovery: Config,
    store: Option<String>,
    admin: Admin,
    agent: Ignored,
    metrics: Ignored,
    lease: Ignored,
    gateway: Ignored,
    template: Ignored,
}

impl Check for Settings {
    fn check(&self) -> Result<(), Wrong> {
        check_whereabouts(&self.listen, &self.connect, &[Place::Discovery])?;
        let url = self.store.as_deref().context(NO_STORE).at("store")?;
        tether_store::check(url).at("store")?;
        self.admin.check()?;
        some_time("discovery.sign_of_life", self.discovery.sign_of_life)?;
        self.discovery
            .check()
            .map_err(|error| Wrong::new(error.key, error.why))?;
        Ok(())
    }
}

fn main() -> ExitCode {
    service(Place::Discovery, serve)
}

async fn serve(settings: Settings, _: PathBuf, stop: CancellationToken) -> anyhow::Result<()> {
    let url = settings.store.context(NO_STORE)?;
    let at = Whereabouts::new(&settings.listen, &settings.connect)?;
    let listeners = at.bind(Place::Discovery).await?;
    let admin_at = settings.admin.bind().await?;
    let dns = settings.discovery.dns.bind().await?;
    let xds_at = settings.discovery.xds.bind().await?;
    let mut discovery = Discovery::build(&settings.discovery, tether_store::open(&url).await?)?;
    discovery.answer_dns(dns);
    let mut serving = JoinSet::new();
    for listener in listeners {
        let server = Server::new(tether_proto::DESCRIPTORS)
            .ready(discovery.ready())
            .service(discovery.service());
        serving.spawn(server.serve(listener, stop.clone(), DRAIN));
    }
    if let Some((listener, server)) = xds_at.zip(discovery.xds()) {
        serving.spawn(server.serve(listener, stop.clone(), DRAIN));
    }
    let over = CancellationToken::new();
    if let Some(listener) = admin_at {
        let parts = vec![discovery.ready()];
        serving.spawn(admin::serve(listener, parts, stop.clone(), over.clone()));
    }
    tracing::info!(store = url, "Discovery serves");
    manager::serves("Serves");
    discovery.run(stop).await?;
    over.cancel();
    while let Some(ended) = serving.join_next().await {
        ended??;
    }
    Ok(())
}
