//! The partition matrix: every pair of hosts cut, both ways and either way, healing before or after the
//! deadlines, with real processes on network namespaces, and what was seen beside the formula's bounds.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use futures::future::join_all;
use tether_tests::evidence::{Evidence, Report};
use tokio::sync::mpsc::{self, UnboundedSender};

#[path = "../partitions/grid.rs"]
mod grid;
#[path = "../partitions/judge.rs"]
mod judge;
#[path = "../partitions/net.rs"]
mod net;
#[path = "../partitions/plan.rs"]
mod plan;
#[path = "../partitions/round.rs"]
mod round;

use grid::Grid;
use net::Net;
use plan::{Cut, Heals, Mode};

/// Cuts hosts off from each other, and sees what follows.
#[derive(Debug, Parser)]
struct Args {
    /// Only cells whose names contain one of these, separated by `|`.
    #[arg(long)]
    only: Option<String>,
    /// Only one cell in so many, spread over all.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// Clusters side by side.
    #[arg(long, default_value_t = 4)]
    worlds: u32,
    /// Whether gateways relay the beats of nodes that are cut off from the arbiter.
    #[arg(long)]
    relay: bool,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One cell of the matrix.
type Cell = (usize, Cut, Mode, Heals);

fn name(&(_, cut, mode, heals): &Cell) -> String {
    format!("{cut}, {}, heals {}", mode.name(), heals.name())
}

fn cells(args: &Args) -> Vec<Cell> {
    let mut cells = Vec::new();
    for cut in Cut::all() {
        for &mode in Mode::ALL {
            for &heals in Heals::ALL {
                cells.push((cells.len(), cut, mode, heals));
            }
        }
    }
    let only = args.only.as_deref().unwrap_or_default();
    cells.retain(|cell| only.split('|').any(|text| name(cell).contains(text)));
    cells.into_iter().step_by(args.every.max(1)).collect()
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    if let Some(why) = Net::impossible().await {
        let why = format!("this machine makes no network namespaces for this user: {why}");
        report.skip(cells(&args).iter().map(name), &why);
    } else {
        run(&args, &mut report).await;
    }
    report.finish(args.json.as_deref())
}

async fn run(args: &Args, report: &mut Report) {
    let cells = cells(args);
    let worlds = args.worlds.clamp(1, 16);
    let (done, mut results) = mpsc::unbounded_channel();
    let side_by_side = (0..worlds).map(|world| {
        let step = usize::try_from(worlds).unwrap_or(1);
        let first = usize::try_from(world).unwrap_or(0);
        let mine: Vec<_> = cells.iter().copied().skip(first).step_by(step).collect();
        play_all((world + 1, args.relay), mine, done.clone())
    });
    let side_by_side: Vec<_> = side_by_side.collect();
    drop(done);
    let told = async {
        while let Some(evidence) = results.recv().await {
            report.add(evidence);
        }
    };
    tokio::join!(join_all(side_by_side), told);
}

/// Plays cells one after the other in one cluster; a cluster that fails is followed by another.
async fn play_all((world, relay): (u32, bool), cells: Vec<Cell>, done: UnboundedSender<Evidence>) {
    let mut grid: Option<Grid> = None;
    for cell in cells {
        let (number, cut, mode, heals) = cell;
        let played = async {
            let grid = match &mut grid {
                Some(grid) => grid,
                None => grid.insert(Grid::start(world, relay).await?),
            };
            round::play(grid, number, cut, mode, heals).await
        };
        let evidence = match played.await {
            Ok(seen) => judge::judge((cut, mode, heals), relay, &seen),
            Err(error) => {
                if let Some(failed) = grid.take() {
                    let _ = done.send(judge::judge_histories(world, failed.judge_histories()));
                }
                Evidence::failed(name(&cell), format!("{error:#}"))
            }
        };
        // Whoever collects them stays to the end.
        let _ = done.send(evidence);
    }
    if let Some(grid) = grid {
        let _ = done.send(judge::judge_histories(world, grid.judge_histories()));
    }
}
