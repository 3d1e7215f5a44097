//! `bench isolation`: what becomes of other clients of a proxy while one does what no client should.
//!
//! In each turn others first have it to themselves, then beside that one; what counts is the share of their rate that
//! they keep. Some of them hold streams open all the while.

mod bystanders;
mod rude;

use std::{sync::Arc, time::Duration};

use clap::ValueEnum as _;
use futures::FutureExt as _;

use crate::{
    calls::{
        crowd::{Load, Outcome},
        upstream::Upstream,
    },
    cores::{self, Cores},
    figure::{Figure, Target},
    ground::Ground,
    proxies::{Programs, Proxies, Proxy},
    turns::{self, Turns, failures, row},
};

use bystanders::Bystanders;
use rude::{CANCELS, Rude};

const MIB: f64 = 1_048_576.0;

/// Before anything is measured, and from the beginning of the rudeness until its effect is there.
const SETTLING: Duration = Duration::from_millis(500);

/// What one client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// It has 64 streams sent to it as fast as they come, and reads none.
    Bulk,
    /// It has 8 streams of tokens sent to it as fast as they come, and reads none.
    Tokens,
    /// It starts 3,000 calls a second, and cancels each.
    Cancels,
}

/// What a run is made of.
#[derive(Debug)]
pub struct Plan {
    /// What to measure; everything, where nothing is named.
    pub parts: Vec<Part>,
    /// Who is measured.
    pub programs: Programs,
    /// Turns of each.
    pub rounds: usize,
    /// How long each half of a turn is.
    pub span: Duration,
    /// Processors for both.
    pub cores: Cores,
}

/// Runs all of it; each row is told as soon as it is there.
///
/// # Errors
/// When ours cannot be measured. A peer that cannot is skipped with its reason.
pub async fn run(
    ground: Arc<Ground>,
    plan: &Plan,
    tell: impl Fn(&Figure),
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut keep = |more: Vec<Figure>| {
        more.iter().for_each(&tell);
        figures.extend(more);
    };
    cores::open_many_files()?;
    let upstream = Upstream::start().await?;
    let proxies = Proxies::new(ground, plan.cores, upstream.port(), &plan.programs).await?;
    let parts = match plan.parts.as_slice() {
        [] => Part::value_variants(),
        named => named,
    };
    for part in parts {
        let turn = |proxy| part.turn(&proxies, proxy, plan.span).boxed();
        let turns = turns::take(&proxies.all(), plan.rounds, turn).await?;
        keep(part.rows(&turns));
    }
    Ok(figures)
}

/// What one turn gave.
#[derive(Debug)]
struct Turn {
    alone: Outcome,
    beside: Outcome,
    /// Streams and connections that others held and lost.
    lost: usize,
    /// How much more memory the proxy took, where there is one.
    grown: Option<f64>,
    /// Streams of the rude one that were ended.
    ended: usize,
    /// Calls that it cancelled in a second.
    cancelled: f64,
}

impl Turn {
    fn kept(&self) -> f64 {
        let rate = |outcome: &Outcome| outcome.done as f64 / outcome.span.as_secs_f64();
        rate(&self.beside) / rate(&self.alone)
    }
}

impl Part {
    fn name(self) -> String {
        match self {
            Self::Bulk => format!("{} unread bulk streams", self.unread()),
            Self::Tokens => format!("{} unread token streams", self.unread()),
            Self::Cancels => format!("{CANCELS} cancelled calls a second"),
        }
    }

    /// Streams that are not read.
    fn unread(self) -> usize {
        match self {
            Self::Bulk => 64,
            Self::Tokens => 8,
            Self::Cancels => 0,
        }
    }

    /// What others do.
    fn load(self) -> Load {
        let bytes = 128;
        match self {
            Self::Bulk | Self::Tokens => Load::Closed {
                connections: 4,
                callers: 8,
                bytes,
            },
            // Cancelled calls take their share of both processors, so others do not ask for all of them.
            Self::Cancels => Load::Paced {
                calls: 2_000,
                bytes,
            },
        }
    }

    async fn turn(self, proxies: &Proxies, proxy: Proxy, span: Duration) -> anyhow::Result<Turn> {
        let running = proxies.start(proxy).await?;
        let (port, load) = (running.port, self.load());
        let bystanders = Bystanders::new(port).await?;
        load.run(port, SETTLING).await?;
        let alone = load.run(port, span).await?;
        anyhow::ensure!(alone.failed == 0, "without the rude one: {:?}", alone.why);
        let before = running.memory();
        let rude = match self {
            Self::Bulk => Rude::unread(port, self.unread(), 1 << 10).await?,
            Self::Tokens => Rude::unread(port, self.unread(), 13).await?,
            Self::Cancels => Rude::cancels(port).await?,
        };
        tokio::time::sleep(SETTLING).await;
        let beside = load.run(port, span).await?;
        let grown = running.memory().zip(before);
        let (ended, cancelled) = rude.end();
        Ok(Turn {
            alone,
            beside,
            lost: bystanders.lost().await,
            grown: grown.map(|(after, before)| after.saturating_sub(before) as f64 / MIB),
            ended,
            cancelled,
        })
    }

    fn rows(self, turns: &[Turns<Turn>]) -> Vec<Figure> {
        let name = |what: &str| format!("{}: {what}", self.name());
        let kept = name("share of their rate that others keep");
        let mut rows = vec![
            row(kept, "", turns, |turn| Some(turn.kept())).target(Target::AtLeast(0.9)),
            failures(name("failed calls of others"), "calls", turns, |turn| {
                (turn.beside.failed as f64, turn.beside.why.as_deref())
            }),
            failures(
                name("what others held and lost"),
                "streams",
                turns,
                |turn| (turn.lost as f64, None),
            ),
        ];
        let grown = row(name("memory more"), "MiB", turns, |turn| turn.grown);
        rows.push(match self {
            // A mebibyte of each is what a slow reader may cost.
            Self::Bulk | Self::Tokens => grown.target(Target::AtMost(self.unread() as f64)),
            Self::Cancels => grown,
        });
        rows.push(match self {
            Self::Bulk | Self::Tokens => row(
                name("its own streams that were ended"),
                "streams",
                turns,
                |turn| Some(turn.ended as f64),
            ),
            Self::Cancels => row(name("cancelled in truth"), "/s", turns, |turn| {
                Some(turn.cancelled)
            }),
        });
        rows
    }
}
