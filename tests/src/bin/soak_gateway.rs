//! Soak of the gateway: workers and gateways are killed, drained and replaced while calls go on, and each call is
//! accounted for.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Parser;
use rustix::process::{getpid, set_child_subreaper};
use tether_tests::clerk::book;

#[path = "../upheaval/callers.rs"]
mod callers;
#[path = "../upheaval/deeds.rs"]
mod deeds;
#[path = "../upheaval/held.rs"]
mod held;
#[path = "../upheaval/place.rs"]
mod place;
#[path = "../faults/rows.rs"]
#[expect(dead_code, reason = "fault injection needs more of it")]
mod rows;
#[path = "../upheaval/verdict.rs"]
mod verdict;

use callers::Callers;
use deeds::{OUTSIDERS, SIZE, Upheaval};
use held::Watch;
use place::{OUTSIDE, Outsider, Place, STEADY, WORK};
use rows::{Rows, say};
use verdict::{Sum, Verdict};

/// Has gateways and workers end in every way while calls go on.
#[derive(Debug, Parser)]
struct Args {
    /// For how long.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// What is done, when and to whom follows from it.
    #[arg(long)]
    seed: Option<u64>,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The share of workers' time that calls take.
const LOAD: f64 = 0.7;

/// What may be more at the end of a run's last third than in its middle: allocators keep some of what they once had.
const GROWTH_KIB: u64 = 4_096;
const GROWTH_DESCRIPTORS: u64 = 16;

/// Where calls to the second pool begin to count.
const OUTSIDE_FROM: u64 = 1 << 40;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(1, |since| since.as_secs())
    });
    say(&format!(
        "with `--seconds {} --seed {seed}` the same is done again",
        args.seconds
    ));
    match soak(&args, seed).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("the soak cannot be run: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn soak(args: &Args, seed: u64) -> anyhow::Result<bool> {
    // Nothing that is started here gets out of sight.
    set_child_subreaper(Some(getpid()))?;
    let mut place = Place::start().await?;
    place.apply(SIZE, 0).await?;
    place.settled(SIZE, |_| true).await?;
    let mut outsiders: Vec<Outsider> = Vec::new();
    for number in 0..OUTSIDERS {
        outsiders.push(place.outsider(number).await?);
    }

    let ports = place.ports();
    let rate = |workers: f64| workers * LOAD / WORK.as_secs_f64();
    let steady = Callers::start(&ports, STEADY, rate(f64::from(SIZE)), 0);
    // One of them may be away at any time.
    let few = (OUTSIDERS - 1) as f64;
    let outside = Callers::start(&ports, OUTSIDE, rate(few), OUTSIDE_FROM);
    let watch = Watch::start(place.processes());
    let mut upheaval = Upheaval::new(seed);
    let span = Duration::from_secs(args.seconds);
    let raged = upheaval.rage(&mut place, &mut outsiders, span).await;
    let looks = watch.end().await?;
    let tallies = [
        (STEADY, steady.end().await?),
        (OUTSIDE, outside.end().await?),
    ];

    let mut rows = Rows::default();
    let words = format!(
        "{} deeds, {} of them kills",
        upheaval.done,
        upheaval.kills.len()
    );
    let at_rest = raged.map(|()| words).map_err(|error| format!("{error:#}"));
    rows.add(
        "everything comes to rest after each deed",
        "it does",
        at_rest,
    );
    let entries = book::read(&place.books())?;
    let begun = book::begun(&entries);
    for (pool, tally) in &tallies {
        let times = |id: u64| begun.get(&id).map_or(0, Vec::len);
        let sum = Sum::of(&tally.attempts, times, &upheaval.kills);
        say(&format!(
            "{pool}: {} calls, made {} times, {} answered, {} not seen, {} at somebody killed; the slowest took {:.1} s",
            tally.calls,
            tally.attempts.len(),
            sum.count(Verdict::Answered),
            sum.count(Verdict::NotSeen),
            sum.count(Verdict::Killed),
            tally.slowest.as_secs_f64(),
        ));
        let none = |rows: &mut Rows, what: &str, verdict| {
            let words = sum.words(verdict);
            let seen = match sum.count(verdict) {
                0 => Ok(words),
                _ => Err(words),
            };
            rows.add(&format!("{pool}: {what}"), "0", seen);
        };
        none(&mut rows, "calls that were lost", Verdict::Lost);
        none(
            &mut rows,
            "calls that failed without a kill",
            Verdict::Failed,
        );
        none(
            &mut rows,
            "calls of which something untrue was said",
            Verdict::Untrue,
        );
        none(&mut rows, "calls that were begun twice", Verdict::Twice);
        let given_up = match tally.given_up {
            0 => Ok("0".to_owned()),
            count => Err(count.to_string()),
        };
        rows.add(&format!("{pool}: calls that were given up"), "0", given_up);
        let answered = sum.count(Verdict::Answered);
        let enough = match answered * 2 > tally.calls {
            true => Ok(answered.to_string()),
            false => Err(answered.to_string()),
        };
        rows.add(&format!("{pool}: calls that were answered"), "most", enough);
    }
    for (name, (grown, last)) in looks.growth(&place.processes().borrow()) {
        for (what, grown, last, most) in [
            ("memory, KiB", grown.kib, last.kib, GROWTH_KIB),
            (
                "descriptors",
                grown.descriptors,
                last.descriptors,
                GROWTH_DESCRIPTORS,
            ),
        ] {
            let text = format!("{grown} more, {last} at last");
            let seen = if grown <= most { Ok(text) } else { Err(text) };
            let expected = format!("at most {most} more in the last third");
            rows.add(&format!("{name}: {what}"), &expected, seen);
        }
    }
    let ok = rows.finish(args.json.as_deref())?;
    if !ok {
        say(&place.last_words());
    }
    Ok(ok)
}
