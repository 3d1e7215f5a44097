//! Bytes of jobs that are forgotten, which nobody will ask for.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tether_checkpoints::JobDir;
use tether_proto::job::ListJobsRequest;
use tether_types::PoolName;

use super::Shelf;
use crate::upstream::{Client, Upstream};

/// Looks again and again.
pub(crate) async fn sweep(shelf: Arc<Shelf>, upstream: Arc<Upstream>) {
    let pause = Duration::from_secs(u64::from(shelf.config.sweep_seconds));
    loop {
        // Nodes that share a store are not to look through it in the same moment.
        tokio::time::sleep(pause.mul_f64(1.0 - fastrand::f64() / 4.0)).await;
        if shelf.is_used()
            && let Err(error) = sweep_once(&shelf, &upstream).await
        {
            tracing::warn!(%error, "Cannot look for checkpoints of jobs that are forgotten");
        }
    }
}

async fn sweep_once(shelf: &Shelf, upstream: &Upstream) -> anyhow::Result<()> {
    let objects = shelf.objects().await?;
    // In this order: what a job saves that begins now is not seen here.
    let kept = objects.jobs().await?;
    let all =
        |mut arbiter: Client| async move { arbiter.list_jobs(ListJobsRequest::default()).await };
    let jobs = upstream.ask(all).await?.into_inner().jobs;
    let known = jobs.iter().filter_map(|job| {
        let pool = PoolName::new(&job.pool).ok()?;
        Some(JobDir::new(&pool, &job.key))
    });
    let known: BTreeSet<_> = known.collect();
    for (job, found) in kept.iter().filter(|(job, _)| !known.contains(job)) {
        objects.forget(found).await?;
        tracing::info!(
            ?job,
            many = found.len(),
            "Removed checkpoints of a job that is forgotten"
        );
    }
    Ok(())
}
