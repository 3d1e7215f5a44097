//! Soak: workers are started and die in every way, at full rate, and afterwards everything is where it began.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use rustix::process::{getpid, set_child_subreaper};
use tether_proto::common::WorkerPhase;
use tether_tests::eventually_within;

#[path = "../soak/cluster.rs"]
mod cluster;
#[path = "../soak/exits.rs"]
mod exits;
#[path = "../matrix/lineage.rs"]
#[expect(dead_code, reason = "the kill matrix needs more of it")]
mod lineage;
#[path = "../soak/measure.rs"]
mod measure;
#[path = "../faults/node.rs"]
#[expect(dead_code, unused_imports, reason = "fault injection needs more of it")]
mod node;
#[path = "../../../benches/src/puppet.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "the benches need more of it, and publish it"
)]
mod puppet;
#[path = "../faults/rows.rs"]
#[expect(dead_code, reason = "fault injection needs more of it")]
mod rows;
#[path = "../matrix/witness.rs"]
#[expect(dead_code, reason = "the kill matrix needs more of it")]
mod witness;

use exits::Exit;
use lineage::{Pinned, ancestor};
use measure::Measure;
use node::{Node, PATIENCE};
use rows::{Rows, say};

/// Starts and ends workers, and sees whether anything grows.
#[derive(Debug, Parser)]
struct Args {
    /// Workers through the agent.
    #[arg(long, default_value_t = 20_000, conflicts_with = "minutes")]
    count: u64,
    /// As many as fit in so many minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// No more after so many seconds, counted or not.
    #[arg(long, default_value_t = 300)]
    within: u64,
    /// Workers through a whole `tether up`.
    #[arg(long, default_value_t = 1_000)]
    cluster: u32,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How long the shim of a worker is looked for.
const LOOKED_FOR: Duration = Duration::from_millis(500);

/// At a time.
const IN_FLIGHT: usize = 32;

/// Lives after which an agent has what it needs.
const WARM_UP: u64 = 1_000;

/// What memory may grow by, however many have lived: allocators keep some of what they once had.
const AGENT_GROWTH_KIB: u64 = 4_096;
const ZYGOTE_GROWTH_KIB: u64 = 64;

#[tokio::main]
async fn main() -> ExitCode {
    match soak(&Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("the soak cannot be run: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn soak(args: &Args) -> anyhow::Result<bool> {
    // Nothing that is started here gets out of sight.
    set_child_subreaper(Some(getpid()))?;
    let mut rows = Rows::default();
    let (count, time) = match args.minutes {
        Some(minutes) => (u64::MAX, Duration::from_secs(60 * minutes)),
        None => (args.count, Duration::from_secs(args.within)),
    };
    agent(count, time, &mut rows).await?;
    cluster::soak(args.cluster, &mut rows).await;
    Ok(rows.finish(args.json.as_deref())?)
}

/// The agent alone, driven by a puppet.
async fn agent(count: u64, time: Duration, rows: &mut Rows) -> anyhow::Result<()> {
    let mut node = Node::prepare("soak", None).await?;
    anyhow::ensure!(node.join_unwatched().await?, "{}", node.last_words());
    let mut odd = Vec::new();
    run(&mut node, WARM_UP, PATIENCE, &mut odd).await?;
    if let Err(left) = node.quiet(None).await {
        anyhow::bail!(
            "left after {WARM_UP} lives: {left}; {odd:?}\n{}",
            node.log()
        );
    }
    let before = Measure::of(&node);

    let start = Instant::now();
    let lived: u64 = run(&mut node, count, time, &mut odd).await?.values().sum();
    let took = start.elapsed().as_secs_f64();
    let quiet = node.quiet(None).await;
    let after = Measure::of(&node);
    say(&format!(
        "{lived} workers lived and died in {took:.1} s, {:.0} a second\nbefore {before:?}\nafter  {after:?}",
        lived as f64 / took
    ));

    let seen = |holds: bool, seen: String| if holds { Ok(seen) } else { Err(seen) };
    // With a time for the whole it is as many as fit.
    let wanted = if count == u64::MAX { WARM_UP } else { count };
    let enough = lived >= wanted;
    rows.add(
        "workers that lived and died",
        &format!("{wanted} at least"),
        seen(enough, lived.to_string()),
    );
    let wrong = odd.first().cloned().unwrap_or_default();
    rows.add(
        "deaths with another cause than theirs",
        "0",
        seen(
            odd.is_empty(),
            format!("{} {wrong}", odd.len()).trim().to_owned(),
        ),
    );
    rows.add(
        "what is left of the dead",
        "nothing",
        quiet.map(|()| "nothing".to_owned()),
    );
    for (name, before, after, growth) in [
        (
            "memory of the agent, KiB",
            before.agent_rss_kib,
            after.agent_rss_kib,
            AGENT_GROWTH_KIB,
        ),
        (
            "memory of the zygote, KiB",
            before.zygote_pss_kib,
            after.zygote_pss_kib,
            ZYGOTE_GROWTH_KIB,
        ),
        (
            "descriptors of the agent",
            wide(before.agent_fds),
            wide(after.agent_fds),
            0,
        ),
        (
            "descriptors of the zygote",
            wide(before.zygote_fds),
            wide(after.zygote_fds),
            0,
        ),
        (
            "threads of the agent",
            wide(before.agent_threads),
            wide(after.agent_threads),
            0,
        ),
        (
            "entries of the runtime directory",
            wide(before.files),
            wide(after.files),
            32,
        ),
        ("cgroups", wide(before.cgroups), wide(after.cgroups), 0),
        (
            "processes",
            wide(before.processes),
            wide(after.processes),
            0,
        ),
    ] {
        let text = format!("{before}, then {after}");
        let expected = format!("at most {growth} more than after {WARM_UP} lives");
        rows.add(name, &expected, seen(after <= before + growth, text));
    }
    let node = node.rejoin().await?;
    let listed = node.hello.workers.len();
    rows.add(
        "workers that the agent lists",
        "0",
        seen(listed == 0, listed.to_string()),
    );
    node.end().await
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Lets so many live, or as many as fit; tells how many of each kind did, and notes who died of something else.
async fn run(
    node: &mut Node,
    count: u64,
    time: Duration,
    odd: &mut Vec<String>,
) -> anyhow::Result<BTreeMap<Exit, u64>> {
    let start = Instant::now();
    let mut alive = BTreeMap::new();
    let mut dead: BTreeMap<Exit, u64> = BTreeMap::new();
    let mut begun = 0;
    loop {
        while alive.len() < IN_FLIGHT && begun < count && start.elapsed() < time {
            let exit = Exit::of(begun);
            alive.insert(exit.order(node), exit);
            begun += 1;
        }
        if alive.is_empty() {
            return Ok(dead);
        }
        let (_, report) = node
            .puppet
            .report(PATIENCE)
            .await
            .with_context(|| format!("a death that nobody tells of, among {alive:?}"))?;
        let number = report
            .worker
            .as_ref()
            .map_or(0, |worker| worker.incarnation);
        let Some(&exit) = alive.get(&number) else {
            continue;
        };
        match (report.phase(), exit) {
            (WorkerPhase::Ready, Exit::Stopped) => node.order_stop(number),
            (WorkerPhase::Ready, Exit::ShimKilled) => {
                // The process table is read while it changes: one look can miss a process that is there.
                // Told twice that it is ready, and killed after the first time, it has no shim any more.
                let shim = eventually_within(LOOKED_FOR, async || {
                    let shim = ancestor(&node.kin(), report.pid, "tether-shim")?;
                    Pinned::named(shim, "tether-shim")
                });
                if let Some((shim, _)) = shim.await {
                    shim.kill();
                }
            }
            (WorkerPhase::Dead, exit) => {
                alive.remove(&number);
                node.forget(number);
                let death = report.death.unwrap_or_default();
                if !exit.fits(&death) {
                    odd.push(format!("{exit:?}: {death:?}"));
                }
                *dead.entry(exit).or_default() += 1;
            }
            _ => {}
        }
    }
}
