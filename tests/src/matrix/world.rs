//! One node as it would really stand: arbiter, gateway and agent as processes of their own, all descending
//! from one process, so that nothing can leave the world unseen.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;
use tether_client::{Client, Problem};
use tether_proto::worker::ListNodesRequest;
use tether_tests::{eventually_within, program};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    cgroups,
    container::{Container, inner_pid},
    lineage::{Kin, Pinned, descendants},
    plan::{Dice, Level},
    strangers::{Account, Recycler},
    witness::Witness,
};

/// The static program.
pub(crate) const WORKER: &str = env!("MATRIX_WORKER");

/// Longest time for services to start, on a loaded machine.
pub(crate) const START: Duration = Duration::from_secs(30);

/// The services of a node, in the order they are started.
pub(crate) const SERVICES: [&str; 3] = ["tether-arbiter", "tether-gateway", AGENT];

/// The service that may live in a container.
pub(crate) const AGENT: &str = "tether-agent";

/// One node.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) level: Level,
    pub(crate) dice: Dice,
    pub(crate) witness: Witness,
    pub(crate) client: Client,
    /// A copy of the static program that belongs to another user and is set-uid.
    pub(crate) set_uid: PathBuf,
    /// Makes names of pools and owners unique.
    pub(crate) round: u32,
    /// How long pools took to start when nothing was killed meanwhile.
    pub(crate) spawn_time: Duration,
    services: BTreeMap<&'static str, Pinned>,
    /// Where the agent lives at level G4.
    pub(crate) container: Option<Container>,
    joins: usize,
    recycler: Recycler,
    /// What became of the strangers in containers that have ended.
    account: Account,
    dir: TempDir,
    node: String,
    root: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// What there is to say of a world that ended.
#[derive(Debug)]
pub(crate) struct Remains {
    /// What was left of it that should not have been.
    pub(crate) left: Vec<String>,
    /// What became of the strangers in its containers.
    pub(crate) account: Account,
}

impl World {
    /// Starts a node of this level.
    pub(crate) async fn start(
        number: u32,
        level: Level,
        switches: &[&str],
        seed: u64,
        (recycler, set_uid): (Recycler, PathBuf),
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("tm-")
            .tempdir_in(memory())?;
        let node = format!("matrix-{}-{number}", std::process::id());
        let path = |name: &str| dir.path().join(name);
        let mut text = format!(
            "store = \"redb:{}\"\n[listen]\nruntime_dir = {:?}\ngateway = [\"unix:{}\"]\n[agent]\nnode = {node:?}\n",
            path("state.redb").display(),
            dir.path().display().to_string(),
            path("gateway.sock").display(),
        );
        for switch in switches {
            text += &format!("{switch} = true\n");
        }
        fs::write(path("tether.toml"), text)?;
        let witness = Witness::listen(&path("witness"))?;
        let client = Client::connect(&format!("unix:{}", path("gateway.sock").display()).parse()?);
        let mut root = Command::new(WORKER)
            .arg("world")
            .env_clear()
            .envs(std::env::vars_os().filter(|(key, _)| key == "PATH" || key == "HOME"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = root.stdin.take().context("it is piped")?;
        let answers = BufReader::new(root.stdout.take().context("it is piped")?).lines();
        let mut world = Self {
            level,
            dice: Dice::new(seed),
            witness,
            client,
            set_uid,
            round: 0,
            spawn_time: Duration::from_millis(200),
            services: BTreeMap::new(),
            container: None,
            joins: 0,
            recycler,
            account: Account::default(),
            dir,
            node,
            root,
            orders,
            answers,
        };
        world.mend().await?;
        if let Err(error) = world.check_level().await {
            world.abandon().await?;
            return Err(error);
        }
        Ok(world)
    }

    /// What the agent found it can guarantee has to be what is tried.
    async fn check_level(&self) -> anyhow::Result<()> {
        let mut client = self.client.workers();
        let listed = client.list_nodes(ListNodesRequest::default()).await;
        let nodes = listed.map_err(Problem::from)?.into_inner().nodes;
        let found: Vec<_> = nodes.iter().map(|node| node.guarantee.as_str()).collect();
        ensure!(
            found == [self.level.to_string()],
            "a node was to be of level {}, and is of {found:?}",
            self.level
        );
        Ok(())
    }

    /// A path in the world's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What its services logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Starts a service anew; in a container that lives, its first process does.
    pub(crate) async fn launch(&mut self, name: &'static str) -> anyhow::Result<()> {
        let config = format!("--config\t{}", self.path("tether.toml").display());
        let program = program(name).display().to_string();
        if name != AGENT || self.level != Level::G4 {
            let service = self.order(&format!("{program}\t{config}")).await?;
            self.services.insert(name, service);
            return Ok(());
        }
        if !self.in_living_container() {
            if let Some(ended) = self.container.take() {
                self.account.add(ended.end().await?);
            }
            let cgroups = cgroups::unified().unwrap_or_default();
            let order = format!(
                "container\t{}\t{program}\t--init\t{config}",
                cgroups.display()
            );
            self.container = Some(Container::new(self.order(&order).await?)?);
        }
        let agent = match &self.container {
            Some(container) => container.agent().await,
            None => None,
        };
        self.services
            .insert(AGENT, agent.context("no agent runs in the container")?);
        Ok(())
    }

    /// Has the root of the world start a program.
    async fn order(&mut self, words: &str) -> anyhow::Result<Pinned> {
        let line = format!("{}\t{words}\n", self.path("log").display());
        self.orders.write_all(line.as_bytes()).await?;
        let pid = timeout(START, self.answers.next_line()).await??;
        let pid: u32 = pid.context("the root of the world ended")?.parse()?;
        Ok(Pinned::new(pid)?)
    }

    /// Whether the agent is in a container whose first process lives, and starts it again.
    fn in_living_container(&self) -> bool {
        let container = self.container.as_ref();
        container.is_some_and(|container| container.first().lives())
    }

    /// The first process of the container, where there is one.
    pub(crate) fn first(&self) -> Option<&Pinned> {
        self.container.as_ref().map(Container::first)
    }

    /// To be said before the agent is killed: from here on, a node that joins is the next agent.
    pub(crate) fn expect_agent(&mut self) {
        self.joins = self.log().matches("Node joined").count();
    }

    /// The pid that a process has where pids of the dead are taken over: among those that could mistake it.
    pub(crate) fn pid_to_take(&self, process: &Pinned) -> Option<u32> {
        match self.level {
            Level::G4 => inner_pid(process),
            Level::G1 | Level::G2 | Level::G3 | Level::G5 => Some(process.pid),
        }
    }

    /// Has a stranger take such a pid.
    pub(crate) fn take_over(&self, pid: u32) {
        match &self.container {
            Some(container) => container.take_over(pid),
            None => self.recycler.take_over(pid),
        }
    }

    /// Starts every service that does not run, and waits until the node works.
    pub(crate) async fn mend(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        while start.elapsed() < START {
            for name in SERVICES {
                if !self.services.get(name).is_some_and(Pinned::lives) {
                    // Whichever of the two is new, the node has to join anew. An agent in a container may
                    // have done so already.
                    if name != "tether-gateway" && !(name == AGENT && self.in_living_container()) {
                        self.expect_agent();
                    }
                    self.launch(name).await?;
                }
            }
            let joined = eventually_within(Duration::from_secs(5), async || {
                (self.log().matches("Node joined").count() > self.joins
                    || !self.services.values().all(Pinned::lives))
                .then_some(())
            });
            let joined = joined.await.is_some();
            // The node joins by the arbiter alone; the gateway may still be on its way to its socket.
            let gateway = self.path("gateway.sock");
            let serves = eventually_within(Duration::from_secs(5), async || {
                let connected = tokio::net::UnixStream::connect(&gateway).await;
                (connected.is_ok() || !self.services.values().all(Pinned::lives)).then_some(())
            });
            if joined && serves.await.is_some() && self.services.values().all(Pinned::lives) {
                return Ok(());
            }
            if self.log().contains("no_namespaces") && !self.services["tether-agent"].lives() {
                bail!("this agent has no switch `no_namespaces`");
            }
        }
        bail!(
            "the node does not work {START:?} after it was started:\n{}",
            tail(&self.log())
        )
    }

    /// A service that runs.
    pub(crate) fn service(&self, name: &'static str) -> anyhow::Result<&Pinned> {
        self.services
            .get(name)
            .with_context(|| format!("`{name}` was not started"))
    }

    /// Everything that descends from this world.
    pub(crate) fn kin(&self) -> Vec<Kin> {
        self.root.id().map(descendants).unwrap_or_default()
    }

    /// Ends the world in good order; tells what was left of it that should not have been.
    pub(crate) async fn end(self) -> anyhow::Result<Remains> {
        for name in [AGENT, "tether-gateway", "tether-arbiter"] {
            // A container is stopped by asking its first process.
            let first = self.first().filter(|_| name == AGENT);
            if let Some(service) = first.or_else(|| self.services.get(name)) {
                service.terminate();
                let gone = eventually_within(Duration::from_secs(15), async || {
                    (!service.lives()).then_some(())
                });
                gone.await
                    .with_context(|| format!("`{name}` does not stop"))?;
            }
        }
        let empty = eventually_within(Duration::from_secs(10), async || {
            self.kin().is_empty().then_some(())
        });
        let mut left = Vec::new();
        if empty.await.is_none() {
            left.extend(
                self.kin()
                    .into_iter()
                    .map(|kin| format!("process {} `{}`", kin.pid, kin.name)),
            );
        }
        let mut remains = self.abandon().await?;
        left.append(&mut remains.left);
        remains.left = left;
        Ok(remains)
    }

    /// Ends the world as it stands; tells which cgroups could not be removed.
    pub(crate) async fn abandon(mut self) -> anyhow::Result<Remains> {
        let mut left = Vec::new();
        // The root ends what is left, and then itself.
        drop(self.orders);
        timeout(Duration::from_secs(15), self.root.wait())
            .await
            .context("the world does not end")??;
        if let Some(ended) = self.container.take() {
            self.account.add(ended.end().await?);
        }
        for group in cgroups::of(&self.node) {
            if !cgroups::remove(&group) {
                left.push(format!("cgroup {}", group.display()));
            }
        }
        let account = self.account;
        Ok(Remains { left, account })
    }
}

/// Where files are memory.
fn memory() -> PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() {
        shared.into()
    } else {
        std::env::temp_dir()
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
