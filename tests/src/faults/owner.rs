//! A worker ends with a process of its owner, which its shim is told of and watches by itself.

use std::{
    fs,
    process::{Child, Command},
    time::Duration,
};

use anyhow::Context as _;
use tether_clock::{BootClock, Clock as _};
use tether_kit::process;
use tether_proto::{
    common::{DeathCause, ProcessIdentity},
    node::WorkerReport,
};
use tether_tests::eventually_within;

use crate::{
    lives::{cause, cost, explained, trouble},
    node::{Node, Outcome, PATIENCE, Pool},
    phase::Fault,
};

/// By when a worker has gone with its owner. How soon it does is measured elsewhere: here each call of its shim is listened
/// to. An end by a lease (2 s) would come later.
const SEEN: Duration = Duration::from_millis(1_500);

/// When a shim hears whose process it is to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// With its launch.
    AtStart,
    /// While its worker runs.
    Later,
}

pub(crate) async fn play(
    node: &mut Node,
    told: Told,
    fault: Option<&Fault>,
) -> Result<String, String> {
    let played = act(node, told, fault).await;
    played.map_err(|error| format!("{error:#}"))?
}

async fn act(
    node: &mut Node,
    told: Told,
    fault: Option<&Fault>,
) -> anyhow::Result<Result<String, String>> {
    let mut owner = Process::start()?;
    node.permit();
    if told == Told::AtStart {
        node.own(owner.identity()?);
        if let Some(fault) = fault {
            fault.arm(node).await?;
        }
    }
    let worker = node.order_start("stubborn", Pool::Coupled);
    let pid = match node.outcome(worker).await? {
        Outcome::Ready(report) => report.pid,
        Outcome::Dead(report) => return Ok(died_before_its_owner(node, &report).await),
    };
    let keepers = node.keepers(pid)?;
    if told == Told::Later {
        node.focus(keepers).await?;
        if let Some(fault) = fault {
            fault.arm(node).await?;
        }
        node.own(owner.identity()?);
    }
    watched(node, worker, keepers.0, owner.0.id()).await?;
    if !node.lives(worker) {
        let death = node.death(worker).await?;
        return Ok(died_before_its_owner(node, &death).await);
    }

    node.disown();
    owner.end();
    if !node.is_gone_by(worker, BootClock.now() + SEEN).await {
        return Ok(Err("it outlives its owner".to_owned()));
    }
    let death = node.death(worker).await?;
    match trouble(&death, DeathCause::OwnerGone) {
        Ok(trouble) => Ok(cost(node, trouble).await),
        Err(wrong) => Ok(Err(wrong)),
    }
}

/// A fault may cost a worker, but never for an end of its owner that did not come.
async fn died_before_its_owner(node: &mut Node, death: &WorkerReport) -> Result<String, String> {
    if cause(death) == DeathCause::OwnerGone {
        return Err("a living owner was taken for dead".to_owned());
    }
    let trouble = explained(death)?;
    cost(node, Some(trouble)).await
}

/// Waits until the shim holds a descriptor of its owner, which may take it a second look; or the worker is gone.
async fn watched(node: &Node, worker: u64, shim: u32, owner: u32) -> anyhow::Result<()> {
    let line = format!("Pid:\t{owner}");
    let holds = || {
        let held = fs::read_dir(format!("/proc/{shim}/fdinfo"));
        let mut infos = held.into_iter().flatten().flatten();
        infos.any(|info| {
            let info = fs::read_to_string(info.path()).unwrap_or_default();
            info.lines().any(|other| other == line)
        })
    };
    let watched = eventually_within(PATIENCE, async || {
        (holds() || !node.lives(worker)).then_some(())
    });
    watched.await.context("its owner is not watched")?;
    Ok(())
}

/// Some process that lives until it is ended.
struct Process(Child);

impl Process {
    fn start() -> anyhow::Result<Self> {
        Ok(Self(Command::new("sleep").arg("600").spawn()?))
    }

    fn identity(&self) -> anyhow::Result<ProcessIdentity> {
        let pid = self.0.id();
        Ok(ProcessIdentity {
            pid,
            start_ticks: process::start_ticks(pid).context("it has just been started")?,
            boot_id: process::boot_id()?,
            pid_namespace: process::pid_namespace()?,
        })
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
