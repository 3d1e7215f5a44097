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
use tether_client::Client;
use tether_tests::{eventually_within, program};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{sleep, timeout},
};

use crate::{
    lineage::{Kin, Pinned, descendants},
    plan::{Dice, Level},
    strangers::Recycler,
    witness::Witness,
};

/// The static program.
pub(crate) const WORKER: &str = env!("MATRIX_WORKER");

/// Longest time for services to start, on a loaded machine.
pub(crate) const START: Duration = Duration::from_secs(30);

/// The services of a node, in the order they are started.
pub(crate) const SERVICES: [&str; 3] = ["tether-arbiter", "tether-gateway", "tether-agent"];

/// One node.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) level: Level,
    pub(crate) dice: Dice,
    pub(crate) witness: Witness,
    pub(crate) client: Client,
    pub(crate) recycler: Recycler,
    /// A copy of the static program that belongs to another user and is set-uid.
    pub(crate) set_uid: PathBuf,
    /// Makes names of pools and owners unique.
    pub(crate) round: u32,
    /// How long pools took to start when nothing was killed meanwhile.
    pub(crate) spawn_time: Duration,
    services: BTreeMap<&'static str, Pinned>,
    joins: usize,
    dir: TempDir,
    node: String,
    root: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// An owner: a client process that holds a session.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) name: String,
    pub(crate) epoch: u64,
    pub(crate) pinned: Pinned,
    child: Child,
    _lines: Lines<BufReader<ChildStdout>>,
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
            recycler,
            set_uid,
            round: 0,
            spawn_time: Duration::from_millis(200),
            services: BTreeMap::new(),
            joins: 0,
            dir,
            node,
            root,
            orders,
            answers,
        };
        world.mend().await?;
        Ok(world)
    }

    /// A path in the world's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What its services logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Starts a service anew.
    pub(crate) async fn launch(&mut self, name: &'static str) -> anyhow::Result<()> {
        let line = format!(
            "{}\t{}\t--config\t{}\n",
            self.path("log").display(),
            program(name).display(),
            self.path("tether.toml").display(),
        );
        self.orders.write_all(line.as_bytes()).await?;
        let pid = timeout(START, self.answers.next_line()).await??;
        let pid: u32 = pid.context("the root of the world ended")?.parse()?;
        self.services.insert(name, Pinned::new(pid)?);
        Ok(())
    }

    /// Starts every service that does not run, and waits until the node works.
    pub(crate) async fn mend(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        while start.elapsed() < START {
            for name in SERVICES {
                if !self.services.get(name).is_some_and(Pinned::lives) {
                    // Whichever of the two is new, the node has to join anew.
                    if name != "tether-gateway" {
                        self.joins = self.log().matches("Node joined").count();
                    }
                    self.launch(name).await?;
                }
            }
            let joined = eventually_within(Duration::from_secs(5), async || {
                (self.log().matches("Node joined").count() > self.joins
                    || !self.services.values().all(Pinned::lives))
                .then_some(())
            });
            if joined.await.is_some() && self.services.values().all(Pinned::lives) {
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

    /// Starts a client that owns what is applied in its name. Services that were killed a moment ago may
    /// not answer the first one.
    pub(crate) async fn owner(&self, name: String) -> anyhow::Result<Owner> {
        let deadline = Instant::now() + START;
        loop {
            match self.try_owner(name.clone()).await {
                Ok(owner) => return Ok(owner),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn try_owner(&self, name: String) -> anyhow::Result<Owner> {
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.path("log"))?;
        let mut child = Command::new(program("demo-client"))
            .arg("--gateway")
            .arg(format!("unix:{}", self.path("gateway.sock").display()))
            .args(["--owner", &name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("it is piped")?).lines();
        let line = timeout(START, lines.next_line()).await??;
        let said: serde_json::Value = serde_json::from_str(&line.context("the owner ended")?)?;
        ensure!(
            said["event"] == "session",
            "the owner has no session: {said}"
        );
        Ok(Owner {
            name,
            epoch: said["epoch"].as_u64().context("a session has an epoch")?,
            pinned: Pinned::new(child.id().context("the owner runs")?)?,
            child,
            _lines: lines,
        })
    }

    /// Ends the world in good order; tells what was left of it that should not have been.
    pub(crate) async fn end(self) -> anyhow::Result<Vec<String>> {
        for name in ["tether-agent", "tether-gateway", "tether-arbiter"] {
            if let Some(service) = self.services.get(name) {
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
        left.extend(self.abandon().await?);
        Ok(left)
    }

    /// Ends the world as it stands; tells which cgroups could not be removed.
    pub(crate) async fn abandon(mut self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        // The root ends what is left, and then itself.
        drop(self.orders);
        timeout(Duration::from_secs(15), self.root.wait())
            .await
            .context("the world does not end")??;
        for group in cgroups(&self.node) {
            if !remove(&group) {
                left.push(format!("cgroup {}", group.display()));
            }
        }
        Ok(left)
    }
}

impl Owner {
    /// Kills it, where it still lives.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        self.pinned.kill();
        self.child.wait().await?;
        Ok(())
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

/// Where cgroup v2 is mounted.
pub(crate) fn unified() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| path.into())
    })
}

/// The cgroups that an agent made for this node, in the harness's own.
fn cgroups(node: &str) -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let (Some(mount), Some(own)) = (unified(), own) else {
        return Vec::new();
    };
    let entries = fs::read_dir(mount.join(own))
        .into_iter()
        .flatten()
        .flatten();
    let ours = entries.filter(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .contains(&format!("{node}-"))
    });
    ours.map(|entry| entry.path()).collect()
}

/// Removes a cgroup with all below it; one with members stays.
fn remove(cgroup: &Path) -> bool {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
}
