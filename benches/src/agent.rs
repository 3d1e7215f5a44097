//! `bench agent`: our agent beside its peers, in one run.
//!
//! Ours is the real program driven over its real interface. Peers come out of their Debian packages. Both
//! supervise the same static worker, one after the other on the same machine.

mod ends;
mod floor;
mod lives;
mod ours;
mod renewals;
mod rows;

use std::path::PathBuf;

use clap::ValueEnum as _;

use crate::{figure::Figure, ground::Ground};

pub use renewals::{Hung, hung_agent};

/// Spawns under way at a time.
const IN_FLIGHT: usize = 16;

/// Workers that do not end by themselves, in one trial.
const STUBBORN: usize = 100;

/// What lives this long after its supervisors were killed lives on.
const SURVIVAL: std::time::Duration = std::time::Duration::from_secs(5);

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Starts and ends of short workers.
    Spawning,
    /// Everything killed, and the owner killed alone.
    Ending,
    /// The end of a lease, and what it costs to renew it.
    Lease,
    /// A killed worker's successor.
    Replacing,
    /// Memory per worker.
    Memory,
    /// A new agent beside old workers.
    Adopting,
    /// Workers in Python.
    Python,
}

/// What a run is made of.
#[derive(Debug)]
pub struct Plan {
    /// What to measure; everything, where nothing is named.
    pub parts: Vec<Part>,
    /// Our program.
    pub agent: PathBuf,
    /// A Debian root with the peers' packages, or why there is none.
    pub peers: Result<PathBuf, String>,
    /// A Python with grpc and numpy, or why there is none.
    pub python: Result<PathBuf, String>,
    /// Whether fewer repetitions are enough.
    pub quick: bool,
}

/// A value and the processor seconds it took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    value: f64,
    cpu_seconds: f64,
}

/// Runs all of it; each row is told as soon as it is there.
///
/// # Errors
/// When ours cannot be measured. A peer that cannot is skipped with its reason.
pub async fn run(
    ground: &Ground,
    plan: &Plan,
    tell: impl Fn(&Figure),
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut keep = |more: Vec<Figure>| {
        more.iter().for_each(&tell);
        figures.extend(more);
    };
    let bench = rows::Bench::new(ground, plan);
    let parts = match plan.parts.as_slice() {
        [] => Part::value_variants(),
        named => named,
    };
    for part in parts {
        keep(match part {
            Part::Spawning => {
                let mut rows = bench.spawning(false).await?;
                rows.extend(bench.spawning(true).await?);
                rows
            }
            Part::Ending => bench.ending().await?,
            Part::Lease => bench.lease().await?,
            Part::Replacing => bench.replacing().await?,
            Part::Memory => bench.memory().await?,
            Part::Adopting => bench.adopting().await?,
            Part::Python => bench.python().await?,
        });
    }
    Ok(figures)
}
