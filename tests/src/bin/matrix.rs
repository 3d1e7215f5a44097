//! The kill matrix: real services, real workers of every bad habit, and a kill of everybody at every moment;
//! nothing may be left, nobody else may die, and no stranger may get a signal.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use tokio::task::{JoinSet, LocalSet};

#[path = "../matrix/aim.rs"]
mod aim;
#[path = "../matrix/cgroups.rs"]
mod cgroups;
#[path = "../matrix/container.rs"]
mod container;
#[path = "../matrix/lineage.rs"]
mod lineage;
#[path = "../matrix/owner.rs"]
mod owner;
#[path = "../matrix/pause.rs"]
mod pause;
#[path = "../matrix/plan.rs"]
mod plan;
#[path = "../matrix/pools.rs"]
mod pools;
#[path = "../matrix/results.rs"]
mod results;
#[path = "../matrix/round.rs"]
mod round;
#[path = "../matrix/strangers.rs"]
mod strangers;
#[path = "../matrix/witness.rs"]
mod witness;
#[path = "../matrix/world.rs"]
mod world;

use plan::{Dice, Event, Level, Only, Phase, Victim};
use results::{Results, Run, page, seconds};
use strangers::{Recycler, Strangers};
use world::World;

/// Kills everybody at every moment, and sees whether anything is left.
#[derive(Debug, Clone, Parser)]
struct Args {
    /// Trials to count at least: one worker under one kill each.
    #[arg(long, default_value_t = 20_000)]
    trials: usize,
    /// What the order of events and their moments follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these: `victim=agent,phase=idle,level=G3`, each part optional.
    #[arg(long)]
    only: Option<Only>,
    /// Workers of each behaviour in a round.
    #[arg(long, default_value_t = 10)]
    size: u32,
    /// Nodes at a time.
    #[arg(long, default_value_t = 3)]
    worlds: usize,
    /// Processes a second that recycle pids.
    #[arg(long, default_value_t = 1_000)]
    storm: u32,
    /// No new round after this many seconds; fewer trials than asked for are then a failure.
    #[arg(long, default_value_t = 900)]
    within: u64,
    /// Keeps what the services of worlds with a fault logged in this directory.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes the page to this file.
    #[arg(long)]
    docs: Option<PathBuf>,
}

/// A level that can be had, with the switches of the agent that make it.
type Offer = (Level, Vec<&'static str>);

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    // A world's rounds stay on one thread; what they wait for is seen on others.
    match LocalSet::new().run_until(matrix(&args)).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "the matrix cannot be run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn matrix(args: &Args) -> anyhow::Result<bool> {
    let start = Instant::now();
    let scratch = tempfile::Builder::new().prefix("tm-").tempdir()?;
    let set_uid = set_uid_copy(scratch.path())?;
    let strangers = Strangers::start(args.storm)?;
    let tools = (strangers.recycler(), set_uid);
    let results = Arc::new(Mutex::new(Results::default()));
    let only = args.only.clone().unwrap_or_default();
    let offers = offers(&only, &results, &tools).await;
    let number = Arc::new(AtomicU32::new(1));
    let mut running = JoinSet::new();
    let enough = {
        let (results, args) = (Arc::clone(&results), args.clone());
        move || {
            let results = lock(&results);
            results.trials() >= args.trials
                || results.is_hopeless()
                || start.elapsed() > Duration::from_secs(args.within)
        }
    };
    while !offers.is_empty() && !enough() {
        while running.len() < args.worlds && !offers.is_empty() {
            let turn = number.fetch_add(1, Ordering::Relaxed);
            let (level, switches) = offers[(turn as usize - 1) % offers.len()].clone();
            let (args, only, results, tools) = (
                args.clone(),
                only.clone(),
                Arc::clone(&results),
                tools.clone(),
            );
            let enough = enough.clone();
            running.spawn_local(async move {
                let seed = args.seed.wrapping_add(u64::from(turn) - 1);
                let lived = one_world(
                    turn, level, &switches, seed, &args, &only, &results, tools, &enough,
                );
                if let Err(error) = Box::pin(lived).await {
                    lock(&results).fault(format!("{error:#} (--only level={level} --seed {seed})"));
                }
                let _ = writeln!(
                    std::io::stdout(),
                    "world {turn} at {level} with seed {seed}: {} trials after {}",
                    lock(&results).trials(),
                    seconds(start.elapsed())
                );
            });
        }
        running.join_next().await;
    }
    while running.join_next().await.is_some() {}
    let mut account = strangers.end().await?;
    account.add(lock(&results).account());
    let run = Run {
        seed: args.seed,
        wanted: args.trials,
        seconds: start.elapsed().as_secs_f64(),
        account,
    };
    let json = lock(&results).json(&run);
    report(args, &json)
}

#[expect(
    clippy::too_many_arguments,
    reason = "the frame of one task, called once"
)]
async fn one_world(
    turn: u32,
    level: Level,
    switches: &[&str],
    seed: u64,
    args: &Args,
    only: &Only,
    results: &Mutex<Results>,
    tools: (Recycler, PathBuf),
    enough: &(impl Fn() -> bool + Sync),
) -> anyhow::Result<()> {
    let mut world = World::start(turn, level, switches, seed, tools).await?;
    let mut others = None;
    for event in events(seed, only, level) {
        if enough() {
            break;
        }
        let played = Box::pin(round::play(&mut world, &mut others, event, args.size)).await;
        let faulty = played
            .as_ref()
            .map_or(true, |round| !round.faults.is_empty());
        if let Some(dir) = args.keep.as_ref().filter(|_| faulty) {
            fs::create_dir_all(dir)?;
            let mut log = fs::File::options()
                .create(true)
                .append(true)
                .open(dir.join(format!("{level}-{seed}.log")))?;
            let heading = format!("{} {} round {}", event.victim, event.phase, world.round);
            writeln!(log, "== {heading}\n{}", world.log())?;
        }
        match played {
            Ok(round) => lock(results).add(level, event, seed, round),
            Err(error) => {
                // What is left of it ends with the world's root.
                let remains = world.abandon().await?;
                lock(results).add_account(remains.account);
                anyhow::bail!("{} {}: {error:#}", event.victim, event.phase);
            }
        }
    }
    if let Some(others) = others {
        others.end(&world).await?;
    }
    let remains = world.end().await?;
    lock(results).add_account(remains.account);
    lock(results).end_world(level, seed, remains.left);
    Ok(())
}

/// Every event once, in an order that the seed says.
fn events(seed: u64, only: &Only, level: Level) -> Vec<Event> {
    let mut dice = Dice::new(seed ^ 0xdead);
    let mut doze = Dice::new(seed ^ 0xd02e);
    let mut events = Vec::new();
    for &victim in Victim::ALL {
        for &phase in Phase::ALL {
            if only.event(victim, phase) {
                // The agent's death ends workers that are not held; all else is tried on workers that are.
                let held = victim != Victim::Agent || phase == Phase::Upgrade || dice.roll(2) == 0;
                events.push(Event {
                    victim,
                    phase,
                    held,
                    dozes: level == Level::G4 && doze.roll(2) == 0,
                });
            }
        }
    }
    dice.shuffle(&mut events);
    events
}

/// The levels that can be had here; why the others cannot is noted.
async fn offers(only: &Only, results: &Mutex<Results>, tools: &(Recycler, PathBuf)) -> Vec<Offer> {
    let mut offers = Vec::new();
    let probe = World::start(
        0,
        Level::G5,
        &["no_namespaces", "no_cgroups"],
        0,
        tools.clone(),
    )
    .await;
    let switchable = match probe {
        Ok(world) => world.end().await.is_ok(),
        Err(_) => false,
    };
    for &level in Level::ALL.iter().filter(|&&level| only.level(level)) {
        let why = match level {
            Level::G4 if !rustix::process::geteuid().is_root() => {
                Some("only root may make the container")
            }
            Level::G1 | Level::G2 if !switchable => Some("this agent makes no namespaces"),
            Level::G1 | Level::G3 if cgroups::unified().is_none() => {
                Some("there is no cgroup v2 here")
            }
            Level::G1 | Level::G2 | Level::G3 | Level::G4 | Level::G5 => None,
        };
        if let Some(why) = why {
            lock(results).skip(level, why);
            continue;
        }
        let mut switches = Vec::new();
        if level == Level::G4 {
            // In the container there is neither: nothing has to be switched off.
            offers.push((level, switches));
            continue;
        }
        if !level.has_cgroup() {
            switches.push("no_cgroups");
        }
        if switchable && !level.has_namespace() {
            switches.push("no_namespaces");
        }
        offers.push((level, switches));
    }
    offers
}

/// A copy of the static program that belongs to nobody and takes on its user.
fn set_uid_copy(dir: &Path) -> anyhow::Result<PathBuf> {
    const NOBODY: u32 = 65_534;
    let copy = dir.join("set-uid");
    fs::copy(world::WORKER, &copy)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    if rustix::process::geteuid().is_root() {
        chown(&copy, Some(NOBODY), None)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755))?;
    }
    Ok(copy)
}

/// Prints what matters, writes what was asked for; tells whether everything held.
fn report(args: &Args, json: &serde_json::Value) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    for row in json["rows"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|row| row["pass"] == false)
    {
        writeln!(out, "FAIL {}: {}", row["name"], row["seen"])?;
        for failure in row["failures"].as_array().into_iter().flatten().take(3) {
            writeln!(out, "     {failure}")?;
        }
    }
    for fault in json["faults"].as_array().into_iter().flatten() {
        writeln!(out, "FAULT {fault}")?;
    }
    for row in json["gone_after"].as_array().into_iter().flatten() {
        writeln!(
            out,
            "gone after, {} {}: median {} ms, 99 % {} ms, longest {} ms of {}",
            row["level"],
            row["victim"],
            row["median_ms"],
            row["p99_ms"],
            row["max_ms"],
            row["count"]
        )?;
    }
    writeln!(
        out,
        "{} trials in {} s, {} worlds, {} bystanders looked after, strangers: {}",
        json["trials"],
        json["seconds"],
        json["worlds"],
        json["bystanders_looked_after"],
        json["strangers"]
    )?;
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(json)? + "\n")?;
    }
    if let Some(path) = &args.docs {
        fs::write(path, page(json))?;
    }
    let ok = json["failed"] == 0;
    let word = if ok { "ok" } else { "FAILED" };
    writeln!(
        out,
        "test result: {word}. {} passed; {} failed; {} ignored",
        json["passed"], json["failed"], json["skipped"]
    )?;
    Ok(ok)
}

fn lock(results: &Mutex<Results>) -> std::sync::MutexGuard<'_, Results> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}
