//! `bench agent`: our agent beside its peers, in one run.
//!
//! Ours is the real program driven over its real interface. Peers come out of their Debian packages. Both
//! supervise the same static worker, one after the other on the same machine.

mod ends;
mod lives;
mod ours;
mod rows;

use std::path::PathBuf;

use crate::{figure::Figure, ground::Ground};

/// Spawns under way at a time.
const IN_FLIGHT: usize = 16;

/// Workers that do not end by themselves, in one trial.
const STUBBORN: usize = 100;

/// What lives this long after its supervisors were killed lives on.
const SURVIVAL: std::time::Duration = std::time::Duration::from_secs(5);

/// What a run is made of.
#[derive(Debug)]
pub struct Plan {
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
    keep(bench.spawning(false).await?);
    keep(bench.spawning(true).await?);
    keep(bench.ending().await?);
    keep(bench.lease().await?);
    keep(bench.replacing().await?);
    keep(bench.memory().await?);
    keep(bench.adopting().await?);
    keep(bench.python().await?);
    Ok(figures)
}
