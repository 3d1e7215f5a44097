//! What it takes to let many workers live on, and what becomes of them when their agent hangs: each reads how long
//! it may go on from the lease page, as this does.

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;
use rustix::process::Signal;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{common::WorkerPhase, pool::ReadinessKind};
use tether_shim_protocol::LEASE_VARIABLE;
use tether_sys::{Seat, View};

use super::ours::{Ours, Terms, supervisors, template, workers};
use crate::{
    ground::Ground,
    processes::{Pinned, run_time},
};

/// The lease of an agent that is to hang, and its beat.
const SHORT: Terms = Terms {
    coupled: false,
    ttl: Duration::from_secs(4),
    beat: Duration::from_millis(200),
    remaining: None,
};

/// The lease that a node has where nothing else is said, and its beat.
const USUAL: Terms = Terms {
    coupled: false,
    ttl: Duration::from_secs(20),
    beat: Duration::from_secs(5),
    remaining: None,
};

/// Before a deadline, nobody whose grace is zero may have ended.
const JUST_BEFORE: Duration = Duration::from_millis(100);

/// Long after any.
const GONE: Duration = Duration::from_secs(10);

/// How workers ended whose agent hung.
#[derive(Debug, Clone, Copy)]
pub struct Hung {
    /// Workers that were there.
    pub workers: usize,
    /// Of these, who died before the deadline.
    pub early: usize,
    /// Who lived on for seconds after it.
    pub survivors: usize,
    /// From the deadline until the last was dead.
    pub slowest: Duration,
}

/// Stops an agent of so many workers with SIGSTOP, and nobody else; they read their deadline from the page.
///
/// # Errors
/// When they cannot be started, or have no deadline that could be read.
pub async fn hung_agent(ground: &Ground, agent: &Path, count: usize) -> anyhow::Result<Hung> {
    let worker = ground.dir().join(crate::ground::WORKER_NAME);
    let mut ours = Ours::start_on(ground, agent, SHORT).await?;
    let template = template(
        worker.display().to_string(),
        &["wait"],
        ReadinessKind::Started,
    );
    ours.workers(count, &template, WorkerPhase::Ready).await?;
    let found = workers();
    anyhow::ensure!(found.len() == count, "{} workers are there", found.len());
    let pinned = Pinned::new(&found);

    ours.agent().signal(Signal::STOP);
    let first = found.first().context("there are no workers")?;
    let deadline = node_deadline(first.pid)?;
    let until = deadline.since(BootClock.now());
    anyhow::ensure!(until > JUST_BEFORE, "its lease was over at once");
    let living = pinned.survivors(until - JUST_BEFORE);
    let survivors = pinned.survivors(GONE);
    let hung = Hung {
        workers: count,
        early: count - living,
        survivors,
        slowest: BootClock.now().since(deadline),
    };
    ours.end().await?;
    Ok(hung)
}

/// Processors that agent and shims keep busy for so many idle workers under the usual lease.
pub(super) async fn cost(
    ground: &Ground,
    agent: &Path,
    worker: &str,
    count: usize,
    time: Duration,
) -> anyhow::Result<f64> {
    let mut ours = Ours::start_on(ground, agent, USUAL).await?;
    let template = template(worker, &["wait"], ReadinessKind::Started);
    ours.workers(count, &template, WorkerPhase::Ready).await?;
    // What only the start needed is let go of after a second, and the first looks are all at once.
    tokio::time::sleep(USUAL.beat * 2).await;
    let watched = supervisors();
    let (before, since) = (run_time(&watched), BootClock.now());
    tokio::time::sleep(time).await;
    let spent = run_time(&watched).saturating_sub(before);
    let cores = spent.as_secs_f64() / BootClock.now().since(since).as_secs_f64();
    ours.end().await?;
    Ok(cores)
}

/// The end of the node's permission, as this worker can read it.
fn node_deadline(worker: u32) -> anyhow::Result<Tick> {
    let environment = fs::read(format!("/proc/{worker}/environ"))?;
    let mut variables = environment.split(|byte| *byte == 0);
    let told = variables
        .find_map(|text| {
            str::from_utf8(text)
                .ok()?
                .strip_prefix(LEASE_VARIABLE)?
                .strip_prefix('=')
        })
        .context("a worker is told of no lease page")?;
    let numbers: Vec<u64> = told.split(':').flat_map(str::parse).collect();
    let [descriptor, slot, generation] = numbers[..] else {
        anyhow::bail!("this is no place on a page: `{told}`");
    };
    let page = fs::File::open(format!("/proc/{worker}/fd/{descriptor}"))?;
    let seat = Seat {
        slot: slot.try_into()?,
        generation,
    };
    let said = View::of(&page)?.read(seat).context("it lost its seat")?;
    Ok(Tick::from_nanos(said.node.alive))
}
