//! A real agent behind the injector, with a puppet for its arbiter: told move by move what to start and end,
//! and looked through afterwards for anything that was left.

#[path = "node/injection.rs"]
mod injection;
#[path = "node/left.rs"]
mod left;
#[path = "node/orders.rs"]
mod orders;
#[path = "node/pools.rs"]
mod pools;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tether_clock::Tick;
use tether_proto::node::{Hello, WorkerReport};
use tether_tests::{cgroups, eventually_within, program};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    lineage::{Kin, Pinned, ancestor, descendants},
    puppet::{Heard, Puppet},
    witness::Witness,
};

pub(crate) use injection::Counts;
pub(crate) use left::Holdings;
pub(crate) use orders::Outcome;
pub(crate) use pools::{LEASE, Pool};

/// The static worker of the kill matrix, which tells a witness of its life.
pub(crate) const WORKER: &str = env!("MATRIX_WORKER");

const INJECTOR: &str = env!("FAULT_INJECTOR");

/// Longer than an agent tries to get a shim, and a shim to kill what does not die.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Until nothing is left of the dead, a shim's wait for its last word included.
const QUIET: Duration = Duration::from_secs(10);

/// One agent and what stands around it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) puppet: Puppet,
    pub(crate) agent: Option<Pinned>,
    /// What the agent said of itself when it joined.
    pub(crate) hello: Hello,
    witness: Witness,
    next: u64,
    /// The pools of those workers that are in another than the usual one.
    elsewhere: BTreeMap<u64, Pool>,
    /// Reports that somebody else was waiting for.
    mail: Vec<WorkerReport>,
    injector: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    dir: TempDir,
}

/// Settings of every agent: walls that it is to do without.
pub(crate) static WITHOUT: OnceLock<Vec<&'static str>> = OnceLock::new();

impl Node {
    /// Everything but the agent. Without other words the agent is started as it is; with some, those start it,
    /// in a shell that knows it as `"$@"`.
    pub(crate) async fn prepare(name: &str, script: Option<&str>) -> anyhow::Result<Self> {
        let shared = Path::new("/dev/shm");
        let memory = if shared.is_dir() {
            shared.to_owned()
        } else {
            std::env::temp_dir()
        };
        let dir = tempfile::Builder::new().prefix("tf-").tempdir_in(memory)?;
        let runtime = dir.path().join("run");
        fs::create_dir(&runtime)?;
        let puppet = Puppet::listen(&dir.path().join("arbiter.sock"), pools::grant(None)).await?;
        let witness = Witness::listen(&dir.path().join("witness"))?;
        let log = fs::File::create(dir.path().join("log"))?;
        let mut command = Command::new(INJECTOR);
        if let Some(script) = script {
            command.args(["/bin/sh", "-ec", script, "sh"]);
        }
        let without = WITHOUT.get().into_iter().flatten();
        command
            .arg(program("tether-agent"))
            .args(without.flat_map(|setting| ["--set", setting]))
            .args([
                "--set",
                &format!("agent.node=faults-{}-{name}", std::process::id()),
            ])
            .args([
                "--set",
                &format!("listen.runtime_dir={}", runtime.display()),
            ])
            .args([
                "--set",
                &format!(
                    "connect.arbiter=unix:{}",
                    dir.path().join("arbiter.sock").display()
                ),
            ])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TF", dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut injector = command.spawn().context("cannot start the injector")?;
        let orders = injector.stdin.take().context("it is piped")?;
        let answers = BufReader::new(injector.stdout.take().context("it is piped")?).lines();
        Ok(Self {
            puppet,
            agent: None,
            hello: Hello::default(),
            witness,
            next: 1,
            elsewhere: BTreeMap::new(),
            mail: Vec::new(),
            injector,
            orders,
            answers,
            dir,
        })
    }

    /// An agent that has joined, with nothing failing.
    pub(crate) async fn start(name: &str) -> anyhow::Result<Self> {
        Self::start_by(name, None).await
    }

    /// The same, started by these words.
    pub(crate) async fn start_by(name: &str, script: Option<&str>) -> anyhow::Result<Self> {
        let mut node = Self::prepare(name, script).await?;
        if !node.join().await? {
            bail!("the agent ended before it joined: {}", node.last_words());
        }
        Ok(node)
    }

    /// Starts the agent; tells whether it joined, or ended by itself.
    pub(crate) async fn join(&mut self) -> anyhow::Result<bool> {
        self.join_by("start").await
    }

    /// The same at full speed: nothing can be made to fail.
    pub(crate) async fn join_unwatched(&mut self) -> anyhow::Result<bool> {
        self.join_by("run").await
    }

    async fn join_by(&mut self, word: &str) -> anyhow::Result<bool> {
        let said = self.tell(word).await?;
        let pid = said.first().and_then(|line| line.strip_prefix("agent "));
        let agent = Pinned::new(pid.context("no agent was started")?.parse()?)?;
        let gone = eventually_within(PATIENCE, async || (!agent.lives()).then_some(()));
        let joined = async {
            loop {
                match self.puppet.next(PATIENCE).await?.1 {
                    Heard::Hello(hello) => {
                        // What became known before it had a stream is told here and not again.
                        self.mail = hello.workers.clone();
                        self.hello = hello;
                    }
                    Heard::FirstBeat => return anyhow::Ok(()),
                    Heard::Report(_) | Heard::OwnerExit(_) => {}
                }
            }
        };
        let joined = tokio::select! {
            joined = joined => { joined?; true }
            gone = gone => { gone.context("the agent neither joins nor ends")?; false }
        };
        self.agent = Some(agent);
        Ok(joined)
    }

    /// Lets the agent join another arbiter, to hear what it lists.
    pub(crate) async fn rejoin(mut self) -> anyhow::Result<Self> {
        let socket = self.path("arbiter.sock");
        self.puppet.close().await;
        self.puppet = Puppet::listen(&socket, pools::grant(None)).await?;
        loop {
            if let Heard::Hello(hello) = self.puppet.next(PATIENCE).await?.1 {
                self.hello = hello;
                return Ok(self);
            }
        }
    }

    /// Kills the agent, and comes back when it is gone; tells when its last beat was received.
    pub(crate) async fn lose_agent(&mut self) -> anyhow::Result<Tick> {
        let agent = self.agent.take().context("there is no agent")?;
        agent.kill();
        let gone = eventually_within(PATIENCE, async || (!agent.lives()).then_some(()));
        gone.await.context("the agent cannot be killed")?;
        Ok(self.puppet.grant(pools::grant(None)))
    }

    /// The shim above this process, or that is it, and the zygote above that.
    pub(crate) fn keepers(&self, pid: u32) -> anyhow::Result<(u32, u32)> {
        let kin = self.kin();
        let is_shim = |kin: &&Kin| kin.pid == pid && kin.name == "tether-shim";
        let shim = kin.iter().find(is_shim).map(|kin| kin.pid);
        let shim = shim.or_else(|| ancestor(&kin, pid, "tether-shim"));
        let shim = shim.context("a worker without a shim")?;
        let zygote = ancestor(&kin, shim, "tether-zygote").context("a shim without a zygote")?;
        Ok((shim, zygote))
    }

    /// A path in the node's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path in it as the agent sees it, which may have mounts of its own.
    pub(crate) fn seen(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        match &self.agent {
            Some(agent) if agent.lives() => Path::new(&format!("/proc/{}/root", agent.pid))
                .join(path.strip_prefix("/").unwrap_or(&path)),
            _ => path,
        }
    }

    /// What the agent and its zygote logged.
    pub(crate) fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.path(name)).unwrap_or_default();
        read("log") + &fs::read_to_string(self.seen("run/zygote.log")).unwrap_or_default()
    }

    /// The last line that the agent logged.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let last = log.lines().rfind(|line| !line.trim().is_empty());
        last.unwrap_or("nothing was logged").to_owned()
    }

    /// All processes below the injector, but the agent.
    pub(crate) fn kin(&self) -> Vec<Kin> {
        let agent = self.agent.as_ref().map(|agent| agent.pid);
        let mut kin = self.injector.id().map(descendants).unwrap_or_default();
        kin.retain(|kin| Some(kin.pid) != agent);
        kin
    }

    /// The zygote that takes requests, pinned.
    pub(crate) fn zygote(&self) -> Option<Pinned> {
        let agent = self.agent.as_ref()?.pid;
        let kin = self.kin();
        let zygote = kin.iter().find(|kin| kin.parent == agent)?;
        Pinned::new(zygote.pid).ok()
    }

    /// Ends all of it, whatever state it is in; tells what could not be ended.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let made = cgroups(&self.seen("run"));
        let gone = eventually_within(QUIET, async || {
            for kin in self.kin() {
                let _ = Pinned::new(kin.pid).is_ok_and(|kin| kin.kill());
            }
            if let Some(agent) = &self.agent {
                agent.kill();
            }
            let agent = self.agent.as_ref().is_some_and(Pinned::lives);
            (!agent && self.kin().is_empty()).then_some(())
        });
        let gone = gone.await;
        drop(self.orders);
        timeout(QUIET, self.injector.wait())
            .await
            .context("the injector does not end")??;
        self.puppet.close().await;
        for cgroup in made {
            let leaves = fs::read_dir(&cgroup).into_iter().flatten().flatten();
            leaves.for_each(|leaf| drop(fs::remove_dir(leaf.path())));
            let _ = fs::remove_dir(cgroup);
        }
        gone.context("something cannot be killed")?;
        Ok(())
    }
}
