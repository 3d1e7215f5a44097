//! The failover matrix: leaders of arbiters and of etcd killed, stopped, frozen, cut off and left without a disk,
//! with real processes on network namespaces, and what was seen beside what the leases promise.

use std::{panic::AssertUnwindSafe, path::PathBuf, process::ExitCode, thread, time::Duration};

use clap::Parser;
use futures::FutureExt as _;
use tether_tests::evidence::{Evidence, Report};
use tokio::sync::mpsc::{self, UnboundedSender};

#[path = "../failovers/beats.rs"]
mod beats;
#[path = "../failovers/disks.rs"]
mod disks;
#[path = "../failovers/frost.rs"]
mod frost;
#[path = "../failovers/judge.rs"]
mod judge;
#[path = "../failovers/leftovers.rs"]
mod leftovers;
#[path = "../partitions/net.rs"]
mod net;
#[path = "../failovers/owner.rs"]
mod owner;
#[path = "../failovers/plan.rs"]
mod plan;
#[path = "../failovers/play.rs"]
mod play;
#[path = "../failovers/world.rs"]
mod world;

use disks::Disks;
use net::Net;
use plan::{Fault, Shape};
use world::World;

/// Loses leaders, and sees what follows.
#[derive(Debug, Parser)]
struct Args {
    /// Only rows whose names contain one of these, separated by `|`.
    #[arg(long)]
    only: Option<String>,
    /// How often each row is played.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Clusters side by side.
    #[arg(long, default_value_t = 2)]
    worlds: u32,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is played, how long after a heartbeat, and what it is called.
type Row = (Fault, Duration, String);

fn name(fault: Fault, time: usize, args: &Args) -> String {
    match args.repeat {
        0 | 1 => fault.name().to_owned(),
        repeat => format!("{}, {} of {repeat}", fault.name(), time + 1),
    }
}

/// Repetition after repetition, so that one that is cut short has a share of every row.
fn rows(args: &Args) -> Vec<Row> {
    let wanted = |fault: &Fault| {
        let only = args.only.as_deref().unwrap_or_default();
        only.split('|').any(|text| fault.name().contains(text))
    };
    let faults: Vec<_> = Fault::ALL.iter().copied().filter(wanted).collect();
    let times = 0..args.repeat.max(1);
    let played = times.flat_map(|time| faults.iter().map(move |&fault| (fault, time)));
    let rows = played.enumerate();
    rows.map(|(row, (fault, time))| (fault, plan::phase(row), name(fault, time, args)))
        .collect()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    leftovers::clear_stale();
    let mut rows = rows(&args);
    let disks = retain_possible(&mut rows, &mut report).await;
    run(&args, rows, disks, &mut report).await;
    report.finish(args.json.as_deref())
}

/// Keeps the rows that can be played on this machine, and says why others cannot. Tells how disks are made here.
async fn retain_possible(rows: &mut Vec<Row>, report: &mut Report) -> Disks {
    let mut without = |what: &str, why: String, fits: fn(Fault) -> bool| {
        let (kept, lost): (Vec<_>, Vec<_>) = rows.drain(..).partition(|row| fits(row.0));
        *rows = kept;
        let names = lost.into_iter().map(|row| row.2);
        report.skip(names, &format!("this machine {what}: {why}"));
    };
    let mut disks = Disks::Own;
    // World 0 is never played.
    let folder = leftovers::folder(0);
    if let Err(why) = std::fs::create_dir_all(&folder) {
        without("has no room for files", why.to_string(), |_| false);
    } else if let Some(why) = Net::impossible().await {
        let what = "makes no network namespaces for this user";
        without(what, why, |_| false);
    } else {
        if let Some(why) = disks::Disk::impossible(&folder).await {
            let what = "mounts and freezes no disks for this user";
            without(what, why, |fault| !fault.needs_disks());
            disks = Disks::Shared;
        }
        if let Some(why) = frost::impossible(&folder) {
            let what = "freezes no cgroups for this user";
            without(what, why, |fault| !fault.needs_cgroups());
        }
    }
    leftovers::clear(&folder);
    disks
}

async fn run(args: &Args, rows: Vec<Row>, disks: Disks, report: &mut Report) {
    let (done, mut results) = mpsc::unbounded_channel();
    let worlds = usize::try_from(args.worlds.clamp(1, 16)).unwrap_or(1);
    let mut threads = Vec::new();
    for (number, world) in (1_u32..).zip(0..worlds) {
        let mine = rows.iter().skip(world).step_by(worlds);
        let mine: Vec<_> = mine.cloned().collect();
        let done = done.clone();
        // A thread of its own, since a thread is in one network.
        threads.push(thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(play_all(number, disks, mine, done)),
                Err(error) => drop(done.send(Evidence::failed("runtime", error.to_string()))),
            }
        }));
    }
    drop(done);
    while let Some(evidence) = results.recv().await {
        report.add(evidence);
    }
    for thread in threads {
        if thread.join().is_err() {
            report.add(Evidence::failed("a world", "its thread panicked"));
        }
    }
}

/// Plays rows one after the other in one cluster; one that failed, or is of another shape, is followed by another.
async fn play_all(number: u32, disks: Disks, rows: Vec<Row>, done: UnboundedSender<Evidence>) {
    let mut standing: Option<(Shape, World)> = None;
    for row in rows {
        let (fault, _, name) = &row;
        if standing
            .as_ref()
            .is_some_and(|(shape, _)| *shape != fault.shape())
        {
            standing = None;
        }
        // Clusters of etcd panic where they cannot go on.
        let played = AssertUnwindSafe(play_one(number, disks, &row, &mut standing));
        let evidence = match played.catch_unwind().await {
            Ok(Ok(evidence)) => evidence,
            Ok(Err(error)) => Evidence::failed(name, format!("{error:#}")),
            Err(panic) => {
                let why = panic.downcast_ref::<String>();
                Evidence::failed(name, why.map_or("it panicked", String::as_str))
            }
        };
        if !evidence.holds() {
            standing = None;
        }
        // Whoever collects them stays to the end.
        let _ = done.send(evidence);
    }
}

async fn play_one(
    number: u32,
    disks: Disks,
    (fault, phase, name): &Row,
    standing: &mut Option<(Shape, World)>,
) -> anyhow::Result<Evidence> {
    let (_, world) = match standing {
        Some(standing) => standing,
        None => {
            let mut world = World::start(number, fault.shape(), disks).await?;
            play::rest(&mut world).await?;
            standing.insert((fault.shape(), world))
        }
    };
    let seen = play::play(world, *fault, *phase).await?;
    Ok(judge::judge(name, *fault, world.owners.len(), &seen))
}
