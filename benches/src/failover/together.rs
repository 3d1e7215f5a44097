//! What happens to all workers: they are replaced one after the other, or killed at once.

use std::time::Duration;

use rustix::process::Signal;
use tether_tests::clerk::now;
use tokio::time::{Instant, sleep};

use super::{
    DEADLINE, RATE, SECOND, SETTLING, WORKERS,
    blows::evidence,
    judge::{Evidence, words},
    load::Steady,
    site::{Manner, Stage},
};
use crate::{
    figure::Figure,
    processes::Pinned,
    proxies::Proxy,
    turns::{Turns, failures, row},
};

/// What a turn showed.
#[derive(Debug)]
pub(super) struct Turn {
    took: Duration,
    failed: usize,
    why: Option<String>,
    twice: usize,
    /// From the kill until a call that was made after it was answered.
    first_answer: Option<Duration>,
    /// From the kill until the last call failed.
    last_failure: Duration,
}

pub(super) async fn roll(stage: &Stage, proxy: Proxy) -> anyhow::Result<Turn> {
    let site = stage.site(proxy, Manner::default()).await?;
    let load = Steady::start(site.port(), RATE, DEADLINE);
    sleep(SETTLING).await;
    let (start, at) = (Instant::now(), now());
    site.roll().await?;
    let took = start.elapsed();
    sleep(SETTLING).await;
    Ok(Turn::new(took, at, &evidence(&site, load).await?))
}

pub(super) async fn kill(stage: &Stage, proxy: Proxy) -> anyhow::Result<Turn> {
    let site = stage.site(proxy, Manner::default()).await?;
    let load = Steady::start(site.port(), RATE, DEADLINE);
    sleep(SETTLING).await;
    let victims = site.members().await?;
    let pinned = Pinned::of(victims.iter().map(|victim| victim.pid));
    let (start, at) = (Instant::now(), now());
    pinned.signal(Signal::KILL);
    sleep(SECOND).await;
    site.back(WORKERS, &victims).await?;
    let took = start.elapsed();
    sleep(SETTLING).await;
    Ok(Turn::new(took, at, &evidence(&site, load).await?))
}

impl Turn {
    fn new(took: Duration, at: u64, evidence: &Evidence) -> Self {
        let failed = evidence.failed_but(&[]);
        let since = |nanos: u64| Duration::from_nanos(nanos.saturating_sub(at));
        let after = evidence.told.iter().filter(|one| one.start > at);
        let answered = after.filter(|one| one.is_answered());
        Self {
            took,
            why: failed.first().map(|one| words(one)),
            last_failure: since(failed.iter().map(|one| one.end).max().unwrap_or(at)),
            failed: failed.len(),
            twice: evidence.twice(),
            first_answer: answered.map(|one| one.end).min().map(since),
        }
    }
}

pub(super) fn rolled(turns: &[Turns<Turn>]) -> Vec<Figure> {
    let name = |what: &str| format!("all replaced in turn: {what}");
    vec![
        row(name("took"), "s", turns, |turn| {
            Some(turn.took.as_secs_f64())
        }),
        failures(name("failed calls"), "calls", turns, |turn| {
            (turn.failed as f64, turn.why.as_deref())
        }),
        failures(name("calls done twice"), "calls", turns, |turn| {
            (turn.twice as f64, None)
        }),
    ]
}

pub(super) fn killed(turns: &[Turns<Turn>]) -> Vec<Figure> {
    let name = |what: &str| format!("all killed at once: {what}");
    let ms = |time: Duration| Some(time.as_secs_f64() * 1e3);
    vec![
        row(
            name("until a call is answered again"),
            "ms",
            turns,
            |turn| ms(turn.first_answer?),
        ),
        row(name("until the last call fails"), "ms", turns, |turn| {
            ms(turn.last_failure)
        }),
        row(name("failed calls"), "calls", turns, |turn| {
            Some(turn.failed as f64)
        }),
        failures(name("calls done twice"), "calls", turns, |turn| {
            (turn.twice as f64, None)
        }),
    ]
}
