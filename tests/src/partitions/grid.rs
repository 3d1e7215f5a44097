//! The services of a cluster, each on a host of its own.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tether_history::{Checker, Lines, Report, files_in};
use tether_tests::{Traces, eventually_within, program, tidy};
use tokio::process::{Child, Command};

use crate::{
    net::Net,
    plan::{HOSTS, TIMES},
};

/// Longest time for a cluster to stand, or to stand again, on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes.
pub(crate) const NODES: [&str; 2] = ["node-1", "node-2"];

/// A cluster on hosts of its own. Dropping it ends all of it.
#[derive(Debug)]
pub(crate) struct Grid {
    // Processes end before the hosts they are on, and those before their files.
    services: Vec<Child>,
    pub(crate) net: Net,
    /// Whether gateways relay beats of nodes.
    relay: bool,
    dir: TempDir,
}

impl Grid {
    /// Starts the services, and waits until both nodes have joined.
    pub(crate) async fn start(number: u32, relay: bool) -> anyhow::Result<Self> {
        let mut grid = Self {
            services: Vec::new(),
            net: Net::make(number, HOSTS).await?,
            relay,
            dir: tempfile::Builder::new().prefix("tether-net-").tempdir()?,
        };
        grid.start_store()?;
        grid.listens("store", 2379).await?;
        grid.start_service("arbiter", "tether-arbiter")?;
        grid.start_service("discovery", "tether-discovery")?;
        grid.start_service("gateway", "tether-gateway")?;
        for node in NODES {
            grid.start_service(node, "tether-agent")?;
        }
        grid.stands().await?;
        Ok(grid)
    }

    /// A file of the cluster.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self, host: &str) -> anyhow::Result<File> {
        let path = self.path(&format!("{host}.log"));
        Ok(File::options().create(true).append(true).open(path)?)
    }

    fn start_store(&mut self) -> anyhow::Result<()> {
        let address = self.net.address("store");
        let (client, peer) = (
            format!("http://{address}:2379"),
            format!("http://{address}:2380"),
        );
        let mut etcd = self.net.command("store", "etcd".into());
        etcd.arg("--data-dir")
            .arg(self.path("etcd"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--log-level", "error", "--logger", "zap"]);
        self.spawn("store", etcd)
    }

    /// Waits until somebody listens at this port of a host.
    async fn listens(&self, host: &str, port: u16) -> anyhow::Result<()> {
        let pid = self.services.last().and_then(Child::id);
        let pid = pid.with_context(|| format!("nothing runs on `{host}`"))?;
        // As the kernel lists it: the port, and the state of a socket that listens.
        let (port, listening) = (format!(":{port:04X} "), " 0A ");
        let listens = eventually_within(PATIENCE, async || {
            let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
            let mut sockets = sockets.lines();
            let found = sockets.any(|line| line.contains(&port) && line.contains(listening));
            found.then_some(())
        });
        let listens = listens.await;
        listens.with_context(|| format!("nobody listens on `{host}`:\n{}", self.tail(host)))?;
        Ok(())
    }

    fn start_service(&mut self, host: &str, service: &str) -> anyhow::Result<()> {
        let config = self.path(&format!("{host}.toml"));
        fs::write(&config, self.config(host))?;
        let mut command = self.net.command(host, program(service));
        command.arg("--config").arg(config);
        self.spawn(host, command)
    }

    fn spawn(&mut self, host: &str, mut command: Command) -> anyhow::Result<()> {
        let log = self.log(host)?;
        command
            .env("TETHER_HISTORY", self.histories())
            .stdout(Stdio::null())
            .stderr(log);
        let started = command.spawn();
        let child = started.with_context(|| format!("what runs on `{host}` cannot be started"))?;
        self.services.push(child);
        Ok(())
    }

    /// Where services write their histories.
    pub(crate) fn histories(&self) -> PathBuf {
        self.path("history")
    }

    /// What the checker makes of the histories so far.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn judge_histories(&self) -> anyhow::Result<Report> {
        let mut checker = Checker::new();
        for file in files_in(&self.histories())? {
            checker.next_file();
            for record in Lines::open(&file)? {
                checker.read(&record?);
            }
        }
        Ok(checker.finish())
    }

    fn config(&self, host: &str) -> String {
        let at = |host: &str, port: u16| format!("{}:{port}", self.net.address(host));
        let place = if NODES.contains(&host) { "agent" } else { host };
        let millis = |span: Duration| format!("{}ms", span.as_millis());
        let (arbiter, discovery) = (at("arbiter", 7401), at("discovery", 7402));
        let mut text = format!(
            "store = \"etcd://{store}/grid\"\n\
             [listen]\ninsecure = true\nruntime_dir = {runtime:?}\n{place} = [\"{own}\"]\n\
             [connect]\narbiter = \"{arbiter}\"\ndiscovery = \"{discovery}\"\nrelay = {relay}\n\
             [lease]\nnode_ttl = \"{ttl}\"\nnode_beat = \"{beat}\"\n\
             leader_ttl = \"{lead}\"\nleader_renew = \"200ms\"\nleader_guard = \"200ms\"\n",
            store = at("store", 2379),
            runtime = self.runtime(host).display().to_string(),
            own = at(host, port(place)),
            relay = if self.relay {
                format!("[\"{}\"]", at("gateway", 7400))
            } else {
                "[]".to_owned()
            },
            ttl = millis(TIMES.node_ttl),
            beat = millis(TIMES.node_beat),
            lead = millis(TIMES.leader_ttl),
        );
        if self.relay && place == "gateway" {
            text += "[gateway]\nrelay_nodes = true\n";
        }
        if place == "agent" {
            let address = self.net.address(host);
            text += &format!("[agent]\nnode = \"{host}\"\nworker_host = \"{address}\"\n");
        }
        text
    }

    fn runtime(&self, host: &str) -> PathBuf {
        self.path(&format!("run-{host}"))
    }

    /// A client of the gateway that no cut concerns: it is on the gateway's own host.
    pub(crate) fn tether(&self) -> OnGateway<'_> {
        OnGateway(self)
    }

    /// Waits until both nodes have joined and have no worker.
    pub(crate) async fn stands(&mut self) -> anyhow::Result<()> {
        let stands = eventually_within(PATIENCE, async || {
            let nodes = self.tether().json(&["nodes"]).await?;
            let idle = |node: &&serde_json::Value| node["up"] == true && node["workers"] == 0;
            let idle = nodes.as_array()?.iter().filter(idle).count();
            (idle == NODES.len()).then_some(())
        });
        if stands.await.is_some() {
            return Ok(());
        }
        for (host, service) in HOSTS.iter().zip(&mut self.services) {
            if let Some(status) = service.try_wait()? {
                bail!(
                    "what runs on `{host}` ended with {status}:\n{}",
                    self.tail(host)
                );
            }
        }
        bail!("the nodes have not joined:\n{}", self.tail("node-1"))
    }

    /// The end of what a host logged.
    pub(crate) fn tail(&self, host: &str) -> String {
        let log = fs::read_to_string(self.path(&format!("{host}.log"))).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// What lives of the workers of all nodes.
    pub(crate) fn living(&self) -> usize {
        let of = |node: &&str| Traces::of(&self.runtime(node)).find().len();
        NODES.iter().map(of).sum()
    }
}

impl Drop for Grid {
    fn drop(&mut self) {
        for service in &mut self.services {
            let _ = service.start_kill();
        }
        for node in NODES {
            tidy(&self.runtime(node));
        }
    }
}

fn port(place: &str) -> u16 {
    match place {
        "gateway" => 7400,
        "arbiter" => 7401,
        "discovery" => 7402,
        _ => 7403,
    }
}

/// The command line on the gateway's host.
#[derive(Debug)]
pub(crate) struct OnGateway<'a>(&'a Grid);

impl OnGateway<'_> {
    /// What a command answers in JSON; none where it fails.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Option<serde_json::Value> {
        let net = &self.0.net;
        let mut command = net.command("gateway", program("tether"));
        let gateway = format!("{}:7400", net.address("gateway"));
        command.args(["--gateway", &gateway, "--output", "json"]);
        let ran = command.args(arguments).output().await.ok()?;
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        if !ran.status.success() {
            return None;
        }
        // Lists are one value, events one each line.
        let lines = || text.lines().map(serde_json::from_str).collect();
        let value = serde_json::from_str(&text).ok();
        value.or_else(|| Result::<Vec<_>, _>::ok(lines()).map(serde_json::Value::Array))
    }
}
