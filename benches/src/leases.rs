//! `bench leases`: one arbiter for many agents, beside etcd with one lease for each.
//!
//! Ours is the real program. Every agent has a connection of its own and speaks the protocol as the real one
//! does, with the workers it was ordered to start; only their processes are not there. etcd gets as many
//! connections and one lease on each, kept alive at the same rate, and no workers.

mod arbiter;
mod etcd;
mod growth;
mod losses;
mod steady;
mod swarm;

use std::{path::PathBuf, time::Duration};

use crate::{
    figure::{Figure, Target},
    ground::Ground,
};
use arbiter::Arbiter;
pub use growth::Growth;
use steady::Cost;
use swarm::Swarm;

/// How often each agent beats.
const BEAT: Duration = Duration::from_secs(10);

/// How long a lease is.
const TTL: Duration = Duration::from_secs(30);

/// Workers of each agent.
const WORKERS: usize = 100;

/// What a run is made of.
#[derive(Debug)]
pub struct Plan {
    /// Our program.
    pub arbiter: PathBuf,
    /// etcd's, or why there is none.
    pub etcd: Result<PathBuf, String>,
    /// Whether none is measured beside the arbiter.
    pub alone: bool,
    /// How many agents, one round each.
    pub agents: Vec<usize>,
    /// How long is measured.
    pub measured: Duration,
    /// What the arbiter keeps its state in: `memory:`, `redb:` or `etcd:`.
    pub store: String,
}

/// Runs all of it; each row is told as soon as it is there. With the rows comes how costs grow.
///
/// # Errors
/// When something that must work does not.
pub async fn run(
    ground: &Ground,
    plan: &Plan,
    tell: impl Fn(&Figure),
) -> anyhow::Result<(Vec<Figure>, Growth)> {
    let (mut figures, mut growth) = (Vec::new(), Growth::default());
    for (round, &agents) in plan.agents.iter().enumerate() {
        let last = round + 1 == plan.agents.len();
        let peer = match &plan.etcd {
            Ok(_) if plan.alone => Err("`--alone` was given".to_owned()),
            Ok(program) => etcd::measure(ground, program, agents, plan.measured)
                .await
                .map_err(|error| format!("{error:#}")),
            Err(why) => Err(why.clone()),
        };
        let etcd = plan.etcd.as_deref();
        let arbiter = Arbiter::start(ground, &plan.arbiter, &plan.store, etcd).await?;
        let bare = arbiter.resident()?;
        let swarm = Swarm::connect(arbiter.address(), agents).await?;
        let connected = arbiter.resident()?;
        arbiter.fill(agents * WORKERS).await?;
        let cost = steady::measure(&arbiter, &swarm, plan.measured).await?;
        let theirs = peer.as_ref().ok().map(|measured| measured.cost);
        growth.push(count(agents), cost, theirs);
        let mut add = |figure: Figure| {
            tell(&figure);
            figures.push(figure);
        };
        for figure in rows(agents, &cost, &peer, last) {
            add(figure);
        }
        add(of(agents, "memory per connection", "KiB")
            .ours(kib(connected.saturating_sub(bare)) / count(agents)));
        if let Some(resident) = arbiter.store_resident() {
            add(of(agents, "memory of the store beside", "MB").ours(kib(resident?) / 1024.0));
        }
        let workers = count(agents * WORKERS);
        add(of(agents, "memory per worker", "bytes")
            .ours(kib(cost.resident.saturating_sub(connected)) * 1024.0 / workers));
        if last {
            for figure in losses::detection(&arbiter, &swarm, agents).await? {
                add(figure);
            }
            for figure in losses::all_at_once(&arbiter, &swarm, agents, &peer).await? {
                add(figure);
            }
        }
    }
    Ok((figures, growth))
}

fn of(agents: usize, what: &str, unit: &'static str) -> Figure {
    let workers = agents * WORKERS;
    Figure::new(format!("{what}, {agents} agents, {workers} workers"), unit)
}

fn rows(
    agents: usize,
    ours: &Cost,
    peer: &Result<etcd::Measured, String>,
    judged: bool,
) -> Vec<Figure> {
    let theirs = |value: fn(&Cost) -> f64| {
        let measured = peer.as_ref();
        measured
            .map(|measured| value(&measured.cost))
            .map_err(Clone::clone)
    };
    let full = judged && agents >= 10_000;
    let mut rows = Vec::new();
    for (what, unit, value, target) in [
        ("processor", "cores", Cost::cores as fn(&Cost) -> f64, 0.04),
        ("memory", "MB", Cost::megabytes, 200.0),
        ("processor per beat", "us", Cost::beat_micros, 40.0),
    ] {
        let figure = of(agents, what, unit)
            .ours(value(ours))
            .peer("etcd", theirs(value));
        rows.push(if full {
            figure.target(Target::AtMost(target))
        } else {
            figure
        });
    }
    rows.push(
        of(agents, "one beat up, frames included", "bytes")
            .ours(ours.up_bytes)
            .target(Target::AtMost(60.0)),
    );
    rows.push(of(agents, "its answer, frames included", "bytes").ours(ours.down_bytes));
    rows
}

#[expect(clippy::cast_precision_loss, reason = "these counts are small")]
fn count(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "memory is below 2^53 bytes")]
fn kib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0
}
