//! Hosts on one machine: network namespaces on a bridge of their own, and what is lost between them.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Stdio};

use anyhow::{Context as _, ensure};
use tether_tests::is_of_gone_maker;
use tokio::process::Command;

/// Names of our namespaces begin so, and go on with the id of the process that made them.
const PREFIX: &str = "tether-net-";

/// The namespace with the bridge.
const HUB: &str = "hub";

/// The table with what is lost.
const TABLE: &str = "inet lost";

/// Several hosts; gone when dropped, with the networks between them.
#[derive(Debug)]
pub(crate) struct Net {
    prefix: String,
    /// Addresses by host.
    hosts: BTreeMap<&'static str, String>,
}

impl Net {
    /// Makes so many hosts. Every net has the same addresses: none reaches another.
    pub(crate) async fn make(number: u32, hosts: &[&'static str]) -> anyhow::Result<Self> {
        let mut net = Self {
            prefix: format!("{PREFIX}{}-{number}-", std::process::id()),
            hosts: BTreeMap::new(),
        };
        net.add(HUB).await?;
        let hub = net.namespace(HUB);
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"]).await?;
        ip(&["-n", &hub, "link", "set", "bridge", "up"]).await?;
        for (index, &host) in hosts.iter().enumerate() {
            let address = format!("10.77.0.{}", index + 1);
            net.add(host).await?;
            net.plug(host, &address).await?;
            net.hosts.insert(host, address);
        }
        Ok(net)
    }

    /// Why hosts cannot be made here, if they cannot.
    pub(crate) async fn impossible() -> Option<String> {
        remove_stale();
        let tried = Self::make(0, &["one"]).await;
        tried.err().map(|error| format!("{error:#}"))
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    async fn add(&self, host: &str) -> anyhow::Result<()> {
        ip(&["netns", "add", &self.namespace(host)]).await
    }

    /// A cable from a host to the bridge.
    async fn plug(&self, host: &str, address: &str) -> anyhow::Result<()> {
        let (hub, own) = (self.namespace(HUB), self.namespace(host));
        let cable = ["-n", &hub, "link", "add", host, "type", "veth"];
        let end = ["peer", "name", "eth0", "netns", &own];
        ip(&[&cable[..], &end].concat()).await?;
        ip(&["-n", &hub, "link", "set", host, "master", "bridge", "up"]).await?;
        let address = format!("{address}/24");
        ip(&["-n", &own, "addr", "add", &address, "dev", "eth0"]).await?;
        ip(&["-n", &own, "link", "set", "lo", "up"]).await?;
        ip(&["-n", &own, "link", "set", "eth0", "up"]).await?;
        let table = format!(
            "add table {TABLE}; add chain {TABLE} in {{ type filter hook input priority 0; }}"
        );
        self.nft(host, &table).await
    }

    /// A host's address.
    pub(crate) fn address(&self, host: &str) -> &str {
        self.hosts.get(host).map_or("", String::as_str)
    }

    /// A program on a host: in its network, and in nothing else of its own.
    pub(crate) fn command(&self, host: &str, program: PathBuf) -> Command {
        let mut command = Command::new("nsenter");
        let namespace = format!("--net=/run/netns/{}", self.namespace(host));
        command
            .arg(namespace)
            .arg(program)
            .env_remove("TETHER_CONFIG")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Loses every packet that one host sends to the other, without a word to either.
    pub(crate) async fn lose(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let rule = format!("add rule {TABLE} in ip saddr {} drop", self.address(from));
        self.nft(to, &rule).await
    }

    /// Loses nothing any more.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        for host in self.hosts.keys() {
            self.nft(host, &format!("flush chain {TABLE} in")).await?;
        }
        Ok(())
    }

    async fn nft(&self, host: &str, what: &str) -> anyhow::Result<()> {
        let mut command = self.command(host, "nft".into());
        run(command.arg(what), "nft").await
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in self.hosts.keys().copied().chain([HUB]) {
            remove(&self.namespace(host));
        }
    }
}

async fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    run(command.args(arguments).stdin(Stdio::null()), "ip").await
}

async fn run(command: &mut Command, name: &str) -> anyhow::Result<()> {
    let output = command
        .output()
        .await
        .with_context(|| format!("`{name}` cannot be run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{name}`: {}", said.trim());
    Ok(())
}

/// Namespaces of runs that were killed.
fn remove_stale() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_of_gone_maker(&name, PREFIX) {
            remove(&name);
        }
    }
}

fn remove(namespace: &str) {
    // What is in it lives on without a name, and ends with its last process.
    let mut command = std::process::Command::new("ip");
    let command = command.args(["netns", "del", namespace]);
    let _ = command.stderr(Stdio::null()).status();
}
