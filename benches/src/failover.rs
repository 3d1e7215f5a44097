//! `bench failover`: what calls notice of it when a worker dies, hangs or is slow, through ours and through its peers.
//!
//! Ten workers that serve one call at a time, and a thousand calls a second. Callers note what they were told, workers
//! what they began, and what is on its way to whom is seen on the loopback interface ([`wire`]), so that nothing has to
//! be taken from a proxy's word.

mod blows;
mod central;
mod judge;
mod kept;
mod load;
mod ours;
mod peers;
mod queueing;
mod site;
mod together;
mod wire;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::ValueEnum as _;
use futures::FutureExt as _;

use crate::{
    cores::{self, Cores},
    figure::Figure,
    ground::Ground,
    proxies::{self, Proxy},
    scene, turns,
};

use blows::Harm;
use site::{Manner, Stage};

/// Workers of each proxy.
const WORKERS: usize = 10;

/// Calls a second.
const RATE: u32 = 1_000;

/// When a call's answer has to be there.
const DEADLINE: Duration = Duration::from_secs(2);

/// The second with the failure.
const SECOND: Duration = Duration::from_secs(1);

/// Before anything is done to anybody, and afterwards.
const SETTLING: Duration = Duration::from_secs(1);

/// A worker with a lot of memory takes its time to be there again, and takes none of the second that is looked at.
const FAT_RESTART: Duration = Duration::from_millis(1_500);

/// What others need of the machine's memory, in MiB.
const REST: u64 = 1_024;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// A worker is killed, over and over.
    Kill,
    /// The same with one that has a lot of memory.
    Fat,
    /// A worker is stopped.
    Stop,
    /// A worker is a hundred times as slow.
    Slow,
    /// All workers are replaced in turn.
    Roll,
    /// All workers are killed at once.
    All,
    /// Workers are busy for most of the time.
    Queue,
}

/// Programs that this bench needs.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Programs {
    #[command(flatten)]
    pub(crate) proxies: proxies::Programs,
    /// The agent's program.
    #[arg(long)]
    pub(crate) agent: PathBuf,
    /// The worker's.
    #[arg(long)]
    pub(crate) clerk: PathBuf,
    /// etcd's, in which the arbiter has its state.
    #[arg(long)]
    pub(crate) etcd: PathBuf,
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
    /// How often a worker is killed in a turn.
    pub kills: usize,
    /// How often one with a lot of memory is.
    pub fat_kills: usize,
    /// How often one is stopped.
    pub stops: usize,
    /// How much memory that is, in MiB, where there is as much.
    pub resident_mib: u64,
    /// How long calls go on where nothing is done.
    pub span: Duration,
    /// How long workers are busy.
    pub busy: Duration,
    /// Processors for both.
    pub cores: Cores,
}

/// Runs all of it; each row is told as soon as it is there.
///
/// # Errors
/// When ours cannot be measured. A peer that cannot is skipped with its reason.
pub async fn run(
    ground: Arc<Ground>,
    plan: Plan,
    tell: impl Fn(&Figure),
) -> anyhow::Result<Vec<Figure>> {
    cores::open_many_files()?;
    let peers = proxies::peers::ALL.iter().enumerate();
    let peers = peers.map(|(index, peer)| (Proxy::Peer(index), peer.name));
    let ours = [(Proxy::Ours, "ours"), (Proxy::OursH2, "ours-h2")];
    let who: Vec<_> = ours.into_iter().chain(peers).collect();
    let (rounds, span, busy) = (plan.rounds, plan.span, plan.busy);
    let resident_mib = plan
        .resident_mib
        .min(available_mib()?.saturating_sub(REST) / 2);
    let fat = Manner {
        resident_mib,
        restart_after: FAT_RESTART,
        ..Manner::default()
    };
    let slow = Manner {
        slowness: 100,
        ..Manner::default()
    };
    let stage = Stage {
        ground,
        cores: plan.cores,
        programs: plan.programs,
        span,
    };
    let harm = async |who: &[(Proxy, &'static str)], harm: Harm, manner: Manner| {
        let turn = |proxy| harm.turn(&stage, proxy, manner, span).boxed();
        turns::take(who, rounds, turn).await
    };
    let parts = match plan.parts.as_slice() {
        [] => Part::value_variants(),
        named => named,
    };
    let mut figures = vec![scene::busy()];
    figures.iter().for_each(&tell);
    for part in parts {
        scene::progress(&format!("{part:?}"));
        let rows = match part {
            Part::Kill => {
                let harmed = Harm::Kill { times: plan.kills };
                let turns = harm(&who, harmed, Manner::default()).await?;
                harmed.rows("a worker killed", &turns)
            }
            Part::Fat => {
                let harmed = Harm::Kill {
                    times: plan.fat_kills,
                };
                let name = format!("one of {resident_mib} MiB killed");
                let turns = harm(&who, harmed, fat).await?;
                let bare = Manner {
                    holds: false,
                    ..fat
                };
                // Nobody but ours is told by the lock.
                let without = harm(&who[..1], harmed, bare).await?;
                let mut rows = harmed.rows(&name, &turns);
                rows.extend(Harm::remarks(&format!("{name}, without a lock"), &without));
                rows
            }
            Part::Stop => {
                let harmed = Harm::Stop { times: plan.stops };
                let turns = harm(&who, harmed, Manner::default()).await?;
                harmed.rows("a worker stopped", &turns)
            }
            Part::Slow => {
                let turns = harm(&who, Harm::Slow, slow).await?;
                Harm::Slow.rows("a worker 100 times as slow", &turns)
            }
            Part::Roll => {
                let turn = |proxy| together::roll(&stage, proxy).boxed();
                together::rolled(&turns::take(&who, rounds, turn).await?)
            }
            Part::All => {
                let turn = |proxy| together::kill(&stage, proxy).boxed();
                together::killed(&turns::take(&who, rounds, turn).await?)
            }
            Part::Queue => {
                let turn = |proxy| queueing::turn(&stage, proxy, busy).boxed();
                queueing::rows(&turns::take(&who, rounds, turn).await?)
            }
        };
        rows.iter().for_each(&tell);
        figures.extend(rows);
    }
    Ok(figures)
}

/// Memory that is to be had.
fn available_mib() -> anyhow::Result<u64> {
    let info = std::fs::read_to_string("/proc/meminfo")?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.unwrap_or(0) / 1_024)
}
