//! What each lifecycle mode promises, with real processes and real kills.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::time::Duration;

use rustix::process::Signal;
use tether_proto::common::WorkerPhase;
use tether_tests::{Cluster, Owner, Setup, eventually, eventually_within, kill, signal_all};

/// A coupled worker was killed because its owner's end was seen: no lease here is shorter than 10 s,
/// and their grace is part of it.
const SEEN: Duration = Duration::from_secs(5);

/// What the agent and the shim need to act, on a machine that is busy with other things.
const SLACK: Duration = Duration::from_secs(2);

/// The terms of a lease whose end is to be measured.
const TTL: Duration = Duration::from_secs(6);
const BEAT: Duration = Duration::from_millis(500);
const GRACE: Duration = Duration::from_millis(500);

/// Those of the template.
const STOP: &str = "[template.digits.stop]\ngrace = \"500ms\"";

/// Sees that what ended lived for the lease and no longer. A lease counts from the last beat, a
/// worker may leave when its grace begins, and the beat before the last may have been late.
fn ended_with_the_lease(gone: Duration) {
    let earliest = TTL - BEAT - GRACE - Duration::from_millis(500);
    assert!(gone > earliest && gone < TTL + SLACK, "{gone:?}");
}

/// What is cut off ends with its lease: the time after it is measured in `partition.rs`.
const INDEPENDENT: &str = "[pool.digits.policy]\nheartbeat_interval = \"200ms\"\nheartbeat_timeout = \"20s\"\npartition_grace = \"0s\"";

async fn pids(cluster: &Cluster) -> Vec<u32> {
    let mut pids: Vec<_> = cluster
        .workers("digits")
        .await
        .iter()
        .map(|worker| worker.pid)
        .collect();
    pids.sort_unstable();
    pids
}

#[tokio::test]
async fn a_coupled_pool_dies_with_its_owner_and_the_events_say_so() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 2, "worker.py", "", "");
    let mut owner = Owner::with_pool(&cluster, "beam", &file).await;

    owner.kill().await;

    let gone = cluster.no_orphans().await;
    assert!(gone < SEEN, "{gone:?}");
    let (deaths, _) = eventually("both deaths are recorded", async || {
        let events = cluster.tether().json_lines(&["events"]).await;
        let deaths: Vec<_> = events
            .into_iter()
            .filter(|event| event["kind"] == "WORKER_DIED")
            .collect();
        (deaths.len() == 2).then_some(deaths)
    })
    .await;
    assert!(
        deaths
            .iter()
            .all(|event| event["death"]["cause"] == "OWNER_GONE"),
        "{deaths:?}"
    );
}

#[tokio::test]
async fn a_coupled_pool_dies_when_owner_and_agent_are_killed_at_once() {
    let mut cluster = Cluster::start().await;
    let file = cluster.pool_file(
        "digits",
        "coupled",
        3,
        "unruly.py --daemonize-child",
        "",
        "",
    );
    let owner = Owner::with_pool(&cluster, "beam", &file).await;

    signal_all(&[owner.pid(), cluster.pid()], Signal::KILL);

    let gone = cluster.no_orphans().await;
    assert!(gone < SEEN, "{gone:?}");
    cluster.gone().await;
}

#[tokio::test]
async fn a_coupled_pool_dies_when_only_the_agent_is_killed() {
    let mut cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 2, "worker.py", "", "");
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;

    cluster.kill().await;

    let gone = cluster.no_orphans().await;
    assert!(gone < SEEN, "{gone:?}");
}

#[tokio::test]
async fn a_hung_owner_of_a_coupled_pool_counts_as_dead_at_its_timeout() {
    let cluster = Cluster::start().await;
    let policy = "[pool.digits.policy]\nheartbeat_interval = \"500ms\"\nheartbeat_timeout = \"6s\"";
    let file = cluster.pool_file("digits", "coupled", 1, "worker.py", STOP, policy);
    let owner = Owner::with_pool(&cluster, "beam", &file).await;

    kill(owner.pid(), Signal::STOP);

    let gone = cluster.no_orphans().await;
    ended_with_the_lease(gone);
}

#[tokio::test]
async fn a_living_owner_keeps_its_workers_beyond_any_timeout() {
    for mode in ["coupled", "independent"] {
        let cluster = Cluster::start().await;
        // Far shorter than what the session asks for when it opens: a pool that is applied later must
        // be heard of by the owner in time.
        let policy =
            "[pool.digits.policy]\nheartbeat_interval = \"300ms\"\nheartbeat_timeout = \"3s\"";
        let file = cluster.pool_file("digits", mode, 1, "worker.py", "", policy);
        let _owner = Owner::with_pool(&cluster, "beam", &file).await;

        let died = eventually_within(Duration::from_secs(7), async || {
            let events = cluster.tether().json_lines(&["events"]).await;
            events
                .into_iter()
                .find(|event| event["kind"] == "WORKER_ENDING" || event["kind"] == "WORKER_DIED")
        })
        .await;

        assert!(died.is_none(), "{mode}: {died:?}");
    }
}

#[tokio::test]
async fn a_goodbye_ends_a_coupled_pool_in_good_order() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 2, "worker.py", "", "");
    let mut owner = Owner::with_pool(&cluster, "beam", &file).await;

    kill(owner.pid(), Signal::TERM);

    assert_eq!(owner.gone().await, Some(0));
    cluster.no_orphans().await;
    let (deaths, _) = eventually("both deaths are recorded", async || {
        let events = cluster.tether().json_lines(&["events"]).await;
        let deaths: Vec<_> = events
            .into_iter()
            .filter(|event| event["kind"] == "WORKER_DIED")
            .collect();
        (deaths.len() == 2).then_some(deaths)
    })
    .await;
    // SIGTERM came first: Python had the time to leave by itself.
    for death in deaths {
        assert_eq!(death["death"]["cause"], "ORDERED_BY_OWNER");
        assert_eq!(death["death"]["exit_code"], 0);
    }
}

#[tokio::test]
async fn an_independent_worker_is_taken_over_by_the_next_session_of_its_owner() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "independent", 2, "worker.py", "", INDEPENDENT);
    let mut first = Owner::with_pool(&cluster, "beam", &file).await;
    let before = pids(&cluster).await;

    first.kill().await;
    let mut second = Owner::start(&cluster, "beam", &[]);
    let session = second.until("session").await;

    assert_eq!(session["pools"], serde_json::json!(["digits"]));
    assert_eq!(pids(&cluster).await, before);
}

#[tokio::test]
async fn a_later_session_of_the_same_owner_fences_the_earlier_and_tells_it() {
    let cluster = Cluster::start().await;
    let mut first = Owner::start(&cluster, "beam", &[]);
    let epoch = first.until("session").await["epoch"].as_u64().unwrap();

    let mut second = Owner::start(&cluster, "beam", &[]);

    assert!(second.until("session").await["epoch"].as_u64().unwrap() > epoch);
    let lost = first.until("lost").await;
    assert!(
        lost["why"].as_str().unwrap().contains("took over"),
        "{lost}"
    );
}

#[tokio::test]
async fn independent_workers_survive_the_death_of_everything_else_and_are_adopted() {
    let mut cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "independent", 2, "worker.py", "", INDEPENDENT);
    let mut owner = Owner::with_pool(&cluster, "beam", &file).await;
    let before = pids(&cluster).await;

    cluster.kill().await;
    cluster.up().await;

    eventually("the same workers are ready again", async || {
        let workers = cluster.workers("digits").await;
        let ready = workers
            .iter()
            .filter(|worker| worker.phase() == WorkerPhase::Ready)
            .count();
        (ready == 2).then_some(())
    })
    .await;
    assert_eq!(pids(&cluster).await, before);
    let events = cluster.tether().json_lines(&["events"]).await;
    assert_eq!(
        events
            .iter()
            .filter(|event| event["kind"] == "WORKER_ADOPTED")
            .count(),
        2,
        "{events:?}"
    );
    assert!(
        events.iter().all(|event| event["kind"] != "WORKER_DIED"),
        "{events:?}"
    );
    // The session outlived it too: its owner is still the owner.
    kill(owner.pid(), Signal::TERM);
    assert_eq!(owner.gone().await, Some(0));
}

#[tokio::test]
async fn independent_workers_end_with_their_nodes_lease_when_no_agent_comes_back() {
    let mut cluster = Setup::default()
        .set("lease.node_ttl", "6s")
        .set("lease.node_beat", "500ms")
        .start()
        .await;
    let file = cluster.pool_file(
        "digits",
        "independent",
        2,
        "unruly.py --ignore-sigterm --daemonize-child",
        STOP,
        INDEPENDENT,
    );
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;

    cluster.kill().await;

    let gone = cluster.no_orphans().await;
    ended_with_the_lease(gone);
}

#[tokio::test]
async fn a_frozen_tether_up_cannot_keep_workers_beyond_the_lease() {
    let cluster = Setup::default()
        .set("lease.node_ttl", "6s")
        .set("lease.node_beat", "500ms")
        .start()
        .await;
    let file = cluster.pool_file("digits", "independent", 2, "worker.py", STOP, INDEPENDENT);
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;

    kill(cluster.pid(), Signal::STOP);

    let gone = cluster.no_orphans().await;
    ended_with_the_lease(gone);
    kill(cluster.pid(), Signal::CONT);
}

#[tokio::test]
async fn a_dead_worker_is_replaced_and_its_death_is_on_record() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 2, "worker.py", "", "");
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let victim = cluster.workers("digits").await.remove(0);

    kill(victim.pid, Signal::SEGV);

    eventually("another incarnation is ready", async || {
        let workers = cluster.workers("digits").await;
        let back = workers
            .iter()
            .find(|worker| worker.pid != victim.pid && worker.restarts == 1)?;
        (back.phase() == WorkerPhase::Ready).then_some(())
    })
    .await;
    let workers = cluster.tether().json(&["ps", "digits"]).await;
    let replaced = workers
        .as_array()
        .unwrap()
        .iter()
        .find(|worker| worker["restarts"] == 1)
        .unwrap();
    assert_eq!(replaced["last_death"]["cause"], "SIGNALED");
    assert_eq!(replaced["last_death"]["signal"], 11);
}

#[tokio::test]
async fn an_orderly_stop_ends_coupled_workers_and_leaves_independent_ones_to_the_next() {
    let mut cluster = Cluster::start().await;
    let coupled = cluster.pool_file("short", "coupled", 1, "worker.py", "", "");
    let kept = cluster.pool_file("digits", "independent", 1, "worker.py", "", INDEPENDENT);
    let _short = Owner::with_pool(&cluster, "beam-1", &coupled).await;
    let _long = Owner::with_pool(&cluster, "beam-2", &kept).await;
    let before = pids(&cluster).await;

    assert_eq!(cluster.stop().await, Some(0));
    let left: Vec<_> = cluster
        .traces()
        .find()
        .iter()
        .map(|process| process.pid)
        .collect();
    assert_eq!(left, before);

    cluster.up().await;
    eventually("it is adopted", async || {
        let workers = cluster.workers("digits").await;
        (workers.len() == 1 && workers[0].phase() == WorkerPhase::Ready).then_some(())
    })
    .await;
    assert_eq!(pids(&cluster).await, before);
}
