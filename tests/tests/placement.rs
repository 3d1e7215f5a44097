//! Where workers go and how they are replaced, with real processes: GPUs that run out, a template that changes
//! under load, nodes that are cordoned and drained.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    collections::BTreeSet,
    fs,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tether_proto::{common::WorkerPhase, worker::Worker};
use tether_tests::{
    Cluster, Setup, digits::PredictRequest, digits_client, eventually, held_out, program,
};
use tokio::process::{Child, Command};

const STOP: &str = "[template.digits.stop]\ngrace = \"500ms\"";

async fn apply(cluster: &Cluster, size: u32, version: u32, more: &str) {
    let template = format!("env = {{ VERSION = \"{version}\" }}\n{STOP}");
    let file = cluster.pool_file("digits", "independent", size, "worker.py", &template, more);
    let file = file.display().to_string();
    let args = ["pool", "apply", "--owner", "ops", "--file", &file];
    let ran = cluster.tether().run(&args).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

async fn ready(cluster: &Cluster) -> Vec<Worker> {
    let mut workers = cluster.workers("digits").await;
    workers.retain(|worker| worker.phase() == WorkerPhase::Ready);
    workers
}

/// A variable of a process's environment.
fn variable(pid: u32, name: &str) -> Option<String> {
    let all = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let start = format!("{name}=").into_bytes();
    let found = all
        .split(|&byte| byte == 0)
        .find(|pair| pair.starts_with(&start))?;
    Some(String::from_utf8_lossy(&found[start.len()..]).into_owned())
}

/// Calls that go on until they are stopped: how many there were, and what the first that failed said.
fn call_on_and_on(
    cluster: &Cluster,
) -> (
    Arc<AtomicBool>,
    tokio::task::JoinHandle<Result<u32, String>>,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut client = digits_client(cluster.client().channel(), "digits");
    let stopped = Arc::clone(&stop);
    let calls = tokio::spawn(async move {
        let pixels = held_out(1).remove(0).pixels;
        let mut calls = 0;
        while !stopped.load(Ordering::Relaxed) {
            let request = PredictRequest {
                pixels: pixels.clone(),
            };
            match client.predict(request).await {
                Ok(_) => calls += 1,
                Err(status) => return Err(format!("after {calls} calls: {status:?}")),
            }
        }
        Ok(calls)
    });
    (stop, calls)
}

/// A second node of the cluster, in a process of its own.
struct SecondNode {
    dir: tempfile::TempDir,
    agent: Child,
}

impl SecondNode {
    async fn start(cluster: &Cluster) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("tether-")
            .tempdir()
            .unwrap();
        let arbiter = cluster.runtime().join("arbiter.sock");
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let agent = Command::new(program("tether-agent"))
            .args(["--set", "agent.node=node-2"])
            .args([
                "--set",
                &format!("listen.runtime_dir={}", dir.path().display()),
            ])
            .args([
                "--set",
                &format!("connect.arbiter=[\"unix:{}\"]", arbiter.display()),
            ])
            .env_remove("TETHER_CONFIG")
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let second = Self { dir, agent };
        eventually("the second node has joined", async || {
            let nodes = cluster.tether().json(&["nodes"]).await;
            let up = |node: &serde_json::Value| node["node"] == "node-2" && node["up"] == true;
            nodes.as_array().unwrap().iter().any(up).then_some(())
        })
        .await;
        second
    }
}

impl Drop for SecondNode {
    fn drop(&mut self) {
        let _ = self.agent.start_kill();
        tether_tests::tidy(self.dir.path());
    }
}

async fn node(cluster: &Cluster, name: &str) -> serde_json::Value {
    let nodes = cluster.tether().json(&["nodes"]).await;
    let found = nodes
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["node"] == name);
    found.unwrap().clone()
}

async fn say(cluster: &Cluster, args: &[&str]) {
    let ran = cluster.tether().run(args).await;
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
}

async fn delete(cluster: &Cluster) {
    say(cluster, &["pool", "rm", "digits"]).await;
    cluster.no_orphans().await;
}

#[tokio::test]
async fn a_gpu_is_one_workers_alone_and_where_there_is_none_left_that_is_said() {
    let cluster = Setup::default()
        .set("agent.resources.gpu", "2")
        .set("agent.labels.zone", "a")
        .start()
        .await;
    apply(
        &cluster,
        3,
        1,
        "placement = { resources = { gpu = 1 }, labels = { zone = \"a\" } }",
    )
    .await;

    let (workers, _) = eventually("two have a GPU", async || {
        let workers = ready(&cluster).await;
        (workers.len() == 2).then_some(workers)
    })
    .await;
    let told = |name: &str| -> BTreeSet<_> {
        workers
            .iter()
            .filter_map(|worker| variable(worker.pid, name))
            .collect()
    };
    let both = BTreeSet::from(["0".to_owned(), "1".to_owned()]);
    assert_eq!(told("TETHER_RESOURCE_GPU"), both);
    assert_eq!(told("CUDA_VISIBLE_DEVICES"), both);

    let why = "have no room: 1 of `gpu` are asked and at most 0 are free";
    let pools = cluster.tether().run(&["pool", "ls"]).await.out;
    assert!(pools.contains(why), "{pools}");
    let ps = cluster.tether().json(&["ps"]).await;
    let waiting = ps
        .as_array()
        .unwrap()
        .iter()
        .find(|worker| worker["phase"] == "waiting");
    assert!(
        waiting.unwrap()["status"].as_str().unwrap().contains(why),
        "{ps}"
    );
    let shown = node(&cluster, "node-1").await;
    assert_eq!(
        (&shown["resources_used"]["gpu"], &shown["labels"]["zone"]),
        (&2.into(), &"a".into())
    );

    // It is started as soon as one is free again.
    let taken = workers[0].resources["gpu"].clone();
    say(&cluster, &["pool", "scale", "digits", "1"]).await;
    eventually("one is left", async || {
        (ready(&cluster).await.len() == 1).then_some(())
    })
    .await;
    say(&cluster, &["pool", "scale", "digits", "2"]).await;
    let (workers, _) = eventually("two have a GPU again", async || {
        let workers = ready(&cluster).await;
        (workers.len() == 2).then_some(workers)
    })
    .await;
    let given: BTreeSet<_> = workers
        .iter()
        .map(|worker| worker.resources["gpu"].clone())
        .collect();
    assert_eq!(given, both);
    assert_eq!(
        workers[0].resources["gpu"], taken,
        "and who stayed has kept its own"
    );
    delete(&cluster).await;
}

#[tokio::test]
async fn a_changed_template_reaches_all_workers_and_costs_no_call() {
    let cluster = Cluster::start().await;
    apply(&cluster, 2, 1, "").await;
    eventually("both are ready", async || {
        (ready(&cluster).await.len() == 2).then_some(())
    })
    .await;
    let before = ready(&cluster).await;
    let (stop, calls) = call_on_and_on(&cluster);

    apply(&cluster, 2, 2, "").await;

    eventually("both run what is wanted", async || {
        let workers = cluster.workers("digits").await;
        let fresh = |worker: &&Worker| {
            worker.phase() == WorkerPhase::Ready
                && variable(worker.pid, "VERSION").as_deref() == Some("2")
        };
        let all = workers.len() == 2 && workers.iter().filter(fresh).count() == 2;
        all.then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let calls = calls.await.unwrap();
    assert!(calls.as_ref().is_ok_and(|&calls| calls > 10), "{calls:?}");

    // What counts without a new process, and what is not to count before the next start, replaces nobody.
    let after: Vec<_> = ready(&cluster)
        .await
        .iter()
        .map(|worker| worker.pid)
        .collect();
    assert!(before.iter().all(|worker| !after.contains(&worker.pid)));
    apply(&cluster, 2, 3, "rollout = { on_change = \"next_start\" }").await;
    // Whoever stands in for others is there, waiting, as soon as the change is taken.
    let workers = cluster.workers("digits").await;
    let still: Vec<_> = workers.iter().map(|worker| worker.pid).collect();
    let serving = |worker: &Worker| worker.phase() == WorkerPhase::Ready;
    assert!(still == after && workers.iter().all(serving), "{workers:?}");
    delete(&cluster).await;
}

/// What the agent of the first node reads, as far as it says who that is.
fn own_configuration(cluster: &Cluster) -> String {
    let path = cluster.dir().join("own.toml");
    std::fs::write(&path, "[agent]\nnode = \"node-1\"\n").unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn a_node_that_is_drained_gives_its_workers_away_and_stays_so_over_a_restart() {
    let mut cluster = Cluster::start().await;
    let _second = SecondNode::start(&cluster).await;
    apply(&cluster, 2, 1, "").await;
    let on = async |cluster: &Cluster| -> Vec<_> {
        let workers = ready(cluster).await;
        workers.into_iter().map(|worker| worker.node).collect()
    };
    eventually("they are spread", async || {
        let nodes: BTreeSet<_> = on(&cluster).await.into_iter().collect();
        (nodes.len() == 2).then_some(())
    })
    .await;
    let (stop, calls) = call_on_and_on(&cluster);

    say(&cluster, &["node", "drain", "node-1"]).await;
    let waited = ["node", "drain", "node-1", "--wait", "--timeout", "120s"];
    let ran = cluster.tether().run(&waited).await;

    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("left (digits/"),
        "it tells how far it is: {}",
        ran.err
    );
    assert_eq!(node(&cluster, "node-1").await["state"], "drained");
    eventually("all are on the other node", async || {
        (on(&cluster).await == ["node-2", "node-2"]).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let calls = calls.await.unwrap();
    assert!(calls.as_ref().is_ok_and(|&calls| calls > 10), "{calls:?}");

    // Nobody else takes them: they stay, and that is said.
    let late = ["node", "drain", "node-2", "--wait", "--timeout", "5s"];
    let ran = cluster.tether().run(&late).await;
    assert_eq!(ran.code, Some(3), "{}", ran.err);
    assert!(
        ran.err.contains("is not empty after 5s: 2 workers left")
            && ran.err.contains("nowhere else"),
        "{}",
        ran.err
    );
    let held = node(&cluster, "node-2").await["held_up_by"].to_string();
    assert!(
        held.contains("has nowhere else to go: of 2 nodes 2 are cordoned or drained"),
        "{held}"
    );
    assert_eq!(on(&cluster).await, ["node-2", "node-2"]);

    cluster.kill().await;
    cluster.up().await;
    eventually("what was said is still so", async || {
        let states = (
            node(&cluster, "node-1").await,
            node(&cluster, "node-2").await,
        );
        let said = states.0["state"] == "drained" && states.1["state"] == "draining";
        (said && on(&cluster).await == ["node-2", "node-2"]).then_some(())
    })
    .await;

    say(&cluster, &["node", "uncordon", "node-1"]).await;
    eventually("they go where there is room again", async || {
        // None that leaves is left either: one could stay once its node is open again.
        let all = cluster.workers("digits").await;
        let are_there =
            |worker: &Worker| worker.node == "node-1" && worker.phase() == WorkerPhase::Ready;
        (all.len() == 2 && all.iter().all(are_there)).then_some(())
    })
    .await;
    say(&cluster, &["node", "uncordon", "node-2"]).await;
    assert_eq!(node(&cluster, "node-2").await["state"], "open");
    // Those that nobody takes are stopped where that is wanted.
    say(&cluster, &["node", "cordon", "node-2"]).await;
    let stops = ["node", "drain", "--self", "--stop", "--timeout", "5s"];
    let ran = cluster
        .tether()
        .run(&[&stops[..], &["--config", &own_configuration(&cluster)]].concat())
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("asked to stop"), "{}", ran.err);
    assert_eq!(on(&cluster).await, Vec::<String>::new());
    let ran = cluster.tether().run(&["node", "cordon", "node-3"]).await;
    assert!(
        ran.code != Some(0) && ran.err.contains("no node is called `node-3`"),
        "{}",
        ran.err
    );
    delete(&cluster).await;
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_an_empty_node_only_where_it_is_ones_own() {
    let cluster = Cluster::start().await;
    let slip = ["node", "drain", "node-3", "--wait"];
    let ran = cluster.tether().run(&slip).await;
    assert!(
        ran.code != Some(0) && ran.err.contains("no node is called `node-3`"),
        "{}",
        ran.err
    );
    let own = [
        "node",
        "drain",
        "--self",
        "--wait",
        "--set",
        "agent.node=node-3",
    ];
    let ran = cluster.tether().run(&own).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}
