//! What a killed shim leaves behind is found and ended, by this agent or by the next.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use rustix::process::Signal;
use tether_proto::common::WorkerPhase;
use tether_tests::{Cluster, Owner, Process, eventually, kill, signal_all};

/// A worker that daemonises a child which listens to nobody's SIGTERM.
const DAEMON: &str = "unruly.py --daemonize-child";

const POLICY: &str =
    "[pool.digits.policy]\nheartbeat_interval = \"500ms\"\nheartbeat_timeout = \"60s\"";

/// The shim is the parent of a worker's main process.
fn shim_of(worker: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap();
    parent.trim().parse().unwrap()
}

async fn with_daemon(cgroups: bool) -> (Cluster, Owner, u32, Vec<Process>) {
    let setup = tether_tests::Setup::default()
        .set("agent.no_cgroups", if cgroups { "false" } else { "true" });
    let cluster = setup.start().await;
    let file = cluster.pool_file("digits", "independent", 1, DAEMON, "", POLICY);
    let owner = Owner::with_pool(&cluster, "beam", &file).await;
    let worker = cluster.workers("digits").await[0].pid;
    let traces = cluster.traces();
    let (before, _) = eventually("the child is a daemon", async || {
        let found = traces.find();
        (found.len() >= 2).then_some(found)
    })
    .await;
    (cluster, owner, worker, before)
}

/// Another incarnation is ready, and nothing of the one before is left.
async fn replaced(cluster: &Cluster, before: &[Process]) {
    eventually("another incarnation is ready", async || {
        let workers = cluster.workers("digits").await;
        let ready = workers.first()?.phase() == WorkerPhase::Ready;
        (ready && before.iter().all(|process| process.pid != workers[0].pid)).then_some(())
    })
    .await;
    let alive = cluster.traces().find();
    let left: Vec<_> = before
        .iter()
        .filter(|process| alive.iter().any(|other| other.pid == process.pid))
        .collect();
    assert!(
        left.is_empty(),
        "{left:?} lived beside the next incarnation"
    );
}

#[tokio::test]
async fn a_daemon_is_ended_before_the_place_of_its_killed_shim_is_filled_again() {
    for cgroups in [true, false] {
        let (cluster, _owner, worker, before) = with_daemon(cgroups).await;

        kill(shim_of(worker), Signal::KILL);

        replaced(&cluster, &before).await;
    }
}

#[tokio::test]
async fn the_same_holds_for_a_worker_that_was_taken_over_from_an_earlier_agent() {
    for cgroups in [true, false] {
        let (mut cluster, _owner, worker, before) = with_daemon(cgroups).await;
        cluster.kill().await;
        cluster.up().await;
        eventually("the worker is taken over", async || {
            let workers = cluster.workers("digits").await;
            (workers.first()?.pid == worker && workers[0].phase() == WorkerPhase::Ready)
                .then_some(())
        })
        .await;

        kill(shim_of(worker), Signal::KILL);

        replaced(&cluster, &before).await;
    }
}

#[tokio::test]
async fn a_daemon_of_a_shim_that_died_with_its_agent_is_ended_by_the_next_agent() {
    for cgroups in [true, false] {
        let (mut cluster, _owner, worker, before) = with_daemon(cgroups).await;

        signal_all(&[cluster.pid(), shim_of(worker)], Signal::KILL);
        cluster.gone().await;
        cluster.up().await;

        replaced(&cluster, &before).await;
    }
}

#[tokio::test]
async fn a_worker_whose_shim_hears_nothing_is_ended_with_it_once_it_was_told_to_end() {
    let cluster = tether_tests::Setup::default().start().await;
    let file = cluster.pool_file("digits", "independent", 1, "worker.py", "", POLICY);
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let worker = cluster.workers("digits").await[0].pid;
    let lease = "its lease, which would end it as well, is much longer";

    kill(shim_of(worker), Signal::STOP);
    let told = std::time::Instant::now();
    let ran = cluster
        .tether()
        .run(&["stop", "--grace", "1s", "digits/0"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let (event, _) = eventually("its death is told", async || {
        let mut events = cluster.tether().json_lines(&["events"]).await.into_iter();
        events.find(|event| event.to_string().contains("did not hear of that"))
    })
    .await;

    assert!(
        told.elapsed() < std::time::Duration::from_secs(15),
        "{lease}"
    );
    let text = event.to_string();
    assert!(text.contains("ORDERED_BY_OPERATOR"), "{text}");
}
