//! A cluster on hosts of its own, the members of its etcd on disks of their own.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tether_client::Client;
use tether_etcd_cluster::{Cluster, Seat, Setup};
use tether_proto::worker::ListNodesRequest;
use tether_tests::{eventually_within, program};
use tokio::process::Child;

use crate::{
    beats::Beats,
    disks::{Disk, Disks},
    leftovers,
    net::Net,
    owner::{self, Owner},
    plan::Shape,
};

/// Longest time for a cluster to stand, or to stand again, on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

const MEMBERS: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];
const ARBITERS: [&str; 2] = ["arbiter-1", "arbiter-2"];
pub(crate) const NODES: [&str; 2] = ["node-1", "node-2"];
const REST: [&str; 3] = ["gateway", "discovery", "owner"];

/// The harness itself, that asks everybody; nothing is cut off from it.
const HARNESS: &str = "harness";

/// A cluster. Dropping it ends all of it.
#[derive(Debug)]
pub(crate) struct World {
    folder: PathBuf,
    pub(crate) disks: Vec<Disk>,
    pub(crate) etcd: Option<Cluster>,
    pub(crate) arbiters: Vec<Option<Child>>,
    services: Vec<Child>,
    pub(crate) owners: Vec<Owner>,
    pub(crate) beats: Option<Beats>,
    pub(crate) net: Net,
}

impl World {
    /// Starts everything, and waits until the workers are ready. The calling thread is in the network of this
    /// world from here on, until it starts another.
    pub(crate) async fn start(number: u32, shape: Shape, disks: Disks) -> anyhow::Result<Self> {
        let folder = leftovers::folder(number);
        leftovers::clear(&folder);
        fs::create_dir(&folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        let hosts = [&MEMBERS[..], &ARBITERS, &NODES, &REST, &[HARNESS]].concat();
        let mut world = Self {
            net: Net::make(number, &hosts).await?,
            folder,
            disks: Vec::new(),
            etcd: None,
            arbiters: Vec::new(),
            services: Vec::new(),
            owners: Vec::new(),
            beats: None,
        };
        enter(&world.namespace(HARNESS)?)?;
        world.start_store(shape, disks).await?;
        for arbiter in 0..shape.arbiters() {
            world.arbiters.push(None);
            world.start_arbiter(arbiter)?;
            world.leader().await?;
        }
        for host in ["discovery", "gateway"].into_iter().chain(NODES) {
            let service = match NODES.contains(&host) {
                true => "tether-agent".to_owned(),
                false => format!("tether-{host}"),
            };
            let child = world.start_service(host, &service)?;
            world.services.push(child);
        }
        world.nodes_are_up().await?;
        let metrics = NODES.iter().map(|node| world.at(node, METRICS));
        world.beats = Some(Beats::watch(metrics.collect()));
        for mode in owner::MODES {
            let owner = Owner::start(&world, mode).await?;
            world.owners.push(owner);
        }
        Ok(world)
    }

    /// Three members that share, or a file for one arbiter.
    async fn start_store(&mut self, shape: Shape, disks: Disks) -> anyhow::Result<()> {
        for number in 0..shape.disks() {
            let disk = Disk::make(&self.folder, &format!("disk-{number}"), disks).await?;
            self.disks.push(disk);
        }
        if shape == Shape::File {
            return Ok(());
        }
        let mut seats = Vec::new();
        for (host, disk) in MEMBERS.iter().zip(&self.disks) {
            let address = |port| -> anyhow::Result<SocketAddr> { Ok(self.at(host, port).parse()?) };
            let namespace = self.namespace(host)?;
            seats.push(Seat {
                client: address(2379)?,
                peer: address(2380)?,
                data: Some(disk.path().join("etcd")),
                wrapper: vec![
                    "nsenter".to_owned(),
                    format!("--net={}", namespace.display()),
                ],
            });
        }
        let setup = Setup::seats(seats).within(&self.folder);
        self.etcd = Some(setup.start().await);
        Ok(())
    }

    /// The namespace of a host, as the command that enters it names it.
    fn namespace(&self, host: &str) -> anyhow::Result<PathBuf> {
        let command = self.net.command(host, PathBuf::new());
        let argument = command.as_std().get_args().next();
        let path = argument.and_then(|argument| argument.to_str()?.strip_prefix("--net="));
        Ok(path.context("hosts are entered in another way")?.into())
    }

    /// A file of the world.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn at(&self, host: &str, port: u16) -> String {
        format!("{}:{port}", self.net.address(host))
    }

    pub(crate) fn start_arbiter(&mut self, number: usize) -> anyhow::Result<()> {
        let child = self.start_service(ARBITERS[number], "tether-arbiter")?;
        self.arbiters[number] = Some(child);
        Ok(())
    }

    fn start_service(&self, host: &str, service: &str) -> anyhow::Result<Child> {
        let config = self.path(&format!("{host}.toml"));
        fs::write(&config, self.config(host))?;
        let mut log = File::options();
        let log = log.create(true).append(true);
        let log = log.open(self.path(&format!("{host}.log")))?;
        let mut command = self.net.command(host, program(service));
        command.arg("--config").arg(config);
        let started = command.stdout(Stdio::null()).stderr(log).spawn();
        started.with_context(|| format!("`{service}` cannot be started"))
    }

    /// The terms of all leases are the usual ones.
    fn config(&self, host: &str) -> String {
        let (place, port) = match host {
            "gateway" => ("gateway", GATEWAY),
            "discovery" => ("discovery", DISCOVERY),
            host if NODES.contains(&host) => ("agent", AGENT),
            _ => ("arbiter", ARBITER),
        };
        let store = match (&self.etcd, self.disks.first()) {
            (Some(etcd), _) => etcd.url("failovers"),
            (None, Some(disk)) => format!("redb:{}", disk.path().join("state.redb").display()),
            (None, None) => String::new(),
        };
        let arbiters = ARBITERS.iter().take(self.arbiters.len().max(1));
        let arbiters: Vec<_> = arbiters.map(|host| self.at(host, ARBITER)).collect();
        let mut text = format!(
            "store = {store:?}\n\
             [listen]\ninsecure = true\nruntime_dir = {runtime:?}\n{place} = [{own:?}]\n\
             [connect]\narbiter = {arbiters:?}\ndiscovery = {discovery:?}\n",
            runtime = self.path(&format!("run-{host}")).display().to_string(),
            own = self.at(host, port),
            discovery = self.at("discovery", DISCOVERY),
        );
        if place == "agent" {
            let (address, metrics) = (self.net.address(host), self.at(host, METRICS));
            text += &format!(
                "[agent]\nnode = {host:?}\nworker_host = {address:?}\n\
                 [metrics]\ninsecure = true\nlisten = {metrics:?}\n"
            );
        }
        text
    }

    /// The gateway's address.
    pub(crate) fn gateway(&self) -> String {
        self.at("gateway", GATEWAY)
    }

    /// A client of the gateway.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.gateway().parse()?))
    }

    async fn leads(&self, number: usize) -> bool {
        let Ok(address) = self.at(ARBITERS[number], ARBITER).parse() else {
            return false;
        };
        let mut request = tonic::Request::new(ListNodesRequest {});
        request.set_timeout(Duration::from_millis(500));
        let asked = async {
            Client::connect(&address)
                .workers()
                .list_nodes(request)
                .await
        };
        let asked = tokio::time::timeout(Duration::from_secs(1), asked).await;
        asked.is_ok_and(|answer| answer.is_ok())
    }

    /// The arbiter that leads, as it says itself.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        let led = eventually_within(PATIENCE, async || {
            for number in 0..self.arbiters.len() {
                if self.leads(number).await {
                    return Some(number);
                }
            }
            None
        });
        let led = led
            .await
            .with_context(|| format!("no arbiter leads:\n{}", self.tail(ARBITERS[0])))?;
        Ok(led.0)
    }

    /// The process of an arbiter.
    pub(crate) fn arbiter_pid(&self, number: usize) -> anyhow::Result<u32> {
        let arbiter = self.arbiters[number].as_ref();
        let pid = arbiter.and_then(Child::id);
        pid.with_context(|| format!("`{}` does not run", ARBITERS[number]))
    }

    pub(crate) fn etcd(&mut self) -> anyhow::Result<&mut Cluster> {
        self.etcd.as_mut().context("there is no etcd in this world")
    }

    /// The host of a member, and those of the others.
    pub(crate) fn member_hosts(member: usize) -> (&'static str, Vec<&'static str>) {
        let own = MEMBERS[member];
        let others = MEMBERS.into_iter().filter(|&host| host != own);
        (own, others.collect())
    }

    async fn nodes_are_up(&self) -> anyhow::Result<()> {
        let client = self.client()?;
        let up = eventually_within(PATIENCE, async || {
            let nodes = client
                .workers()
                .list_nodes(ListNodesRequest {})
                .await
                .ok()?;
            let nodes = nodes.into_inner().nodes;
            let up = nodes.iter().filter(|node| node.up && !node.lost).count();
            (up == NODES.len()).then_some(())
        });
        if up.await.is_none() {
            bail!("the nodes have not joined:\n{}", self.tail(NODES[0]));
        }
        Ok(())
    }

    /// Every event since the world began; none where the gateway does not answer.
    pub(crate) async fn events(&self) -> Option<Vec<Value>> {
        let mut command = self.net.command("gateway", program("tether"));
        command.args(["--gateway", &self.gateway(), "--output", "json", "events"]);
        let ran = tokio::time::timeout(Duration::from_secs(10), command.output()).await;
        let ran = ran.ok()?.ok().filter(|ran| ran.status.success())?;
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        text.lines()
            .map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The end of what a host logged.
    pub(crate) fn tail(&self, host: &str) -> String {
        let log = fs::read_to_string(self.path(&format!("{host}.log"))).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

const GATEWAY: u16 = 7400;
const ARBITER: u16 = 7401;
const DISCOVERY: u16 = 7402;
const AGENT: u16 = 7403;
const METRICS: u16 = 7404;

/// Moves the calling thread, and what it starts from here on, into a network.
fn enter(namespace: &Path) -> anyhow::Result<()> {
    let link = File::open(namespace)?;
    let entered = {
        use std::os::fd::AsFd as _;
        move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))
    };
    entered.with_context(|| format!("cannot enter `{}`", namespace.display()))
}

impl Drop for World {
    fn drop(&mut self) {
        // What stands still would be waited for.
        leftovers::thaw(&self.folder);
        let arbiters = self.arbiters.iter_mut().flatten();
        for service in arbiters.chain(&mut self.services) {
            let _ = service.start_kill();
        }
        self.owners.clear();
        self.etcd = None;
        leftovers::clear(&self.folder);
    }
}
