//! The command line, as somebody on call would use it.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{process::Stdio, time::Duration};

use rustix::process::Signal;
use tether_tests::{Cluster, DEADLINE, Owner, Tether, eventually, held_out, kill};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

async fn with_pool(size: u32) -> (Cluster, Tether, Owner) {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", size, "worker.py", "", "");
    let owner = Owner::with_pool(&cluster, "beam", &file).await;
    let tether = cluster.tether();
    (cluster, tether, owner)
}

/// Reads lines of a running command until one has this in it.
async fn line_with(tether: &Tether, args: &[&str], what: &str, then: impl AsyncFnOnce()) -> String {
    let mut child = tether
        .command(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
    then().await;
    let found = timeout(DEADLINE, async {
        loop {
            let line = tokio::select! {
                Ok(Some(line)) = out.next_line() => line,
                Ok(Some(line)) = err.next_line() => line,
                else => panic!("the command ended without `{what}`"),
            };
            if line.contains(what) {
                return line;
            }
        }
    });
    found
        .await
        .unwrap_or_else(|_| panic!("no line with `{what}`"))
}

#[tokio::test]
async fn pools_and_workers_are_listed_for_people_and_for_programs() {
    let (_cluster, tether, _owner) = with_pool(2).await;

    let pools = tether.json(&["pool", "ls"]).await;
    assert_eq!(pools[0]["pool"], "digits");
    assert_eq!(pools[0]["ready"], 2);
    let table = tether.run(&["ps"]).await.out;
    let lines: Vec<_> = table.lines().collect();
    assert!(
        lines[0].starts_with("WORKER") && lines.len() == 3,
        "{table}"
    );
    assert!(
        lines[1].starts_with("digits/0.") && lines[1].contains("ready"),
        "{table}"
    );
}

#[tokio::test]
async fn who_serves_is_listed_and_followed_with_the_cause_of_each_death() {
    let (_cluster, tether, _owner) = with_pool(2).await;
    let endpoints = tether.json(&["endpoints", "digits"]).await;
    let states: Vec<_> = endpoints
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["state"])
        .collect();
    assert_eq!(states, ["serving", "serving"]);
    let table = tether.run(&["discover", "digits"]).await.out;
    assert!(
        table.starts_with("WORKER") && table.lines().count() == 3,
        "{table}"
    );

    let workers = tether.json(&["ps"]).await;
    let pid = u32::try_from(workers[0]["pid"].as_u64().unwrap()).unwrap();
    let mut child = tether
        .command(&["discover", "digits", "--watch"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = timeout(DEADLINE, lines.next_line()).await;
        line.expect("a line comes").unwrap().expect("it goes on")
    };
    let first = [next().await, next().await];
    assert!(
        first.iter().all(|line| line.starts_with("serves")),
        "{first:?}"
    );
    kill(pid, Signal::KILL);
    let gone = next().await;
    assert!(gone.starts_with("gone"), "{gone}");
    assert!(
        gone.contains("digits/0") && gone.contains("SIGNALED"),
        "{gone}"
    );

    let missing = tether.run(&["discover", "nobody"]).await;
    assert!(
        missing.err.contains("[discovery.pools.nobody]"),
        "{}",
        missing.err
    );
}

#[tokio::test]
async fn any_method_can_be_called_with_json() {
    let (_cluster, tether, _owner) = with_pool(1).await;
    let digit = held_out(1).remove(0);
    let request = serde_json::json!({ "pixels": digit.pixels }).to_string();

    let answer = tether
        .run(&[
            "call",
            "digits",
            "digits.v1.DigitsService/Predict",
            "-d",
            &request,
        ])
        .await;
    let answer: serde_json::Value = serde_json::from_str(&answer.out).expect(&answer.err);
    assert!(
        answer["pid"].as_u64().unwrap() > 0 && answer["label"].as_u64().unwrap() < 10,
        "{answer}"
    );

    let train = r#"{"job": "short", "epochs": 3}"#;
    let steps = tether
        .json_lines(&[
            "call",
            "digits",
            "digits.v1.DigitsService/Train",
            "-d",
            train,
        ])
        .await;
    assert_eq!(steps.last().unwrap()["done"], true);

    let wrong = tether
        .run(&["call", "digits", "digits.v1.DigitsService/Nope"])
        .await;
    assert!(
        wrong.code == Some(1) && wrong.err.contains("expected one of: Predict, Train"),
        "{}",
        wrong.err
    );
    let wrong = tether
        .run(&[
            "call",
            "digits",
            "digits.v1.DigitsService/Predict",
            "-d",
            r#"{"pixel": []}"#,
        ])
        .await;
    assert!(
        wrong.code == Some(1) && wrong.err.contains("pixel"),
        "{}",
        wrong.err
    );
}

#[tokio::test]
async fn logs_are_followed_over_the_death_of_a_worker() {
    let (cluster, tether, _owner) = with_pool(1).await;

    let before = tether.run(&["logs", "digits/0"]).await;
    assert!(
        !before.err.is_empty(),
        "the worker logs its start on standard error"
    );
    let pid = cluster.workers("digits").await[0].pid;
    let lines = before.err.lines().count();
    let mut seen = 0;
    let mut child = tether
        .command(&["logs", "-f", "digits/0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
    while seen < lines {
        timeout(DEADLINE, err.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        seen += 1;
    }

    kill(pid, Signal::KILL);

    // What comes now was written by the next incarnation.
    assert!(
        timeout(DEADLINE, err.next_line())
            .await
            .unwrap()
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn events_are_followed_as_they_happen() {
    let (cluster, tether, _owner) = with_pool(1).await;
    let pid = cluster.workers("digits").await[0].pid;

    let line = line_with(
        &tether,
        &["events", "-f", "--pool", "digits"],
        "WORKER_DIED",
        async || kill(pid, Signal::KILL),
    )
    .await;

    assert!(line.contains("SIGNALED by signal 9"), "{line}");
}

#[tokio::test]
async fn a_worker_is_stopped_and_signalled_by_name() {
    let (cluster, tether, _owner) = with_pool(2).await;

    let stopped = tether.run(&["stop", "digits/0", "--grace", "2s"]).await;
    assert_eq!(stopped.code, Some(0), "{}", stopped.err);
    let (death, _) = eventually("its death is recorded with who ordered it", async || {
        let events = tether.json_lines(&["events"]).await;
        events
            .into_iter()
            .find(|event| event["kind"] == "WORKER_DIED")
    })
    .await;
    assert_eq!(death["death"]["cause"], "ORDERED_BY_OPERATOR");
    assert!(death["death"]["epoch"].as_u64() > Some(0), "{death}");

    let worker = cluster
        .workers("digits")
        .await
        .into_iter()
        .find(|worker| worker.worker.as_ref().unwrap().slot == 1)
        .unwrap();
    let signalled = tether.run(&["signal", "digits/1", "SIGKILL"]).await;
    assert_eq!(signalled.code, Some(0), "{}", signalled.err);
    eventually("the signal arrived", async || {
        let workers = cluster.workers("digits").await;
        workers
            .iter()
            .all(|other| other.pid != worker.pid)
            .then_some(())
    })
    .await;
    let wrong = tether.run(&["signal", "digits/1", "NOPE"]).await;
    assert!(
        wrong.code == Some(1) && wrong.err.contains("expected a number"),
        "{}",
        wrong.err
    );
}

#[tokio::test]
async fn a_pool_is_scaled_drained_put_back_and_removed() {
    let (cluster, tether, _owner) = with_pool(1).await;
    let predict = serde_json::json!({ "pixels": held_out(1).remove(0).pixels }).to_string();
    let call = [
        "call",
        "digits",
        "digits.v1.DigitsService/Predict",
        "-d",
        &predict,
    ];

    tether.json(&["pool", "scale", "digits", "3"]).await;
    eventually("three are ready", async || {
        (tether.json(&["pool", "ls"]).await[0]["ready"] == 3).then_some(())
    })
    .await;
    tether.json(&["pool", "scale", "digits", "1"]).await;
    eventually("one is left", async || {
        (cluster.workers("digits").await.len() == 1).then_some(())
    })
    .await;

    tether.json(&["pool", "drain", "digits"]).await;
    let (refused, _) = eventually("the gateway has heard of it", async || {
        let ran = tether.run(&call).await;
        (ran.code == Some(1)).then_some(ran.err)
    })
    .await;
    assert!(refused.contains("drain"), "{refused}");
    tether.json(&["pool", "drain", "digits", "--undo"]).await;
    eventually("it serves again", async || {
        (tether.run(&call).await.code == Some(0)).then_some(())
    })
    .await;

    tether.run(&["pool", "rm", "digits"]).await;
    cluster.no_orphans().await;
    eventually("it is forgotten", async || {
        tether
            .json(&["pool", "ls"])
            .await
            .as_array()
            .unwrap()
            .is_empty()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn run_owns_a_pool_for_as_long_as_it_runs() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 2, "worker.py", "", "");
    let file = file.display().to_string();
    let mut run = cluster
        .tether()
        .command(&["run", "-f", &file])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    while !timeout(DEADLINE, lines.next_line())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .starts_with("ready: 2 of 2")
    {}

    kill(run.id().unwrap(), Signal::INT);

    let ended = timeout(Duration::from_secs(20), run.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.code(), Some(0));
    assert!(cluster.traces().find().is_empty());
}

#[tokio::test]
async fn the_configuration_is_shown_with_where_each_setting_came_from() {
    let cluster = Cluster::start().await;
    let file = cluster.dir().join("tether.toml");
    std::fs::write(&file, "[lease]\nnode_ttl = \"30s\"\n").unwrap();
    let path = file.display().to_string();

    let shown = cluster
        .tether()
        .run(&[
            "config",
            "show",
            "--config",
            &path,
            "--set",
            "lease.node_beat=2s",
        ])
        .await;

    assert_eq!(shown.code, Some(0), "{}", shown.err);
    let line = |key: &str| {
        shown
            .out
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap()
            .to_owned()
    };
    assert!(
        line("lease.node_ttl = ").contains(&format!("\"30s\"  # file {path}:2")),
        "{}",
        shown.out
    );
    assert!(
        line("lease.node_beat = ").contains("--set"),
        "{}",
        shown.out
    );
    assert!(
        line("lease.session_ttl = ").contains("# default"),
        "{}",
        shown.out
    );
    assert_eq!(
        cluster.tether().run(&["version"]).await.out.trim(),
        concat!("tether ", env!("CARGO_PKG_VERSION"))
    );
}
