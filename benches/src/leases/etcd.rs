//! etcd with one lease for each agent.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use etcd_client::Client;
use tokio::{sync::watch, task::JoinSet, time::sleep};

use super::{BEAT, TTL, steady::Cost};
use crate::{cpu_time_of_threads, etcd::Etcd, ground::Ground, resident_bytes};

/// Leases granted at a time: each is a write with an fsync.
const AT_ONCE: usize = 64;

/// Before it all is quiet.
const SETTLE: Duration = Duration::from_secs(12);

/// What etcd took.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) cost: Cost,
    /// How long after the last one was due the last lease was gone.
    pub(super) expiry_seconds: f64,
}

/// Measures etcd with so many leases, each on a connection of its own.
pub(super) async fn measure(
    ground: &Ground,
    program: &Path,
    agents: usize,
    span: Duration,
) -> anyhow::Result<Measured> {
    let etcd = Etcd::start(ground, program).await?;
    let beats = Arc::new(AtomicU64::new(0));
    let (hush, hushed) = watch::channel(false);
    let permits = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut holders = JoinSet::new();
    let granted = Arc::new(AtomicU64::new(0));
    for _ in 0..agents {
        let (url, beats, granted) = (
            etcd.url().to_owned(),
            Arc::clone(&beats),
            Arc::clone(&granted),
        );
        let (mut hushed, permits) = (hushed.clone(), Arc::clone(&permits));
        holders.spawn(async move {
            let permit = permits.acquire_owned().await?;
            let mut client = Client::connect([url], None).await?;
            let ttl = i64::try_from(TTL.as_secs())?;
            let lease = client.lease_grant(ttl, None).await?.id();
            let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
            drop(permit);
            granted.fetch_add(1, Ordering::Relaxed);
            loop {
                keeper.keep_alive().await?;
                let answer = answers.message().await?.context("the stream was closed")?;
                anyhow::ensure!(answer.ttl() > 0, "a lease ran out");
                beats.fetch_add(1, Ordering::Relaxed);
                tokio::select! {
                    () = sleep(BEAT) => {}
                    _ = hushed.wait_for(|hushed| *hushed) => return anyhow::Ok(()),
                }
            }
        });
    }
    let all = u64::try_from(agents)?;
    while granted.load(Ordering::Relaxed) < all {
        if let Some(ended) = holders.try_join_next() {
            ended??;
        }
        sleep(Duration::from_millis(100)).await;
    }
    sleep(SETTLE).await;
    let pid = etcd.pid();
    let before = (
        cpu_time_of_threads(pid)?,
        beats.load(Ordering::Relaxed),
        Instant::now(),
    );
    sleep(span).await;
    let cost = Cost {
        cpu: cpu_time_of_threads(pid)?.saturating_sub(before.0),
        span: before.2.elapsed(),
        beats: beats.load(Ordering::Relaxed) - before.1,
        resident: resident_bytes(pid)?,
        up_bytes: 0.0,
        down_bytes: 0.0,
    };
    if let Some(ended) = holders.try_join_next() {
        ended??;
    }
    hush.send_replace(true);
    let due = Instant::now() + TTL;
    let mut client = Client::connect([etcd.url()], None).await?;
    while !client.leases().await?.leases().is_empty() {
        sleep(Duration::from_millis(200)).await;
    }
    let expiry_seconds = Instant::now().saturating_duration_since(due).as_secs_f64();
    Ok(Measured {
        cost,
        expiry_seconds,
    })
}
