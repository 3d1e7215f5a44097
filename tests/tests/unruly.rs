//! Workers that do not behave are still wholly gone, or still run, as their policy says.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::time::Duration;

use rustix::process::Signal;
use tether_tests::{
    Cluster, Owner, Process, Setup, digits::PredictRequest, digits_client, eventually, held_out,
    kill,
};

/// How long an independent worker may go on without its owner here.
const TIMEOUT: Duration = Duration::from_secs(6);
const INTERVAL: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_millis(500);

/// A coupled worker was killed because its owner's end was seen: no lease here is shorter than 10 s,
/// and their grace is part of it.
const SEEN: Duration = Duration::from_secs(5);

/// Starts one coupled worker with these flags, kills its owner, and sees everything gone.
async fn coupled_is_gone(script: &str, processes: usize) {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 1, script, "", "");
    let mut owner = Owner::with_pool(&cluster, "beam", &file).await;
    let traces = cluster.traces();
    eventually("the worker has forked what it forks", async || {
        (traces.find().len() >= processes).then_some(())
    })
    .await;

    owner.kill().await;

    let gone = cluster.no_orphans().await;
    assert!(gone < SEEN, "{gone:?}");
    cluster_forgets(&cluster).await;
}

/// Starts one independent worker with these flags: it outlives its owner for the timeout, with all it
/// forked, and no longer.
async fn independent_stays_then_goes(script: &str, processes: usize) {
    // Longer than the timeout: what ends the worker is the loss of its owner.
    let cluster = Setup::default()
        .set("lease.node_ttl", "12s")
        .set("lease.node_beat", "500ms")
        .start()
        .await;
    let policy = format!(
        "[pool.digits.policy]\nheartbeat_interval = \"{}ms\"\nheartbeat_timeout = \"{}s\"",
        INTERVAL.as_millis(),
        TIMEOUT.as_secs()
    );
    let stop = format!(
        "[template.digits.stop]\ngrace = \"{}ms\"",
        GRACE.as_millis()
    );
    let file = cluster.pool_file("digits", "independent", 1, script, &stop, &policy);
    let mut owner = Owner::with_pool(&cluster, "beam", &file).await;
    let traces = cluster.traces();
    let (before, _) = eventually("the worker has forked what it forks", async || {
        let found = traces.find();
        (found.len() >= processes).then_some(found)
    })
    .await;
    let killed = tokio::time::Instant::now();

    owner.kill().await;

    // Watched to the end: while anything lives, all of it lives, and a new owner could be served.
    let first_death = eventually("the first process is gone", async || {
        let alive = traces.find();
        (!contains_all(&alive, &before)).then_some(killed.elapsed())
    })
    .await
    .0;
    // Counted from the last beat, which may have been late, to where the grace begins.
    assert!(
        first_death > TIMEOUT - INTERVAL - GRACE - Duration::from_millis(500),
        "ended after {first_death:?}, the policy gives {TIMEOUT:?}"
    );
    cluster.no_orphans().await;
    let gone = killed.elapsed();
    assert!(gone < TIMEOUT + Duration::from_secs(2), "{gone:?}");
}

fn contains_all(alive: &[Process], before: &[Process]) -> bool {
    before
        .iter()
        .all(|process| alive.iter().any(|other| other.pid == process.pid))
}

/// Nothing is kept of what no longer exists.
async fn cluster_forgets(cluster: &Cluster) {
    eventually("the pool is forgotten", async || {
        let answer = cluster
            .client()
            .pools()
            .list_pools(tether_proto::pool::ListPoolsRequest {})
            .await;
        answer
            .ok()
            .filter(|answer| answer.get_ref().pools.is_empty())
            .map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_coupled_worker_that_double_forks_and_calls_setsid_is_wholly_gone() {
    coupled_is_gone("unruly.py --daemonize-child", 2).await;
}

#[tokio::test]
async fn a_coupled_worker_that_forks_children_is_wholly_gone() {
    coupled_is_gone("unruly.py --fork-children 5", 6).await;
}

#[tokio::test]
async fn a_coupled_worker_that_ignores_sigterm_is_wholly_gone() {
    coupled_is_gone("unruly.py --ignore-sigterm", 1).await;
}

#[tokio::test]
async fn a_coupled_worker_that_fills_its_pipes_is_wholly_gone() {
    coupled_is_gone("unruly.py --flood-stdout", 1).await;
}

#[tokio::test]
async fn an_independent_worker_that_double_forks_stays_for_its_timeout_and_no_longer() {
    independent_stays_then_goes("unruly.py --daemonize-child", 2).await;
}

#[tokio::test]
async fn an_independent_worker_that_ignores_sigterm_stays_for_its_timeout_and_no_longer() {
    independent_stays_then_goes("unruly.py --ignore-sigterm --fork-children 1", 2).await;
}

#[tokio::test]
async fn an_independent_worker_that_fills_its_pipes_stays_for_its_timeout_and_no_longer() {
    independent_stays_then_goes("unruly.py --flood-stdout", 1).await;
}

#[tokio::test]
async fn a_worker_that_fills_its_pipes_serves_and_its_logs_stay_bounded() {
    let cluster = Cluster::start().await;
    let limit = "log_limit = \"1MiB\"";
    let file = cluster.pool_file(
        "digits",
        "coupled",
        1,
        "unruly.py --flood-stdout",
        limit,
        "",
    );
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;

    let digit = held_out(1).remove(0);
    let mut client = digits_client(cluster.client().channel(), "digits");
    client
        .predict(PredictRequest {
            pixels: digit.pixels,
        })
        .await
        .expect("it serves");

    let dir = std::fs::read_dir(cluster.runtime().join("workers"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let size = |name: &str| std::fs::metadata(dir.join(name)).map_or(0, |metadata| metadata.len());
    for stream in ["stdout.log", "stderr.log"] {
        let kept = size(stream) + size(&format!("{stream}.1"));
        assert!(kept <= 3 << 20, "{stream}: {kept} bytes are kept");
    }
    assert!(
        size("stdout.log") + size("stdout.log.1") > 0,
        "nothing was kept at all"
    );
}

#[tokio::test]
async fn a_stopped_worker_is_killed_all_the_same() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 2, "worker.py", "", "");
    let mut owner = Owner::with_pool(&cluster, "beam", &file).await;
    for worker in cluster.workers("digits").await {
        kill(worker.pid, Signal::STOP);
    }

    owner.kill().await;

    let gone = cluster.no_orphans().await;
    assert!(gone < SEEN, "{gone:?}");
}
