//! Our side: a real `tether-agent` on a directory in memory, and the puppet that drives it.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::Signal;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{
    common::{self, WorkerPhase},
    node::{
        ForgetWorker, Hello, Order, OwnerPermission, PoolPermission, StartWorker, WorkerReport,
        order,
    },
    pool::{Readiness, ReadinessKind, Restart, RestartMode, Stop, Template},
};

use crate::{
    ground::{Ground, OWNER_NAME, WORKER_NAME},
    processes::{Pinned, Process, living},
    puppet::{Grant, Heard, Puppet},
};

/// Longest time for anything to be heard.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

const POOL: &str = "bench";
const OWNER: &str = "owner";

/// A worker's way of listening and of being ready.
pub(super) fn template(
    command: impl Into<String>,
    args: &[&str],
    ready: ReadinessKind,
) -> Template {
    Template {
        command: command.into(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
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
        // A static worker reads no /proc, and no peer gives its workers one of their own. It guarantees nothing.
        private_proc: Some(false),
        ..Template::default()
    }
}

/// Under what an agent has its workers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Whether they are coupled to an owner's process.
    pub(super) coupled: bool,
    /// The node's lease.
    pub(super) ttl: Duration,
    /// How often it is renewed.
    pub(super) beat: Duration,
    /// What is left of the owner's permission at each beat; none where that has no end.
    pub(super) remaining: Option<Duration>,
}

/// An agent, its puppet and an owner.
#[derive(Debug)]
pub(super) struct Ours<'a> {
    ground: &'a Ground,
    program: PathBuf,
    runtime: PathBuf,
    pub(super) puppet: Puppet,
    pub(super) agent: Child,
    owner: Option<Child>,
    next: u64,
    coupled: bool,
}

impl<'a> Ours<'a> {
    /// Starts an agent whose workers are `coupled` to an owner's process, or are not; with this left of the
    /// owner's permission at each beat. Comes back when orders find a permission.
    pub(super) async fn start(
        ground: &'a Ground,
        program: &std::path::Path,
        coupled: bool,
        remaining: Option<Duration>,
    ) -> anyhow::Result<Self> {
        // The beat with which an arbiter serves a pool whose timeout is that short.
        let beat = Duration::from_millis(if remaining.is_some() { 200 } else { 1_000 });
        let terms = Terms {
            coupled,
            ttl: Duration::from_secs(60),
            beat,
            remaining,
        };
        Self::start_on(ground, program, terms).await
    }

    /// The same under any terms.
    pub(super) async fn start_on(
        ground: &'a Ground,
        program: &std::path::Path,
        terms: Terms,
    ) -> anyhow::Result<Self> {
        let Terms {
            coupled,
            ttl,
            beat,
            remaining,
        } = terms;
        ground.clear()?;
        let runtime = ground.fresh("ours")?;
        let mut owner = None;
        let mut identity = None;
        if coupled {
            let mut command = Command::new(ground.dir().join(OWNER_NAME));
            let child = ground.start(command.arg("wait"))?;
            let ticks = tether_kit::process::start_ticks(child.id());
            identity = Some(common::ProcessIdentity {
                pid: child.id(),
                start_ticks: ticks.context("the owner is gone")?,
                boot_id: tether_kit::process::boot_id()?,
                pid_namespace: tether_kit::process::pid_namespace()?,
            });
            owner = Some(child);
        }
        let grant = Grant {
            ttl,
            beat,
            owners: vec![OwnerPermission {
                owner: OWNER.to_owned(),
                epoch: 1,
                process: identity,
                pools: vec![PoolPermission {
                    pool: POOL.to_owned(),
                    remaining_ms: remaining
                        .and_then(|remaining| u64::try_from(remaining.as_millis()).ok()),
                    kill_on_owner_exit: coupled,
                    kill_on_agent_loss: coupled,
                    ..PoolPermission::default()
                }],
            }],
        };
        let puppet = Puppet::listen(&runtime.join("arbiter.sock"), grant).await?;
        let agent = run(ground, program, &runtime)?;
        let mut ours = Self {
            ground,
            program: program.to_owned(),
            runtime,
            puppet,
            agent,
            owner,
            next: 1,
            coupled,
        };
        ours.hello()
            .await
            .context("the agent does not come up; its log is `agent.log`")?;
        Ok(ours)
    }

    /// Waits for the agent's hello and its first beat.
    pub(super) async fn hello(&mut self) -> anyhow::Result<(Tick, Hello)> {
        let mut hello = None;
        loop {
            match self.puppet.next(PATIENCE).await? {
                (at, Heard::Hello(heard)) => hello = Some((at, heard)),
                (_, Heard::FirstBeat) => {
                    if let Some(hello) = hello {
                        return Ok(hello);
                    }
                }
                (_, Heard::Report(_) | Heard::OwnerExit(_)) => {}
            }
        }
    }

    /// A worker that was not there yet.
    pub(super) fn another(&mut self, template: &Template) -> Order {
        let incarnation = self.next;
        self.next += 1;
        let start = StartWorker {
            worker: Some(common::WorkerRef {
                pool: POOL.to_owned(),
                // A place each: none of these waits for another one's end.
                slot: u32::try_from(incarnation).unwrap_or(u32::MAX),
                incarnation,
            }),
            template: Some(template.clone()),
            owner: OWNER.to_owned(),
            kill_on_owner_exit: self.coupled,
            kill_on_agent_loss: self.coupled,
            lease_grace_ms: 0,
            resources: Vec::new(),
            launcher: String::new(),
        };
        Order {
            order: Some(order::Order::Start(start)),
        }
    }

    /// Starts that many, and waits until each was reported in this phase.
    pub(super) async fn workers(
        &mut self,
        count: usize,
        template: &Template,
        phase: WorkerPhase,
    ) -> anyhow::Result<Vec<WorkerReport>> {
        let orders = (0..count).map(|_| self.another(template)).collect();
        self.puppet.order(orders);
        let mut seen = BTreeSet::new();
        let mut reports = Vec::new();
        while reports.len() < count {
            let (_, report) = self.puppet.report(PATIENCE).await?;
            if let Some(death) = &report.death {
                anyhow::bail!("a worker died before its time: {death:?}");
            }
            if report.phase() == phase && seen.insert(incarnation(&report)) {
                reports.push(report);
            }
        }
        Ok(reports)
    }

    /// The agent alone, pinned.
    pub(super) fn agent(&self) -> Pinned {
        Pinned::new(
            own()
                .iter()
                .filter(|process| process.pid == self.agent.id()),
        )
    }

    /// Kills the agent with SIGKILL, starts the next one on the same directory, and tells when.
    pub(super) fn replace_agent(&mut self) -> anyhow::Result<Tick> {
        self.agent.kill()?;
        self.agent.wait()?;
        let started = BootClock.now();
        self.agent = run(self.ground, &self.program, &self.runtime)?;
        Ok(started)
    }

    /// The owner's process, pinned.
    pub(super) fn owner(&self) -> Pinned {
        let pid = self.owner.as_ref().map(Child::id);
        Pinned::new(own().iter().filter(|process| Some(process.pid) == pid))
    }

    /// Stops serving and ends all that is left.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.puppet.close().await;
        let ended = self.ground.clear();
        let _ = self.agent.wait();
        if let Some(owner) = &mut self.owner {
            let _ = owner.wait();
        }
        ended
    }
}

fn run(
    ground: &Ground,
    program: &std::path::Path,
    runtime: &std::path::Path,
) -> anyhow::Result<Child> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(ground.dir().join("agent.log"))?;
    let mut command = Command::new(program);
    command
        .args(["--set", "agent.node=bench", "--set"])
        .arg(format!("listen.runtime_dir={}", runtime.display()))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    ground
        .start(&mut command)
        .with_context(|| format!("cannot start `{}`", program.display()))
}

/// All living processes that the bench started.
fn own() -> Vec<Process> {
    living(std::process::id())
}

/// The workers' processes, and what they daemonised.
pub(super) fn workers() -> Vec<Process> {
    let mut found = own();
    found.retain(|process| process.name == WORKER_NAME);
    found
}

/// Everything of ours that is neither worker nor owner.
pub(super) fn supervisors() -> Vec<Process> {
    let mut found = own();
    found.retain(|process| process.name != WORKER_NAME && process.name != OWNER_NAME);
    found
}

/// Stops everything where it is.
pub(super) fn freeze(all: &[&Pinned]) {
    for pinned in all {
        pinned.signal(Signal::STOP);
    }
}

/// Which start a report is about.
pub(super) fn incarnation(report: &WorkerReport) -> u64 {
    report
        .worker
        .as_ref()
        .map_or(0, |worker| worker.incarnation)
}

/// The word that a death is recorded.
pub(super) fn forget(report: &WorkerReport) -> Order {
    Order {
        order: Some(order::Order::Forget(ForgetWorker {
            worker: report.worker.clone(),
        })),
    }
}
