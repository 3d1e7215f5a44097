//! A real agent behind the injector, with a puppet for its arbiter: told move by move what to start and end,
//! and looked through afterwards for anything that was left.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tether_proto::{
    common::{self, DeathCause, WorkerPhase},
    node::{
        ForgetWorker, Hello, Order, OwnerPermission, PoolPermission, StartWorker, StopWorker,
        WorkerReport, order,
    },
    pool::{Listen, Readiness, ReadinessKind, Restart, RestartMode, Stop, Template},
};
use tether_tests::{cgroups, eventually_within, program};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    lineage::{Kin, Pinned, descendants},
    puppet::{Grant, Heard, Puppet},
    witness::Witness,
};

/// The static worker of the kill matrix, which tells a witness of its life.
pub(crate) const WORKER: &str = env!("MATRIX_WORKER");

const INJECTOR: &str = env!("FAULT_INJECTOR");

/// Longer than an agent tries to get a shim, and a shim to kill what does not die.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Until nothing is left of the dead, a shim's wait for its last word included.
const QUIET: Duration = Duration::from_secs(10);

const POOL: &str = "faults";
const OWNER: &str = "owner";

/// How often each call was made: by whom, which, how often.
pub(crate) type Counts = BTreeMap<(String, i32), u32>;

/// What became of a start.
#[derive(Debug)]
pub(crate) enum Outcome {
    Ready(WorkerReport),
    Dead(WorkerReport),
}

/// What an agent and its zygote hold while no worker is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) agent_fds: usize,
    pub(crate) zygote_fds: usize,
}

/// One agent and what stands around it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) puppet: Puppet,
    pub(crate) agent: Option<Pinned>,
    /// What the agent said of itself when it joined.
    pub(crate) hello: Hello,
    witness: Witness,
    next: u64,
    injector: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    dir: TempDir,
}

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
        let puppet = Puppet::listen(&dir.path().join("arbiter.sock"), grant()).await?;
        let witness = Witness::listen(&dir.path().join("witness"))?;
        let log = fs::File::create(dir.path().join("log"))?;
        let mut command = Command::new(INJECTOR);
        if let Some(script) = script {
            command.args(["/bin/sh", "-ec", script, "sh"]);
        }
        command
            .arg(program("tether-agent"))
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
                    Heard::Hello(hello) => self.hello = hello,
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
        self.puppet = Puppet::listen(&socket, grant()).await?;
        loop {
            if let Heard::Hello(hello) = self.puppet.next(PATIENCE).await?.1 {
                self.hello = hello;
                return Ok(self);
            }
        }
    }

    /// From here on this call fails, once.
    pub(crate) async fn arm(
        &mut self,
        role: &str,
        call: i32,
        nth: u32,
        errno: i32,
    ) -> anyhow::Result<()> {
        self.tell(&format!("arm {role} {call} {nth} {errno}"))
            .await?;
        Ok(())
    }

    /// From here on nothing fails, and calls are counted anew.
    pub(crate) async fn clear(&mut self) -> anyhow::Result<()> {
        self.tell("clear").await?;
        Ok(())
    }

    /// What was called since, and how often the fault that was armed happened.
    pub(crate) async fn counts(&mut self) -> anyhow::Result<(Counts, u32)> {
        let (mut counts, mut hits) = (Counts::new(), 0);
        for line in self.tell("counts").await? {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["count", role, call, count] => {
                    counts.insert((role.to_owned(), call.parse()?), count.parse()?);
                }
                ["hits", count] => hits = count.parse()?,
                _ => bail!("the injector says `{line}`"),
            }
        }
        Ok((counts, hits))
    }

    async fn tell(&mut self, line: &str) -> anyhow::Result<Vec<String>> {
        self.orders
            .write_all(format!("{line}\n").as_bytes())
            .await?;
        let mut said = Vec::new();
        loop {
            let line = timeout(PATIENCE, self.answers.next_line()).await??;
            match line.context("the injector ended")? {
                line if line == "ok" => return Ok(said),
                line => said.push(line),
            }
        }
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

    /// Orders a worker with this habit; its number.
    pub(crate) fn order_start(&mut self, habit: &str) -> u64 {
        let number = self.next;
        let args = [
            "worker".to_owned(),
            habit.to_owned(),
            self.path("witness").display().to_string(),
            "{incarnation}".to_owned(),
            "{socket}".to_owned(),
            String::new(),
        ];
        self.order_program(WORKER, args.to_vec(), ReadinessKind::Connect);
        number
    }

    /// Orders any program as a worker.
    pub(crate) fn order_program(
        &mut self,
        command: &str,
        args: Vec<String>,
        ready: ReadinessKind,
    ) -> u64 {
        let number = self.next;
        self.next += 1;
        let template = Template {
            command: command.to_owned(),
            args,
            listen: Listen::Unix.into(),
            readiness: Some(Readiness {
                kind: ready.into(),
                timeout_ms: 30_000,
                what: String::new(),
            }),
            stop: Some(Stop {
                grace_ms: Some(0),
                signal: 0,
            }),
            restart: Some(Restart {
                mode: RestartMode::Never.into(),
                ..Restart::default()
            }),
            ..Template::default()
        };
        let start = StartWorker {
            worker: Some(worker(number)),
            template: Some(template),
            owner: OWNER.to_owned(),
            ..StartWorker::default()
        };
        self.order(order::Order::Start(start));
        number
    }

    /// Orders the end of a worker.
    pub(crate) fn order_stop(&self, number: u64) {
        self.order(order::Order::Stop(StopWorker {
            worker: Some(worker(number)),
            cause: DeathCause::OrderedByOperator.into(),
            grace_ms: 0,
        }));
    }

    /// Says that a death is recorded.
    pub(crate) fn forget(&self, number: u64) {
        self.order(order::Order::Forget(ForgetWorker {
            worker: Some(worker(number)),
        }));
    }

    fn order(&self, order: order::Order) {
        self.puppet.order(vec![Order { order: Some(order) }]);
    }

    /// Starts a worker and waits for what comes of it.
    pub(crate) async fn begin(&mut self, habit: &str) -> anyhow::Result<(u64, Outcome)> {
        let number = self.order_start(habit);
        loop {
            let report = self
                .report(number)
                .await
                .context("a start without an outcome")?;
            match report.phase() {
                WorkerPhase::Ready => return Ok((number, Outcome::Ready(report))),
                WorkerPhase::Dead => {
                    self.forget(number);
                    return Ok((number, Outcome::Dead(report)));
                }
                _ => {}
            }
        }
    }

    /// Waits for the death of a worker, and forgets it.
    pub(crate) async fn death(&mut self, number: u64) -> anyhow::Result<WorkerReport> {
        loop {
            let report = self.report(number).await.context("a lost death")?;
            if report.phase() == WorkerPhase::Dead {
                self.forget(number);
                return Ok(report);
            }
        }
    }

    /// The next report about a worker.
    pub(crate) async fn report(&mut self, number: u64) -> anyhow::Result<WorkerReport> {
        loop {
            let (_, report) = self.puppet.report(PATIENCE).await?;
            if report
                .worker
                .as_ref()
                .is_some_and(|worker| worker.incarnation == number)
            {
                return Ok(report);
            }
        }
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

    /// What is held where nothing runs.
    pub(crate) fn holdings(&self) -> Holdings {
        let fds = |pid: Option<u32>| {
            let entries = pid.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")));
            entries.and_then(Result::ok).map_or(0, Iterator::count)
        };
        Holdings {
            agent_fds: fds(self.agent.as_ref().map(|agent| agent.pid)),
            zygote_fds: fds(self.zygote().map(|zygote| zygote.pid)),
        }
    }

    /// Waits until nothing is left of any worker, and the agent holds no more than `before`; else what it is.
    pub(crate) async fn quiet(&self, before: Option<&Holdings>) -> Result<(), String> {
        let mut left = Vec::new();
        let quiet = eventually_within(QUIET, async || {
            left = self.left(before);
            left.is_empty().then_some(())
        });
        match quiet.await {
            Some(_) => Ok(()),
            None => Err(left.join(", ")),
        }
    }

    /// What there is beyond an agent and its zygote.
    fn left(&self, before: Option<&Holdings>) -> Vec<String> {
        let mut left = Vec::new();
        if !self.agent.as_ref().is_some_and(Pinned::lives) {
            left.push("the agent is dead".to_owned());
            return left;
        }
        let (zygote, agent) = (
            self.zygote().map(|zygote| zygote.pid),
            self.agent.as_ref().map(|agent| agent.pid),
        );
        for kin in self.kin() {
            // A zygote that is being replaced is the agent's child too, until it is reaped.
            if Some(kin.pid) != zygote || Some(kin.parent) != agent {
                left.push(format!("process {} `{}`", kin.pid, kin.name));
            }
        }
        for (label, seen) in self.witness.of("") {
            if seen.gone.is_none() {
                left.push(format!("worker {label}"));
            }
        }
        for cgroup in cgroups(&self.seen("run")) {
            let below = fs::read_dir(&cgroup).into_iter().flatten().flatten();
            let below = below.filter(|entry| entry.path().is_dir());
            left.extend(below.map(|leaf| format!("cgroup {}", leaf.path().display())));
        }
        for entry in fs::read_dir(self.seen("run/workers"))
            .into_iter()
            .flatten()
            .flatten()
        {
            // What stays of the dead are their logs, and the socket that a killed one could not remove.
            for name in ["order", "order.new", "shim.sock"] {
                let path = entry.path().join(name);
                if path.exists() {
                    left.push(format!("file {}", path.display()));
                }
            }
        }
        if let Some(before) = before {
            let now = self.holdings();
            if now.agent_fds > before.agent_fds || now.zygote_fds > before.zygote_fds {
                left.push(format!("descriptors: {now:?} after {before:?}"));
            }
        }
        left
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

fn grant() -> Grant {
    Grant {
        ttl: Duration::from_secs(120),
        beat: Duration::from_millis(500),
        owners: vec![OwnerPermission {
            owner: OWNER.to_owned(),
            epoch: 1,
            process: None,
            pools: vec![PoolPermission {
                pool: POOL.to_owned(),
                remaining_ms: None,
                kill_on_owner_exit: false,
                kill_on_agent_loss: false,
            }],
        }],
    }
}

/// A worker by its number: each has a place of its own.
fn worker(number: u64) -> common::WorkerRef {
    common::WorkerRef {
        pool: POOL.to_owned(),
        slot: u32::try_from(number).unwrap_or(u32::MAX),
        incarnation: number,
    }
}
