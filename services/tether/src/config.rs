//! The whole configuration: every service's section in one file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tether_kit::config::{self as layers, Loaded};
use tether_settings::{
    At as _, Check, Connect, Listen, Place, Templates, Wrong, check::some_time, check_templates,
    check_whereabouts, warn,
};

use crate::{Refused, cli};

/// The configuration file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Where state is kept: `memory:`, `redb:/path/file.redb` or `etcd://host:2379`; a file in the
    /// state directory when not set.
    pub(crate) store: Option<String>,
    /// Where services listen.
    pub(crate) listen: Listen,
    /// Where services that run elsewhere are.
    pub(crate) connect: Connect,
    /// How leases are granted.
    pub(crate) lease: tether_arbiter::Config,
    /// The agent.
    pub(crate) agent: tether_agent::Config,
    /// The gateway.
    pub(crate) gateway: tether_gateway::Config,
    /// Where probes are answered.
    pub(crate) admin: tether_settings::Admin,
    /// Where metrics are read.
    pub(crate) metrics: tether_settings::Metrics,
    /// Discovery.
    pub(crate) discovery: tether_discovery::Config,
    /// Templates that pools can name.
    pub(crate) template: Templates,
}

impl Check for Settings {
    fn check(&self) -> Result<(), Wrong> {
        if let Some(url) = &self.store {
            tether_store::check(url).at("store")?;
        }
        check_whereabouts(&self.listen, &self.connect, &Place::ALL)?;
        self.metrics.check()?;
        self.admin.check()?;
        self.lease
            .check(self.store.as_deref().unwrap_or("redb:"))
            .map_err(|error| Wrong::among(error.keys(), error))?;
        self.agent.node().at("agent.node")?;
        self.agent
            .check_worker_host(self.listen.insecure)
            .at("agent.worker_host")?;
        self.agent.check_labels().at("agent.labels")?;
        self.agent.check_resources().at("agent.resources")?;
        self.agent.checkpoints.check().at("agent.checkpoints")?;
        self.gateway.control.check()?;
        some_time("gateway.connect_timeout", self.gateway.connect_timeout)?;
        some_time("discovery.sign_of_life", self.discovery.sign_of_life)?;
        self.discovery
            .check()
            .map_err(|error| Wrong::new(error.key, error.why))?;
        check_templates(&self.template)
    }
}

/// Refuses what could be read and cannot be used.
pub(crate) fn check(loaded: &Loaded<Settings>) -> Result<(), Refused> {
    loaded
        .value
        .check()
        .map_err(|wrong| Refused(wrong.report(loaded)))
}

/// Reads all layers; the second value is the directory relative paths start at.
pub(crate) fn load(args: &cli::Settings) -> anyhow::Result<(Loaded<Settings>, PathBuf)> {
    let loaded: Loaded<Settings> =
        layers::load(args.config.as_deref(), std::env::vars(), &args.sets).map_err(Refused)?;
    warn("tether", &loaded.warnings);
    let file = args
        .config
        .as_deref()
        .and_then(|path| std::path::absolute(path).ok());
    let base = file.as_deref().and_then(Path::parent).map(Path::to_owned);
    Ok((
        loaded,
        base.or_else(|| std::env::current_dir().ok())
            .unwrap_or_default(),
    ))
}

/// `tether config check|show`.
#[expect(clippy::print_stdout, reason = "this is what was asked for")]
pub(crate) fn config(command: &cli::Config) -> anyhow::Result<()> {
    match command {
        cli::Config::Check(args) => {
            let (loaded, _) = load(args)?;
            check(&loaded)?;
            println!("the configuration can be used");
        }
        cli::Config::Show(args) => {
            let (loaded, _) = load(args)?;
            let all = toml::Table::try_from(&loaded.value)?;
            print(&all, "", &|key| match loaded.origins.get(key) {
                Some(origin) => origin.to_string(),
                None => "default".to_owned(),
            });
        }
    }
    Ok(())
}

/// One line for each setting, as one would set it.
#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn print(table: &toml::Table, prefix: &str, origin: &dyn Fn(&str) -> String) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            toml::Value::Table(inner) => print(inner, &format!("{key}."), origin),
            value => println!("{key} = {value}  # {}", origin(&key)),
        }
    }
}
