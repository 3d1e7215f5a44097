//! `bench discovery`: what it takes to tell a hundred gateways of ten thousand endpoints, beside etcd's own watch.
//!
//! Ours is the real program on a real etcd, with a gRPC connection for each watcher. The peer is the same etcd, with
//! as many watches of the same keys on connections of their own: what a gateway would do that asks etcd itself.
//! A change carries the time at which it was committed, by the clock of this machine.

mod ours;
mod plain;
mod watched;
mod writer;

use std::{path::PathBuf, time::Duration};

use crate::{
    cpu_time_of_threads,
    etcd::Etcd,
    figure::{Figure, Target},
    ground::Ground,
};
use ours::Discovery;
use watched::Delays;
use writer::Writer;

/// What a run is made of.
#[derive(Debug)]
pub struct Plan {
    /// Our program.
    pub discovery: PathBuf,
    /// etcd's.
    pub etcd: PathBuf,
    /// How many watchers, and endpoints.
    pub watchers: usize,
    /// How many endpoints.
    pub endpoints: usize,
    /// How long each rate of changes is kept up.
    pub span: Duration,
}

/// Changes a second while little happens, each a commit of its own.
const CALM: Rate = Rate {
    commits: 20,
    each: 1,
};

/// Changes a second while much happens: ten in each commit, as the arbiter writes what comes together.
const BUSY: Rate = Rate {
    commits: 100,
    each: 10,
};

/// So many commits a second, of so many changes each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) commits: u32,
    pub(crate) each: usize,
}

impl Rate {
    fn changes(self) -> usize {
        usize::try_from(self.commits).unwrap_or(0) * self.each
    }
}

/// One side under one rate.
struct Measured {
    delays: Delays,
    /// Processor seconds of whoever tells watchers; with ours, discovery alone.
    cpu: f64,
}

/// Runs all of it; each row is told as soon as it is there.
///
/// # Errors
/// When something that must work does not.
pub async fn run(
    ground: &Ground,
    plan: &Plan,
    tell: impl Fn(&Figure),
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut row = |figure: Figure| {
        tell(&figure);
        figures.push(figure);
    };
    let etcd = Etcd::start(ground, &plan.etcd).await?;
    let mut writer = Writer::new(&etcd, plan.endpoints).await?;
    let discovery = Discovery::start(ground, &plan.discovery, &etcd).await?;
    let empty = discovery.resident()?;
    writer.fill().await?;
    let filled = discovery.filled(plan.endpoints).await?;
    let each = |bytes: u64, count: usize| bytes as f64 / count as f64;
    row(Figure::new("memory of an endpoint", "bytes")
        .ours(each(filled.saturating_sub(empty), plan.endpoints)));

    let (ours, bytes) = discovery.snapshots().await?;
    let (theirs, _) = plain::snapshots(&etcd).await?;
    row(Figure::new("full snapshot, from the call to its end", "ms")
        .ours(ours.seconds * 1e3)
        .peer("etcd", Ok(theirs.seconds * 1e3))
        .cpu("ours", ours.cpu)
        .cpu("etcd", theirs.cpu));
    row(Figure::new("full snapshot, on the wire", "KiB").ours(bytes as f64 / 1024.0));

    for rate in [CALM, BUSY] {
        let watchers = discovery.watch(plan.watchers).await?;
        let grown = discovery.resident()?.saturating_sub(filled);
        let before = cpu_time_of_threads(discovery.pid())?;
        let sent = writer.change(rate, plan.span).await?;
        let delays = watchers.end(sent).await?;
        let cpu = cpu_time_of_threads(discovery.pid())?.saturating_sub(before);
        let ours = Measured {
            delays,
            cpu: cpu.as_secs_f64(),
        };

        let watchers = plain::watch(&etcd, plan.watchers).await?;
        let before = cpu_time_of_threads(etcd.pid())?;
        let sent = writer.change(rate, plan.span).await?;
        let delays = watchers.end(sent).await?;
        let cpu = cpu_time_of_threads(etcd.pid())?.saturating_sub(before);
        let theirs = Measured {
            delays,
            cpu: cpu.as_secs_f64(),
        };
        if rate.each == 1 {
            row(Figure::new("memory of a watcher", "KiB").ours(each(grown, plan.watchers) / 1024.0));
        }
        let name = format!(
            "{} changes a second, to each of {} watchers",
            rate.changes(),
            plan.watchers
        );
        for (part, share) in [("p50", 0.5), ("p99", 0.99)] {
            let mut figure = Figure::new(format!("{name}, {part}"), "ms")
                .ours(ours.delays.at(share))
                .peer("etcd", Ok(theirs.delays.at(share)))
                .cpu("ours", ours.cpu)
                .cpu("etcd, with its writes", theirs.cpu);
            if part == "p99" {
                figure = figure.target(Target::AtMost(100.0));
            }
            row(figure);
        }
        row(Figure::new(format!("{name}, missed"), "changes")
            .ours(ours.delays.missed as f64)
            .peer("etcd", Ok(theirs.delays.missed as f64))
            .target(Target::AtMost(0.0)));
    }
    Ok(figures)
}

/// What one question costs: from the call to the end of the answer, and in processor seconds of who answers.
pub(crate) struct Asked {
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
}
