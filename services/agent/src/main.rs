//! `tether-agent`: the agent of a node as a process of its own.

use std::{path::PathBuf, process::ExitCode};

use serde::{Deserialize, Serialize};
use tether_agent::{Agent, Config};
use tether_kit::{admin, manager, metrics::Metrics, serve::Server};
use tether_settings::{
    Admin, At as _, Check, Connect, Ignored, Listen, Place, Whereabouts, Wrong, check_whereabouts,
    service,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long readers of logs may take to end.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// What the agent reads of the configuration file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    listen: Listen,
    connect: Connect,
    admin: Admin,
    agent: Config,
    metrics: tether_settings::Metrics,
    store: Option<String>,
    lease: Ignored,
    discovery: Ignored,
    gateway: Ignored,
    template: Ignored,
}

impl Check for Settings {
    fn check(&self) -> Result<(), Wrong> {
        check_whereabouts(&self.listen, &self.connect, &[Place::Agent])?;
        self.metrics.check()?;
        self.admin.check()?;
        self.agent.node().at("agent.node")?;
        self.agent
            .check_worker_host(self.listen.insecure)
            .at("agent.worker_host")?;
        self.agent.check_labels().at("agent.labels")?;
        self.agent.check_resources().at("agent.resources")?;
        self.agent.checkpoints.check().at("agent.checkpoints")
    }
}

#[expect(
    clippy::print_stderr,
    reason = "nothing is set up yet that could tell it otherwise"
)]
fn main() -> ExitCode {
    if let Some(code) = tether_agent::play_part_where_asked() {
        return code;
    }
    if let Err(error) = tether_agent::become_first_where_asked() {
        eprintln!("tether-agent: cannot be the first process of a container: {error}");
        return ExitCode::FAILURE;
    }
    tether_agent::make_room();
    service(
        "tether-agent",
        "Starts, watches and reaps the workers of this node",
        serve,
    )
}

async fn serve(settings: Settings, _: PathBuf, stop: CancellationToken) -> anyhow::Result<()> {
    let at = Whereabouts::new(&settings.listen, &settings.connect)?;
    let listeners = at.bind(Place::Agent).await?;
    let admin_at = settings.admin.bind().await?;
    let metrics_at = settings.metrics.bind().await?;
    let mut metrics = Metrics::new();
    let agent = Agent::build(
        &settings.agent,
        at.runtime(),
        at.find(Place::Agent)?,
        at.ways_to_arbiters()?,
        &mut metrics,
    )
    .await?;
    let mut serving = JoinSet::new();
    // To be read until the last worker is gone.
    let over = CancellationToken::new();
    if let Some(listener) = metrics_at {
        let reading = metrics.serve(listener, over.clone());
        serving.spawn(async {
            reading.await;
            Ok(())
        });
    }
    if let Some(listener) = admin_at {
        let parts = vec![agent.ready()];
        serving.spawn(admin::serve(listener, parts, stop.clone(), over.clone()));
    }
    for listener in listeners {
        let server = Server::new(tether_proto::DESCRIPTORS)
            .ready(agent.ready())
            .service(agent.service())
            .service(agent.fates())
            .service(agent.jobs())
            .service(agent.checkpoints());
        serving.spawn(server.serve(listener, over.clone(), DRAIN));
    }
    let joins = agent.joins();
    tokio::spawn(async {
        joins.await;
        manager::serves("Holds workers");
    });
    agent.run(stop).await?;
    over.cancel();
    while let Some(ended) = serving.join_next().await {
        ended??;
    }
    Ok(())
}
