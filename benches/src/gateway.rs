//! `bench gateway`: what it costs to stand between a client and a worker, for ours and for its peers.
//!
//! A proxy has one processor to itself; clients and the worker share another and are the same for all. Each is
//! started anew for each turn, and turns of all take place one after the other before anybody has a second one. What
//! to trust is the processor time a proxy takes for a call: the rest moves with whatever else the machine does.

mod idle;
mod rows;
mod work;

use std::{sync::Arc, time::Duration};

use clap::ValueEnum as _;
use futures::FutureExt as _;

use crate::{
    calls::upstream::Upstream,
    cores::{self, Cores},
    figure::Figure,
    ground::Ground,
    proxies::{Programs, Proxies},
    scene, turns,
};

use idle::Idle;
use work::Work;

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Small calls, as many as can be.
    Small,
    /// Calls of 16 KiB each way.
    Middle,
    /// Calls of 1 MiB each way.
    Large,
    /// Streams of messages as fast as they come.
    Bulk,
    /// Streams of tokens, at a rate.
    Tokens,
    /// Small calls, at a rate.
    Paced,
    /// Ten thousand open streams.
    Idle,
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
    /// How long a turn is.
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
    keep(vec![scene::busy()]);
    let upstream = Upstream::start().await?;
    let proxies = Proxies::new(ground, plan.cores, upstream.port(), &plan.programs).await?;
    let parts = match plan.parts.as_slice() {
        [] => Part::value_variants(),
        named => named,
    };
    for part in parts {
        keep(match Work::of(*part) {
            Some(work) => {
                let turn = |proxy| work.turn(&proxies, proxy, plan.span).boxed();
                rows::work(
                    &work,
                    &turns::take(&proxies.all(), plan.rounds, turn).await?,
                )
            }
            None => {
                let turn = |proxy| Idle::turn(&proxies, proxy).boxed();
                rows::idle(&turns::take(&proxies.all(), plan.rounds, turn).await?)
            }
        });
    }
    Ok(figures)
}
