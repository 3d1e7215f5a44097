//! A developer who restarts again and again: each BEAM is killed as soon as it is ready, and the next one is started at once.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use tether_tests::{Cluster, DEADLINE, cgroups, eventually_within};

use crate::{
    figures::Times,
    jobs,
    kin::Kin,
    lab::{Beam, Setting},
    world::{Seen, World},
};

/// No lease has part in it.
const LEASE: Duration = Duration::from_secs(20);
const WORKERS: u32 = 2;

/// Fewer would show no growth.
const RESTARTS: usize = 20;

/// The dead of which an agent keeps a directory.
const HISTORY: usize = 32;

/// What a file of state may have grown by, whose pages are taken in blocks.
const BLOCK: u64 = 1 << 20;

/// Starts and kills in a row, in one directory and with one name.
pub(crate) async fn restarted(world: &World, embedded: bool) -> anyhow::Result<Seen> {
    let cluster = match embedded {
        true => None,
        false => Some(Cluster::start().await),
    };
    let setting = Setting {
        home: world.lab.home()?,
        gateway: cluster.as_ref().map(Cluster::gateway),
        mode: "coupled",
        timeout: LEASE,
        owner: "developer".to_owned(),
        pool: "lab".to_owned(),
        size: WORKERS,
    };
    let mut times = Times::default();
    let mut first = None;
    for number in 1..=RESTARTS {
        let mut beam = world.lab.ready(&setting).await?;
        if embedded {
            save(&mut beam).await?;
        }
        let groups = beam.runtime().map_or_else(Vec::new, |own| cgroups(&own));
        times.add(Kin::of(&beam, WORKERS)?.kill(LEASE / 2)?.all);
        let left = groups.iter().find(|group| group.exists());
        ensure!(left.is_none(), "a cgroup is left: {left:?}");
        let files = files(&setting.home)?;
        let state = match &cluster {
            Some(cluster) => forgotten(cluster).await?,
            None => 0,
        };
        let (before, size) = first.get_or_insert_with(|| (files.clone(), state));
        ensure!(
            files == *before && state <= *size + BLOCK,
            "after the first {before:?} and {size} bytes of state, after {number} {files:?} and {state}"
        );
        world.progress(number, RESTARTS, &times.to_string());
    }
    Ok(Seen::new(
        format!(
            "after each of {RESTARTS} no process or cgroup, and no file or record more than after the first"
        ),
        format!("so; gone after the kill: {times}"),
        true,
    ))
}

/// Has it do a job that saves, and sees that lie where all that is its own is looked for.
async fn save(beam: &mut Beam) -> anyhow::Result<()> {
    let spec = r#"{"until":"/nowhere","seconds":0.01,"save_every":1}"#;
    jobs::start(beam, "saves", spec).await?;
    jobs::until(beam, "saves", "it saves", |job| job.has_saved()).await?;
    let files = files(&beam.dir)?;
    let lies = files.iter().any(|file| file.contains("/checkpoints/"));
    ensure!(lies, "its checkpoint is elsewhere: {files:?}");
    Ok(())
}

/// Waits until a cluster has nothing of a developer who is gone but its bounded history, and tells how large its state is.
async fn forgotten(cluster: &Cluster) -> anyhow::Result<u64> {
    let left = async || {
        let pools = cluster.tether().json(&["pool", "ls"]).await;
        let workers = cluster.tether().json(&["ps"]).await;
        (pools, workers)
    };
    let none = eventually_within(DEADLINE, async || {
        let (pools, workers) = left().await;
        let none = |all: &serde_json::Value| all.as_array().is_some_and(Vec::is_empty);
        (none(&pools) && none(&workers)).then_some(())
    });
    if none.await.is_none() {
        anyhow::bail!("left: {:?}", left().await);
    }
    let dead = fs::read_dir(cluster.runtime().join("workers"))?.count();
    ensure!(dead <= HISTORY, "directories of {dead} workers");
    let state = cluster.dir().join("state.redb");
    let state = fs::metadata(state).context("it keeps no state")?;
    Ok(state.len())
}

/// All files below a directory.
fn files(below: &Path) -> io::Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(below)? {
        let path = entry?.path();
        all.push(path.display().to_string());
        if path.is_dir() {
            all.extend(files(&path)?);
        }
    }
    all.sort();
    Ok(all)
}
