//! Workers that are killed, stopped or slow while calls go on.

use std::time::Duration;

use rustix::process::Signal;
use tether_tests::clerk::{caller::Told, now};
use tokio::time::sleep;

use super::{
    DEADLINE, RATE, SECOND, SETTLING, WORKERS,
    judge::{Blow, Evidence, KNOWN_WITHIN, words},
    load::Steady,
    site::{Manner, Member, Site, Stage},
};
use crate::{
    figure::{Figure, Target},
    processes::Pinned,
    proxies::Proxy,
    turns::{Turns, failures, row},
};

/// How long a stopped worker is left like that.
const STOPPED: Duration = Duration::from_secs(4);

/// Between two blows, once all is as it was.
const RECOVERY: Duration = Duration::from_millis(500);

/// A call that takes longer is stuck.
const STUCK: Duration = Duration::from_secs(1);

const LAST_SENT: &str = "last call sent to it afterwards";
const ANSWERED: &str = "last of the calls at it answered";

/// What is done to workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Harm {
    /// One is killed, so many times.
    Kill { times: usize },
    /// One is stopped, so many times.
    Stop { times: usize },
    /// The first is slow from the beginning.
    Slow,
}

/// What a turn showed, in seconds.
#[derive(Debug)]
pub(super) struct Turn {
    /// The 99th percentile of nine healthy workers.
    base: Option<f64>,
    p99: Option<f64>,
    last_sent: f64,
    /// The longest time until a call that was under way was answered.
    answered: f64,
    failed_under_way: usize,
    failed_else: usize,
    why: Option<String>,
    twice: usize,
    /// In one blow.
    stuck: usize,
}

impl Harm {
    pub(super) async fn turn(
        self,
        stage: &Stage,
        proxy: Proxy,
        manner: Manner,
        span: Duration,
    ) -> anyhow::Result<Turn> {
        // Right before it: what a machine takes for the same work changes within minutes.
        let base = stage.healthy(proxy).await?;
        let site = stage.site(proxy, manner).await?;
        let load = Steady::start(site.port(), RATE, DEADLINE);
        sleep(SETTLING).await;
        let mut blows = Vec::new();
        match self {
            Self::Slow => sleep(span).await,
            Self::Stop { times } => {
                for number in 0..times {
                    blows.push(stop(&site, number % WORKERS, hits_a_call(number)).await?);
                }
            }
            Self::Kill { times } => {
                for number in 0..times {
                    // The first is the one that may be another than the rest.
                    let slot = if manner.resident_mib > 0 {
                        0
                    } else {
                        number % WORKERS
                    };
                    blows.push(kill(&site, slot, hits_a_call(number)).await?);
                }
            }
        }
        let evidence = evidence(&site, load).await?;
        Ok(Turn::new(base, &blows, &evidence))
    }
}

/// Ends the load, and gathers what there is to know.
pub(super) async fn evidence(site: &Site, load: Steady) -> anyhow::Result<Evidence> {
    let told = load.end().await?;
    Ok(Evidence {
        told,
        sent: site.tap.seen(),
        entries: site.entries()?,
    })
}

/// Every other blow comes while its victim has a call, which is to be answered; the others whenever, as to one without a
/// call the next one may be on its way.
fn hits_a_call(number: usize) -> bool {
    number.is_multiple_of(2)
}

async fn kill(site: &Site, slot: usize, busy: bool) -> anyhow::Result<Blow> {
    let victims = victims(site, slot, busy).await?;
    let pinned = Pinned::of(victims.iter().map(|victim| victim.pid));
    let at = now();
    pinned.signal(Signal::KILL);
    // Looking for the next one takes time of the processor that calls come from.
    sleep(SECOND).await;
    site.back(WORKERS, &victims).await?;
    let until = now();
    sleep(RECOVERY).await;
    Ok(Blow { at, victims, until })
}

async fn stop(site: &Site, slot: usize, busy: bool) -> anyhow::Result<Blow> {
    let victims = victims(site, slot, busy).await?;
    let pinned = Pinned::of(victims.iter().map(|victim| victim.pid));
    let at = now();
    pinned.signal(Signal::STOP);
    sleep(STOPPED).await;
    let until = now();
    pinned.signal(Signal::CONT);
    sleep(SECOND).await;
    Ok(Blow { at, victims, until })
}

/// Who is there in this place; with a call, where that is wanted.
async fn victims(site: &Site, slot: usize, busy: bool) -> anyhow::Result<Vec<Member>> {
    let mut members = site.members().await?;
    members.retain(|member| member.slot == slot);
    anyhow::ensure!(!members.is_empty(), "the victim is not there");
    for victim in members.iter().filter(|_| busy) {
        site.busy(victim).await;
    }
    Ok(members)
}

impl Turn {
    fn new(base: Option<f64>, blows: &[Blow], evidence: &Evidence) -> Self {
        let seconds = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64();
        let with_it = blows
            .iter()
            .filter_map(|blow| evidence.p99(blow.at))
            .collect();
        let p99 = match blows {
            [] => evidence.p99_of_seconds(),
            _ => crate::figure::median(with_it),
        };
        let last_sent = blows.iter().map(|blow| evidence.last_sent(blow));
        let (mut answered, mut known) = (0, Vec::new());
        for blow in blows {
            let under_way = evidence.under_way(blow);
            let longest = under_way.iter().map(|one| one.end - blow.at).max();
            answered = answered.max(longest.unwrap_or(0));
            known.extend(under_way);
        }
        let failed_else = evidence.failed_but(&known);
        let is_stuck = |one: &&Told| !one.is_answered() || Duration::from_nanos(one.took()) > STUCK;
        let stuck = blows.iter().map(|blow| {
            let told = evidence.told.iter();
            let during = told.filter(|one| one.end > blow.at && one.start < blow.until);
            during.filter(is_stuck).count()
        });
        Self {
            base,
            p99,
            last_sent: last_sent.max().unwrap_or_default().as_secs_f64(),
            answered: seconds(answered),
            failed_under_way: known.iter().filter(|one| !one.is_answered()).count(),
            why: failed_else.first().map(|one| words(one)),
            failed_else: failed_else.len(),
            twice: evidence.twice(),
            stuck: stuck.max().unwrap_or(0),
        }
    }
}

impl Harm {
    /// How soon the dead are known, and nothing that has to be so.
    pub(super) fn remarks(name: &str, turns: &[Turns<Turn>]) -> Vec<Figure> {
        let ms = |name: &str, read: fn(&Turn) -> f64| {
            row(name.to_owned(), "ms", turns, |turn| Some(read(turn) * 1e3))
        };
        vec![
            ms(&format!("{name}: {LAST_SENT}"), |turn| turn.last_sent),
            ms(&format!("{name}: {ANSWERED}"), |turn| turn.answered),
        ]
    }

    pub(super) fn rows(self, name: &str, turns: &[Turns<Turn>]) -> Vec<Figure> {
        let name = |what: &str| format!("{name}: {what}");
        let ms = |seconds: f64| Some(seconds * 1e3);
        let last = |most: f64| {
            let last = name(LAST_SENT);
            row(last, "ms", turns, |turn| ms(turn.last_sent)).target(Target::AtMost(most))
        };
        let answered = name(ANSWERED);
        let answered = row(answered, "ms", turns, |turn| ms(turn.answered));
        let mut rows = match self {
            Self::Kill { .. } => vec![
                last(KNOWN_WITHIN as f64 / 1e6),
                answered.target(Target::AtMost(10.0)),
                row(name("calls at it that failed"), "calls", turns, |turn| {
                    Some(turn.failed_under_way as f64)
                }),
            ],
            Self::Stop { .. } => vec![
                last(1_000.0),
                row(name("stuck calls"), "calls", turns, |turn| {
                    Some(turn.stuck as f64)
                })
                .target(Target::AtMost(3.0)),
            ],
            Self::Slow => Vec::new(),
        };
        if !matches!(self, Self::Stop { .. }) {
            let failed = name("other calls that failed");
            rows.push(failures(failed, "calls", turns, |turn| {
                (turn.failed_else as f64, turn.why.as_deref())
            }));
        }
        let twice = name("calls done twice");
        rows.push(failures(twice, "calls", turns, |turn| {
            (turn.twice as f64, None)
        }));
        let p99 = match self {
            Self::Kill { .. } | Self::Stop { .. } => "p99 of that second",
            Self::Slow => "p99 of a second",
        };
        rows.push(row(name(p99), "ms", turns, |turn| ms(turn.p99?)));
        let over = name("over that of nine healthy workers");
        rows.push(
            row(over, "", turns, |turn| Some(turn.p99? / turn.base?)).target(Target::AtMost(1.15)),
        );
        rows
    }
}
