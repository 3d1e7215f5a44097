//! Two BEAMs on one machine: with names of their own nobody's business, with one name only the later's.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tether_tests::Cluster;

use crate::{
    figures::Times,
    kin::Kin,
    lab::{Beam, Setting},
    world::{Seen, World},
};

const TIMEOUT: Duration = Duration::from_secs(20);
const WORKERS: u32 = 2;

fn setting(
    world: &World,
    cluster: Option<&Cluster>,
    mode: &'static str,
    name: &str,
) -> anyhow::Result<Setting> {
    Ok(Setting {
        home: world.lab.home()?,
        gateway: cluster.map(Cluster::gateway),
        mode,
        timeout: TIMEOUT,
        owner: name.to_owned(),
        pool: format!("lab-{name}"),
        size: WORKERS,
    })
}

/// One BEAM is killed while the other one's calls are under way.
pub(crate) async fn apart(world: &World, embedded: bool) -> anyhow::Result<Seen> {
    let cluster = match embedded {
        true => None,
        false => Some(Cluster::start().await),
    };
    let mut stays = world
        .lab
        .ready(&setting(world, cluster.as_ref(), "coupled", "stays")?)
        .await?;
    let (pids, kin) = (stays.workers().await?, Kin::of(&stays, WORKERS)?);
    let mut served = 0;
    let wanted = world.repeat(20);
    for number in 1..=wanted {
        let goes = world
            .lab
            .ready(&setting(world, cluster.as_ref(), "coupled", "goes")?)
            .await?;
        let its = Kin::of(&goes, WORKERS)?;
        stays
            .ask(&format!("nap {number} 0.5"), &format!("napping {number} "))
            .await?;
        its.kill(TIMEOUT / 2)?;
        stays.until(&format!("nap {number} over")).await?;
        for _ in 0..10 {
            stays.ask("serve", "serves ").await?;
        }
        served += 11;
        ensure!(
            stays.workers().await? == pids && kin.lives(),
            "a process of the other BEAM has ended"
        );
        world.progress(number, wanted, &format!("{served} calls served"));
    }
    stays.ask("delete", "deleted").await?;
    let expected = "the other BEAM's processes are the same, and no call of it fails";
    Ok(Seen::new(
        expected,
        format!("so, {wanted} times, with {served} calls"),
        true,
    ))
}

/// A second BEAM comes with the name of the first.
pub(crate) async fn fenced(world: &World) -> anyhow::Result<Seen> {
    let cluster = Cluster::start().await;
    let setting = setting(world, Some(&cluster), "independent", "same")?;
    let mut first = world.lab.ready(&setting).await?;
    let mut epoch = lease(&mut first).await?;
    let pids = first.workers().await?;
    let mut times = Times::default();
    let wanted = world.repeat(20);
    for number in 1..=wanted {
        let start = Instant::now();
        let mut later = world.lab.start(&setting)?;
        later.until("event lease_granted").await?;
        let granted = start.elapsed();
        first.until("event lease_lost :fenced").await?;
        first.until("tether_down {:shutdown, :fenced}").await?;
        times.add(start.elapsed().saturating_sub(granted));
        let refused = first.ask("serve", "error ").await?;
        ensure!(
            refused.ends_with("not_sent"),
            "a fenced BEAM's call: {refused}"
        );
        later.until_ready().await?;
        let its = lease(&mut later).await?;
        ensure!(its > epoch, "epoch {its} after {epoch}");
        // The workers are the later's now, and the end of the earlier one is no business of theirs.
        first.kill().await?;
        later.ask("serve", "serves ").await?;
        ensure!(
            later.workers().await? == pids,
            "the workers are other processes"
        );
        (first, epoch) = (later, its);
        world.progress(number, wanted, &times.to_string());
    }
    first.ask("delete", "deleted").await?;
    let expected = "the earlier is told, exits `{:shutdown, :fenced}` and may do nothing; the workers go on for the later";
    Ok(Seen::new(
        expected,
        format!("so; told after the later's grant: {times}"),
        true,
    ))
}

async fn lease(beam: &mut Beam) -> anyhow::Result<u64> {
    let line = beam.ask("lease", "lease held ").await?;
    let epoch = line.split(' ').nth(2).and_then(|epoch| epoch.parse().ok());
    epoch.context("no epoch")
}
