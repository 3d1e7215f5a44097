//! The same with all that stands above an agent: pools come and go in a `tether up`, and it does not grow.

use std::{fs, time::Instant};

use anyhow::{Context as _, ensure};
use tether_client::Problem;
use tether_proto::{
    common::WorkerPhase,
    pool::{
        ApplyPoolRequest, DeletePoolRequest, PoolSpec, Readiness, ReadinessKind, Stop, Template,
    },
    worker::ListWorkersRequest,
};
use tether_tests::{Cluster, DEADLINE, Owner, cgroups, eventually_within};

use crate::rows::{Rows, say};

/// Workers in each of the pools that come and go.
const SIZE: u32 = 50;

/// Memory that all services together may have more at the end than after a quarter of the lives. The arbiter
/// keeps its last 2,000 events, and the store what it takes to keep them.
const GROWTH_KIB: u64 = 24 * 1_024;

/// Lets so many workers live in pools that come and go.
pub(crate) async fn soak(count: u32, rows: &mut Rows) {
    let expected =
        format!("nothing is left, and at most {GROWTH_KIB} KiB more than after a quarter");
    let seen = pools(count).await.map_err(|error| format!("{error:#}"));
    rows.add("pools that come and go in `tether up`", &expected, seen);
}

async fn pools(count: u32) -> anyhow::Result<String> {
    let cluster = Cluster::start().await;
    let mut owner = Owner::start(&cluster, "soak", &[]);
    let epoch = owner.until("session").await["epoch"]
        .as_u64()
        .context("a session has an epoch")?;
    let rounds = count.div_ceil(SIZE).max(4);
    let start = Instant::now();
    let mut early = None;
    for round in 0..rounds {
        one_pool(&cluster, epoch, round).await?;
        if round == rounds / 4 {
            early = Some(held(&cluster));
        }
    }
    let took = start.elapsed().as_secs_f64();
    let early = early.context("there were no rounds")?;
    let settled = eventually_within(DEADLINE, async || {
        let leaves = cgroups(&cluster.runtime())
            .iter()
            .flat_map(|cgroup| fs::read_dir(cgroup).into_iter().flatten().flatten())
            .filter(|entry| entry.path().is_dir())
            .count();
        let fds = held(&cluster).1 <= early.1;
        (leaves == 0 && fds && cluster.traces().find().is_empty()).then_some(())
    });
    let settled = settled.await;
    let late = held(&cluster);
    let seen = format!(
        "{} workers in {took:.1} s; KiB and descriptors of `tether up` were {early:?}, then {late:?}",
        rounds * SIZE
    );
    say(&seen);
    ensure!(
        settled.is_some(),
        "processes, cgroups or descriptors are left: {seen}"
    );
    ensure!(late.0 <= early.0 + GROWTH_KIB, "{seen}");
    Ok(seen)
}

/// A pool of workers that are ready, and gone again.
async fn one_pool(cluster: &Cluster, epoch: u64, round: u32) -> anyhow::Result<()> {
    let client = cluster.client();
    let name = format!("soak-{round}");
    let template = Template {
        command: "/bin/sleep".to_owned(),
        args: vec!["600".to_owned()],
        readiness: Some(Readiness {
            kind: ReadinessKind::Started.into(),
            ..Readiness::default()
        }),
        stop: Some(Stop {
            grace_ms: Some(0),
            signal: 0,
        }),
        ..Template::default()
    };
    let request = ApplyPoolRequest {
        pool: Some(PoolSpec {
            name: name.clone(),
            mode: "independent".to_owned(),
            template: Some(template),
            size: SIZE,
            ..PoolSpec::default()
        }),
        owner: "soak".to_owned(),
        epoch,
    };
    client
        .pools()
        .apply_pool(request)
        .await
        .map_err(Problem::from)?;
    let size = usize::try_from(SIZE)?;
    let ready = eventually_within(DEADLINE, async || {
        let request = ListWorkersRequest { pool: name.clone() };
        let workers = client
            .workers()
            .list_workers(request)
            .await
            .ok()?
            .into_inner()
            .workers;
        let ready = workers
            .iter()
            .filter(|worker| worker.phase() == WorkerPhase::Ready);
        (ready.count() == size).then_some(())
    });
    ready.await.context("the workers do not become ready")?;
    let request = DeletePoolRequest {
        name,
        ..DeletePoolRequest::default()
    };
    client
        .pools()
        .delete_pool(request)
        .await
        .map_err(Problem::from)?;
    let traces = cluster.traces();
    let gone = async || traces.find().is_empty().then_some(());
    eventually_within(DEADLINE, gone)
        .await
        .context("the workers of a deleted pool live on")?;
    Ok(())
}

/// Resident memory in KiB, and open descriptors.
fn held(cluster: &Cluster) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let fds = fs::read_dir(format!("/proc/{}/fd", cluster.pid())).map_or(0, Iterator::count);
    (kib.unwrap_or(0), fds)
}
