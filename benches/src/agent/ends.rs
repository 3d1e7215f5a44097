//! How surely and how fast workers of ours end: everything killed at once, the owner killed alone, and a
//! lease that runs out while everything is stopped.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use rustix::process::Signal;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{common::WorkerPhase, pool::ReadinessKind};

use super::{
    STUBBORN, SURVIVAL,
    ours::{Ours, PATIENCE, freeze, supervisors, template, workers},
};
use crate::{
    ground::Ground,
    processes::{Pinned, Process},
    puppet::Grant,
};

/// Until when a permission is given, counted from the last beat that was answered.
const PERMISSION: Duration = Duration::from_secs(2);

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// The owner, the agent, all of the agent's helpers, and the arbiter.
    Everything,
    /// The owner alone.
    Owner,
}

/// How workers ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// Milliseconds until the last one was dead, or until waiting was given up.
    pub(super) millis: f64,
    /// Processes that lived on.
    pub(super) survivors: usize,
}

/// Strikes, and waits for the end of stubborn workers and of all they daemonised.
pub(super) async fn strike(
    ground: &Ground,
    agent: &Path,
    worker: &str,
    blow: Blow,
) -> anyhow::Result<End> {
    let mut ours = Ours::start(ground, agent, true, None).await?;
    let stubborn = stubborn(&mut ours, worker).await?;
    let (owner, helpers) = (ours.owner(), Pinned::new(&supervisors()));
    let pinned = Pinned::new(&stubborn);
    let struck = BootClock.now();
    owner.signal(Signal::KILL);
    if blow == Blow::Everything {
        helpers.signal(Signal::KILL);
    }
    let end = wait(&pinned, struck);
    ours.end().await?;
    Ok(end)
}

/// Lets a permission run out while everything of ours is stopped with SIGSTOP.
pub(super) async fn lease_end(ground: &Ground, agent: &Path, worker: &str) -> anyhow::Result<End> {
    let mut ours = Ours::start(ground, agent, true, Some(PERMISSION)).await?;
    let stubborn = stubborn(&mut ours, worker).await?;
    let withheld = Grant {
        ttl: Duration::ZERO,
        beat: Duration::from_secs(1),
        owners: Vec::new(),
    };
    let deadline = ours.puppet.grant(withheld) + PERMISSION;
    let (helpers, pinned) = (Pinned::new(&supervisors()), Pinned::new(&stubborn));
    freeze(&[&helpers, &pinned]);
    anyhow::ensure!(
        BootClock.now() < deadline,
        "stopping everything took longer than the lease"
    );
    anyhow::ensure!(
        pinned.survivors(Duration::ZERO) == stubborn.len(),
        "workers died before their lease was over"
    );
    let until = deadline.since(BootClock.now());
    let survivors = pinned.survivors(until + SURVIVAL);
    let end = End {
        millis: BootClock.now().since(deadline).as_secs_f64() * 1e3,
        survivors,
    };
    ours.end().await?;
    Ok(end)
}

/// Waits for an end that begins at `struck`.
pub(super) fn wait(pinned: &Pinned, struck: Tick) -> End {
    let survivors = pinned.survivors(SURVIVAL);
    End {
        millis: BootClock.now().since(struck).as_secs_f64() * 1e3,
        survivors,
    }
}

/// Workers that ignore SIGTERM, each with a daemon that does so too.
async fn stubborn(ours: &mut Ours<'_>, worker: &str) -> anyhow::Result<Vec<Process>> {
    let template = template(worker, &["stubborn"], ReadinessKind::Started);
    ours.workers(STUBBORN, &template, WorkerPhase::Starting)
        .await?;
    settled(2 * STUBBORN, workers).await
}

/// Waits until so many processes are there, the same at two looks in a row: the one that forks a daemon and
/// goes is there for a moment only.
pub(super) async fn settled(
    count: usize,
    look: impl Fn() -> Vec<Process>,
) -> anyhow::Result<Vec<Process>> {
    let deadline = BootClock.now() + PATIENCE;
    let mut before = Vec::new();
    loop {
        let found = look();
        let pids: Vec<u32> = found.iter().map(|process| process.pid).collect();
        if pids.len() == count && pids == before {
            return Ok(found);
        }
        (BootClock.now() < deadline)
            .then_some(())
            .with_context(|| {
                format!(
                    "{} workers' processes are there and not {count}",
                    pids.len()
                )
            })?;
        before = pids;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
