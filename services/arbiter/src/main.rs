//! `tether-arbiter`: the arbiter as a process of its own, on etcd or a file.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tether_arbiter::{Arbiter, Config};
use tether_kit::{admin, manager};
use tether_settings::{
    Admin, At as _, Check, Connect, Ignored, Listen, Place, Templates, Whereabouts, Wrong,
    check_templates, check_whereabouts, named, service, surroundings,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long calls under way may take to end.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(5);

const NO_STORE: &str = "an arbiter of its own needs a store that discovery can read too: set `store = \"etcd://host:2379\"`";

/// What the arbiter reads of the configuration file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    listen: Listen,
    connect: Connect,
    lease: Config,
    store: Option<String>,
    template: Templates,
    admin: Admin,
    agent: Ignored,
    metrics: Ignored,
    discovery: Ignored,
    gateway: Ignored,
}

impl Check for Settings {
    fn check(&self) -> Result<(), Wrong> {
        check_whereabouts(&self.listen, &self.connect, &[Place::Arbiter])?;
        let url = self.store.as_deref().context(NO_STORE).at("store")?;
        tether_store::check(url).at("store")?;
        self.admin.check()?;
        self.lease
            .check(url)
            .map_err(|error| Wrong::among(error.keys(), error))?;
        check_templates(&self.template)
    }
}

fn main() -> ExitCode {
    service(Place::Arbiter, serve)
}

async fn serve(settings: Settings, base: PathBuf, stop: CancellationToken) -> anyhow::Result<()> {
    let url = settings.store.context(NO_STORE)?;
    let at = Whereabouts::new(&settings.listen, &settings.connect)?;
    let listeners = at.bind(Place::Arbiter).await?;
    let admin_at = settings.admin.bind().await?;
    let store = tether_store::open(&url).await?;
    let templates = named(&settings.template, &base)?;
    let address = at.advertised_arbiter()?;
    let on = (url.as_str(), store);
    let arbiter = Arbiter::build(&settings.lease, templates, on, address, surroundings()).await?;
    let mut serving = JoinSet::new();
    for listener in listeners {
        serving.spawn(arbiter.server().serve(listener, stop.clone(), DRAIN));
    }
    let over = CancellationToken::new();
    if let Some(listener) = admin_at {
        let parts = vec![arbiter.ready()];
        serving.spawn(admin::serve(listener, parts, stop.clone(), over.clone()));
    }
    tracing::info!(store = url, "Arbiter serves");
    manager::serves("Serves");
    arbiter.run(stop).await;
    over.cancel();
    while let Some(ended) = serving.join_next().await {
        ended??;
    }
    Ok(())
}
