//! Workers that crash: when their BEAM is told, and when another one serves in their place.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tether_tests::{Cluster, DEADLINE, kill};

use crate::{
    figures::Times,
    lab::{Beam, Setting},
    world::{Seen, World},
};

const LEASE: Duration = Duration::from_secs(20);
const WORKERS: u32 = 2;

/// A death is told as an event, which no interval has part in.
const TOLD: Duration = Duration::from_millis(250);

/// Another worker's Python has to start.
const REPLACED: Duration = Duration::from_secs(10);

/// One of two workers is killed: the BEAM is told, and has two again.
pub(crate) async fn worker(world: &World, mode: &'static str) -> anyhow::Result<Seen> {
    let cluster = match mode {
        "coupled" => None,
        _ => Some(Cluster::start().await),
    };
    let (mut told, mut served) = (Times::default(), Times::default());
    let mut reasons = BTreeSet::new();
    let wanted = world.repeat(20);
    for number in 0..wanted {
        let setting = Setting {
            home: world.lab.home()?,
            gateway: cluster.as_ref().map(Cluster::gateway),
            mode,
            timeout: LEASE,
            owner: format!("beam-{number}"),
            pool: format!("lab-{number}"),
            size: WORKERS,
        };
        let mut beam = world.lab.ready(&setting).await?;
        let before = who(&mut beam, |_| true).await?;
        let victim = beam.workers().await?;
        let victim = *victim.first().context("it has no worker")?;
        let start = Instant::now();
        kill(victim, Signal::KILL);
        let event = beam.until("event worker_down ").await?;
        told.add(start.elapsed());
        reasons.insert(event["event worker_down ".len()..].to_owned());
        who(&mut beam, |who| !before.contains(who)).await?;
        served.add(start.elapsed());
        beam.ask("delete", "deleted").await?;
        world.progress(told.count(), wanted, &told.to_string());
    }
    let signaled = reasons.iter().all(|reason| reason.contains("sigkill"));
    let in_time = world.leeway(TOLD);
    let expected =
        format!("told of the signal within {in_time:?}, another serves within {REPLACED:?}");
    let reasons: Vec<_> = reasons.into_iter().collect();
    let seen = format!(
        "told of {} after {told}; another served after {served}",
        reasons.join(" and ")
    );
    Ok(Seen::new(
        expected,
        seen,
        signaled && told.most() <= in_time && served.most() <= REPLACED,
    ))
}

/// Calls until as many workers as there are have answered, one of them such a one.
async fn who(beam: &mut Beam, is: impl Fn(&String) -> bool) -> anyhow::Result<BTreeSet<String>> {
    let start = Instant::now();
    let mut all = BTreeSet::new();
    loop {
        beam.say("serve").await?;
        let line = beam.until("se").await?;
        all.extend(line.strip_prefix("serves ").map(str::to_owned));
        if all.len() >= WORKERS as usize && all.iter().any(&is) {
            return Ok(all);
        }
        ensure!(start.elapsed() < DEADLINE, "only these answer: {all:?}");
    }
}
