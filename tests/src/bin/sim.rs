//! The lease protocol in a model and in a simulated world: every named mistake is caught, and what is meant holds.

use std::{
    ops::Range,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use tether_sim::{Mutant, World, model, run};

#[path = "../faults/rows.rs"]
#[expect(dead_code, reason = "fault injection needs more of it")]
mod rows;

use rows::{Rows, say};

/// A mutant that so many schedules do not catch is not caught.
const MUTANT_WITHIN: u64 = 20_000;

/// Schedules between two signs of life.
const CHUNK: u64 = 50_000;

/// Signs of life are not given more often than this.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Checks a model of the lease protocol, plays schedules of ten minutes, and shows that mistakes would be seen.
#[derive(Debug, Parser)]
struct Args {
    /// How many schedules are played.
    #[arg(long, default_value_t = 1_000_000)]
    schedules: u64,
    /// The seed of the first one; each has the next number, so a run is resumed where another stopped.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// On so many threads; all processors unless told otherwise.
    #[arg(long)]
    jobs: Option<u64>,
    /// With this mistake, by name.
    #[arg(long, value_parser = mutant)]
    mutant: Option<Mutant>,
    /// Plays the schedule of `--seed` alone, and tells what happened.
    #[arg(long)]
    trace: bool,
    /// Schedules only: no model, no mutants.
    #[arg(long)]
    only_schedules: bool,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn mutant(name: &str) -> Result<Mutant, String> {
    let names = || Mutant::ALL.iter().map(|mutant| mutant.name());
    Mutant::named(name).ok_or_else(|| {
        format!(
            "no such mutant; there are: {}",
            names().collect::<Vec<_>>().join(", ")
        )
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.trace {
        return trace(args.seed, args.mutant);
    }
    let mut rows = Rows::default();
    if !args.only_schedules && args.mutant.is_none() {
        check_model(&mut rows);
        catch_mutants(&mut rows);
    }
    play(&args, &mut rows);
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
    let mut world = World::new(seed, mutant).traced();
    let outcome = world.play();
    for line in world.trace() {
        say(line);
    }
    match outcome.violation {
        None => {
            say("every promise was kept");
            ExitCode::SUCCESS
        }
        Some(violation) => {
            say(&format!("broken: {violation}"));
            ExitCode::FAILURE
        }
    }
}

fn check_model(rows: &mut Rows) {
    for finding in model::exhaust() {
        let took = finding.took.as_secs_f64();
        let seen = format!("{} states in {took:.1} s", finding.states);
        say(&format!("model, {}: {seen}", finding.check));
        let seen = finding.broken.map_or(Ok(seen), Err);
        rows.add(
            &format!("model: {}", finding.check),
            "no counterexample",
            seen,
        );
    }
}

fn catch_mutants(rows: &mut Rows) {
    say(&format!(
        "\n{:<28} {:>22}   {:>22}   broken",
        "mutant", "schedules until caught", "states until caught"
    ));
    for &mutant in Mutant::ALL {
        let start = Instant::now();
        let played = run::until_broken(0..MUTANT_WITHIN, Some(mutant));
        let took = start.elapsed().as_secs_f64();
        let schedules = format!("{} ({took:.2} s)", played.schedules);
        let found = model::catch(mutant);
        let states = found.as_ref().map_or_else(
            || "-".to_owned(),
            |found| format!("{} ({:.1} s)", found.states, found.took.as_secs_f64()),
        );
        let by_model = found.is_none_or(|found| found.broken.is_some());
        let broken = played
            .first
            .map(|(seed, violation)| format!("{} (seed {seed})", violation.promise));
        let text = broken.as_deref().unwrap_or("nothing");
        say(&format!(
            "{:<28} {schedules:>22}   {states:>22}   {text}",
            mutant.name()
        ));
        let seen = format!("{schedules} schedules, {states} states: {text}");
        rows.add(
            &format!("mutant {}", mutant.name()),
            &format!(
                "caught within {MUTANT_WITHIN} schedules, and by the model where it has the parts"
            ),
            if broken.is_some() && by_model {
                Ok(seen)
            } else {
                Err(seen)
            },
        );
    }
}

fn play(args: &Args, rows: &mut Rows) {
    let threads = args
        .jobs
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, |count| count.get() as u64));
    let seeds = args.seed..args.seed.saturating_add(args.schedules);
    say(&format!(
        "\nschedules of ten minutes, seeds {} to {}, on {threads} threads",
        seeds.start, seeds.end
    ));
    let (start, mut said) = (Instant::now(), Instant::now());
    let mut total = run::Summary::default();
    for chunk in chunks(seeds.clone()) {
        let next = chunk.end;
        let summary = run::all(chunk, args.mutant, threads);
        if let Some((seed, violation)) = &summary.first {
            say(&format!("  seed {seed}: {violation}"));
        }
        total.merge(summary);
        if said.elapsed() > SAY_EVERY && next < seeds.end {
            said = Instant::now();
            let rate = total.schedules as f64 / start.elapsed().as_secs_f64();
            say(&format!(
                "  {} schedules, {rate:.0} a second, {} violations; resume with --seed {next}",
                total.schedules, total.violations
            ));
        }
    }
    let took = start.elapsed().as_secs_f64();
    let rate = total.schedules as f64 / took;
    let seen = format!(
        "{} schedules in {took:.1} s, {rate:.0} a second on {threads} threads, {} events, {} grants, {} violations",
        total.schedules, total.events, total.grants, total.violations
    );
    say(&seen);
    let seen = match total.first {
        None => Ok(seen),
        Some((seed, violation)) => {
            let with = args
                .mutant
                .map_or_else(String::new, |mutant| format!(" --mutant {}", mutant.name()));
            Err(format!(
                "{seen}; first: {violation}; replay with: cargo xtask sim --trace --seed {seed}{with}"
            ))
        }
    };
    rows.add("schedules", "every promise kept in each", seen);
}

fn chunks(seeds: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let step = usize::try_from(CHUNK).unwrap_or(usize::MAX);
    let end = seeds.end;
    seeds
        .step_by(step)
        .map(move |first| first..end.min(first + CHUNK))
}
