//! The suites themselves leave nothing on the machine, whoever they kill.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::path::PathBuf;

use tether_tests::{Cluster, Owner, Setup, cgroups, eventually};

const POOL: &str = r#"
[template.sleeper]
command = "sleep"
args = ["600"]
readiness = { kind = "started" }
limits = { pids = 10 }

[pool.sleeper]
template = "sleeper"
mode = "independent"
size = 2
"#;

/// A cluster whose agent has made every kind of cgroup it makes; and those, unless it may not make any.
async fn with_cgroups() -> (Cluster, Vec<PathBuf>) {
    let cluster = Setup::default().start().await;
    let file = cluster.dir().join("sleeper.toml");
    std::fs::write(&file, POOL).unwrap();
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let made = cgroups(&cluster.runtime());
    (cluster, made)
}

#[tokio::test]
async fn a_cluster_whose_agent_was_killed_leaves_neither_process_nor_cgroup() {
    let (mut cluster, made) = with_cgroups().await;
    let (traces, writable) = (cluster.traces(), made.iter().all(|cgroup| cgroup.exists()));
    assert!(!traces.find().is_empty() && writable);
    cluster.kill().await;

    drop(cluster);

    assert_eq!(traces.find(), []);
    let left: Vec<_> = made.iter().filter(|cgroup| cgroup.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    if rustix::process::geteuid().is_root() {
        assert!(
            !made.is_empty(),
            "an agent of root makes cgroups where there are any"
        );
    }
}

#[tokio::test]
async fn an_agent_that_is_stopped_in_good_order_leaves_only_what_its_living_workers_are_in() {
    let (mut cluster, made) = with_cgroups().await;
    let runtime = cluster.runtime();

    cluster.stop().await;
    let traces = cluster.traces();
    assert_eq!(traces.find().len(), 2);
    assert_eq!(cgroups(&runtime), made);
    drop(cluster);

    eventually("nothing is left", async || {
        let gone = traces.find().is_empty() && made.iter().all(|cgroup| !cgroup.exists());
        gone.then_some(())
    })
    .await;
}
