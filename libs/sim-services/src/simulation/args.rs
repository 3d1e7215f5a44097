//! The command line: which schedules are played, and what is said of them.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::Range,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;

#[path = "../../../../tests/src/faults/rows.rs"]
#[expect(dead_code, reason = "fault injection needs more of it")]
mod rows;

use rows::{Rows, say};

use super::{
    mutant::Mutant,
    schedule::END,
    world::{self, Outcome},
};

/// A mutant that so many schedules do not catch is not caught.
const MUTANT_WITHIN: u64 = 600;

/// Of so many schedules one is played twice.
const TWICE: u64 = 100;

/// Signs of life are not given more often than this.
const SAY_EVERY: Duration = Duration::from_secs(20);

/// Plays schedules on the services themselves, and shows that mistakes would be seen.
#[derive(Debug, Parser)]
struct Args {
    /// How many schedules are played.
    #[arg(long, default_value_t = 2_000)]
    schedules: u64,
    /// The seed of the first one; each has the next number.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// On so many threads; all processors unless told otherwise.
    #[arg(long)]
    jobs: Option<usize>,
    /// With this mistake, by name.
    #[arg(long, value_parser = mutant)]
    mutant: Option<Mutant>,
    /// Plays the schedule of `--seed` alone, and tells what happened; RUST_LOG says what of the services' logs.
    #[arg(long)]
    trace: bool,
    /// Schedules only: no mutants.
    #[arg(long)]
    only_schedules: bool,
    /// Mutants only: no schedules without one.
    #[arg(long, conflicts_with = "only_schedules")]
    only_mutants: bool,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Args {
    fn threads(&self) -> usize {
        let all = || thread::available_parallelism().map_or(1, usize::from);
        self.jobs.unwrap_or_else(all).max(1)
    }
}

fn mutant(name: &str) -> Result<Mutant, String> {
    let names = || Mutant::ALL.iter().map(|mutant| mutant.name());
    Mutant::named(name).ok_or_else(|| {
        let names = names().collect::<Vec<_>>().join(", ");
        format!("no such mutant; there are: {names}")
    })
}

/// What came of many schedules.
#[derive(Debug, Default)]
struct Summary {
    schedules: u64,
    births: u64,
    deaths: u64,
    twice: u64,
    /// A sum over what happened in each, whatever order they were played in.
    digest: u64,
    /// How many each promise was broken in, by its name; and the lowest seed of those, and how.
    broken: BTreeMap<&'static str, (u64, u64, String)>,
}

/// What is promised of each schedule: what a violation's text begins with, and the words for it.
const PROMISES: [(&str, &str); 6] = [
    ("P1", "no worker outlives its permission"),
    (
        "P2",
        "one incarnation of a slot, one arbiter that writes, no burial of who lives",
    ),
    ("P3", "nobody ends for what does not last"),
    ("P4", "each death is recorded once, with its cause"),
    (
        "P5",
        "after all is healed those are alive whom the ledger lists, and none is missing",
    ),
    (
        ALIKE,
        "played twice it is the same, and no service ends by itself",
    ),
];

/// What is not a promise of the product.
const ALIKE: &str = "same seed";

pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    if args.trace {
        return trace(args.seed, args.mutant);
    }
    let mut rows = Rows::default();
    if !args.only_schedules && args.mutant.is_none() {
        catch_mutants(&mut rows, args.threads());
    }
    if !args.only_mutants {
        play(&args, &mut rows);
    }
    match rows.finish(args.json.as_deref()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("cannot write the evidence: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Tells what happens in one schedule.
fn trace(seed: u64, mutant: Option<Mutant>) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .without_time()
        .init();
    let outcome = world::play(seed, mutant);
    say(outcome.trace.trim_end());
    match outcome.broken {
        None => {
            say("every promise was kept");
            ExitCode::SUCCESS
        }
        Some(_) => ExitCode::FAILURE,
    }
}

fn replay(seed: u64, mutant: Option<Mutant>) -> String {
    let with = mutant.map_or_else(String::new, |mutant| format!(" --mutant {}", mutant.name()));
    format!("replay with: cargo xtask sim --services --trace --seed {seed}{with}")
}

/// Each mutant, as many at a time as there are threads.
fn catch_mutants(rows: &mut Rows, threads: usize) {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&mutant) = Mutant::ALL.get(at) else {
                        break;
                    };
                    let seen = catch(mutant);
                    if let Ok(mut all) = all.lock() {
                        all.insert(at, (mutant, seen));
                    }
                }
                add_own_cpu();
            });
        }
    });
    for (mutant, seen) in all.into_inner().unwrap_or_default().into_values() {
        let (Ok(text) | Err(text)) = &seen;
        say(&format!("mutant {:<28} {text}", mutant.name()));
        let expected = format!("caught within {MUTANT_WITHIN} schedules");
        rows.add(
            &format!("services, mutant {}", mutant.name()),
            &expected,
            seen,
        );
    }
}

/// Plays schedules with this mistake until one shows it.
fn catch(mutant: Mutant) -> Result<String, String> {
    let start = Instant::now();
    let caught = (0..MUTANT_WITHIN).find_map(|seed| {
        let broken = world::play(seed, Some(mutant)).broken?;
        Some((seed, broken))
    });
    let took = start.elapsed().as_secs_f64();
    match caught {
        Some((seed, broken)) => Ok(format!("in {} schedules, {took:.1} s: {broken}", seed + 1)),
        None => Err(format!("not in {MUTANT_WITHIN} schedules, {took:.1} s")),
    }
}

fn play(args: &Args, rows: &mut Rows) {
    let threads = args.threads();
    let seeds = args.seed..args.seed.saturating_add(args.schedules);
    say(&format!(
        "schedules of {} s, seeds {} to {}, on {threads} threads",
        END.as_secs(),
        seeds.start,
        seeds.end
    ));
    let (start, before) = (Instant::now(), cpu_seconds());
    let total = all(seeds, args.mutant, threads as u64);
    let (took, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
    let rate = total.schedules as f64 / cpu.max(0.001);
    let broken: u64 = total.broken.values().map(|(count, ..)| count).sum();
    let played = format!(
        "{} schedules in {took:.1} s, {rate:.1} per CPU second, {} workers started, {} ended, {} schedules played twice, traces {:016x}",
        total.schedules, total.births, total.deaths, total.twice, total.digest
    );
    say(&format!("{played}, {broken} broken"));
    for (name, words) in PROMISES {
        let seen = match total.broken.get(name) {
            None => Ok(format!("0 violations; {played}")),
            Some((count, seed, broken)) => Err(format!(
                "{count} violations; first: {broken}; {}",
                replay(*seed, args.mutant)
            )),
        };
        rows.add(&format!("services, {name}"), words, seen);
    }
}

/// CPU time of this process so far, which is what schedules per second are counted by.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let own: f64 = stat
        .split(' ')
        .next()
        .and_then(|it| it.parse().ok())
        .unwrap_or(0.0);
    own / 1e9 + THREADS_CPU.lock().map_or(0.0, |sum| *sum)
}

/// What threads that have ended took.
static THREADS_CPU: Mutex<f64> = Mutex::new(0.0);

fn add_own_cpu() {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let own: f64 = stat
        .split(' ')
        .next()
        .and_then(|it| it.parse().ok())
        .unwrap_or(0.0);
    if let Ok(mut sum) = THREADS_CPU.lock() {
        *sum += own / 1e9;
    }
}

fn all(seeds: Range<u64>, mutant: Option<Mutant>, threads: u64) -> Summary {
    let total = Mutex::new((Summary::default(), Instant::now()));
    thread::scope(|scope| {
        for thread in 0..threads {
            let (total, seeds) = (&total, seeds.clone());
            scope.spawn(move || {
                let own = seeds.filter(|seed| seed % threads == thread);
                for seed in own {
                    let outcome = world::play(seed, mutant);
                    let again = (seed % TWICE == 0).then(|| world::play(seed, mutant));
                    if let Ok(mut total) = total.lock() {
                        let (summary, said) = &mut *total;
                        summary.add(seed, mutant, outcome, again);
                        if said.elapsed() > SAY_EVERY {
                            *said = Instant::now();
                            say(&format!(
                                "  {} schedules, {} promises broken",
                                summary.schedules,
                                summary.broken.len()
                            ));
                        }
                    }
                }
                add_own_cpu();
            });
        }
    });
    total
        .into_inner()
        .map(|(summary, _)| summary)
        .unwrap_or_default()
}

impl Summary {
    fn add(&mut self, seed: u64, mutant: Option<Mutant>, outcome: Outcome, again: Option<Outcome>) {
        self.schedules += 1;
        self.births += outcome.births;
        self.deaths += outcome.deaths;
        self.digest = self.digest.wrapping_add(digest(&outcome.trace));
        let mut broken = outcome.broken;
        if let Some(again) = again {
            self.twice += 1;
            if again.trace != outcome.trace {
                let differs = again.trace.lines().zip(outcome.trace.lines());
                let first = differs.into_iter().find(|(one, other)| one != other);
                broken.get_or_insert_with(|| format!("played twice it is not the same: {first:?}"));
            }
        }
        if let Some(broken) = broken {
            say(&format!(
                "  seed {seed}: {broken}; {}",
                replay(seed, mutant)
            ));
            let mut names = PROMISES.iter().map(|(name, _)| *name);
            let name = names.find(|name| broken.starts_with(name)).unwrap_or(ALIKE);
            let (count, first, how) = self.broken.entry(name).or_insert((0, seed, String::new()));
            *count += 1;
            if seed <= *first {
                (*first, *how) = (seed, broken);
            }
        }
    }
}

/// The same for the same trace, in every process.
fn digest(trace: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    trace.hash(&mut hasher);
    hasher.finish()
}
