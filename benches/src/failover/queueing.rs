//! How long calls wait while most workers are busy, beside one ideal queue of the same calls.

use std::time::Duration;

use tether_tests::clerk::dice::Dice;

use super::{
    WORKERS,
    central::{self, Came},
    judge::{Evidence, p99, words},
    load::{Coming, play},
    site::{Manner, Stage},
};
use crate::{
    figure::{Figure, Target, median},
    proxies::Proxy,
    turns::{Turns, failures, row},
};

/// The share of all workers' time that calls take.
const LOAD: f64 = 0.8;

/// Most calls take about this long, in seconds.
const SHORT: f64 = 0.010;
/// One in ten takes about this long.
const LONG: f64 = 0.100;
const LONG_SHARE: f64 = 0.1;

/// Nobody gives up.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a turn showed, in seconds.
#[derive(Debug)]
pub(super) struct Turn {
    wait: Option<f64>,
    ideal: Option<f64>,
    /// How long a worker is idle between two calls while calls wait.
    gap: Option<f64>,
    failed: usize,
    why: Option<String>,
}

/// Calls at random for this long, the same in every run.
fn coming(span: Duration) -> Vec<Coming> {
    let mean = SHORT * (1.0 - LONG_SHARE) + LONG * LONG_SHARE;
    let between = mean / LOAD / WORKERS as f64;
    let (mut dice, mut clock, mut calls) = (Dice::new(20), 0.0, Vec::new());
    while clock < span.as_secs_f64() {
        let work = if dice.share() <= LONG_SHARE {
            LONG
        } else {
            SHORT
        };
        // None of no time at all, which would leave it to the worker.
        let work = dice.exponential(work).max(1e-6);
        calls.push(Coming {
            after: Duration::from_secs_f64(clock),
            work: Duration::from_secs_f64(work),
        });
        clock += dice.exponential(between);
    }
    calls
}

pub(super) async fn turn(stage: &Stage, proxy: Proxy, span: Duration) -> anyhow::Result<Turn> {
    let site = stage.site(proxy, Manner::default()).await?;
    let told = play(site.port(), &coming(span), DEADLINE).await;
    let evidence = Evidence {
        told,
        sent: Vec::new(),
        entries: site.entries()?,
    };
    let failed = evidence.failed_but(&[]);
    let served = evidence.served();
    let came = served.iter().map(|(at, _, work)| Came {
        at: *at,
        work: *work,
    });
    let ideal = central::waits(&came.collect::<Vec<_>>(), WORKERS);
    Ok(Turn {
        wait: p99(served.iter().map(|(_, wait, _)| *wait)),
        ideal: p99(ideal.into_iter()),
        gap: median(
            evidence
                .gaps()
                .iter()
                .map(|gap| *gap as f64 / 1e9)
                .collect(),
        ),
        why: failed.first().map(|one| words(one)),
        failed: failed.len(),
    })
}

pub(super) fn rows(turns: &[Turns<Turn>]) -> Vec<Figure> {
    let name = |what: &str| format!("load of {LOAD}: {what}");
    let ms = |seconds: f64| Some(seconds * 1e3);
    vec![
        row(name("p99 until a call begins"), "ms", turns, |turn| {
            ms(turn.wait?)
        }),
        row(name("the same in an ideal queue"), "ms", turns, |turn| {
            ms(turn.ideal?)
        }),
        row(name("over the ideal"), "", turns, |turn| {
            Some(turn.wait? / turn.ideal?)
        })
        .target(Target::AtMost(1.15)),
        row(
            name("a worker idle while calls wait, p50"),
            "ms",
            turns,
            |turn| ms(turn.gap?),
        ),
        failures(name("failed calls"), "calls", turns, |turn| {
            (turn.failed as f64, turn.why.as_deref())
        }),
    ]
}
