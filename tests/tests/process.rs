//! What a template says of the process itself, seen from inside real workers: whose it is, what it may take,
//! what it reads, and how its death is told.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{fs, path::PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tether_tests::{Cluster, Owner, eventually, python};

/// A pool of one worker that runs a program with one argument after its flag; `template` is more of its
/// template.
fn pool(cluster: &Cluster, command: &str, flag: &str, script: &str, template: &str) -> PathBuf {
    let text = format!(
        "[template.own]\ncommand = {command:?}\nargs = [{flag:?}, {script:?}]\n{template}\n[template.own.readiness]\nkind = \"started\"\n[template.own.restart]\nmode = \"never\"\n[pool.own]\ntemplate = \"own\"\nmode = \"coupled\"\n",
    );
    let file = cluster.dir().join("own.toml");
    fs::write(&file, text).unwrap();
    file
}

/// What its standard output holds once it has said `end`.
async fn output(cluster: &Cluster) -> Vec<String> {
    let log = eventually("the worker said all it has to say", async || {
        let ran = cluster.tether().run(&["logs", "own/0"]).await;
        ran.out.contains("end").then_some(ran.out)
    });
    log.await
        .0
        .lines()
        .map(|line| line.trim().to_owned())
        .collect()
}

/// The death of its worker, as an event.
async fn death(cluster: &Cluster) -> Value {
    let event = eventually("the worker's death is an event", async || {
        let events = cluster.tether().json_lines(&["events"]).await;
        events
            .into_iter()
            .find(|event| event["kind"] == "WORKER_DIED")
    });
    event.await.0["death"].clone()
}

/// Waits until the pool of before is gone, so that another of its name can come.
async fn forgotten(cluster: &Cluster) {
    eventually("the pool is forgotten", async || {
        let pools = cluster.tether().json(&["pool", "ls"]).await;
        pools.as_array()?.is_empty().then_some(())
    })
    .await;
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test]
async fn the_agent_takes_all_the_descriptors_it_may_have_and_its_workers_get_what_it_was_given() {
    let all = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(512),
        ..all
    };
    setrlimit(Resource::Nofile, few).unwrap();
    let cluster = Cluster::start().await;
    let script = "ulimit -Sn; echo end; exec sleep 600";
    let file = pool(&cluster, "sh", "-c", script, "");

    let _owner = Owner::with_pool(&cluster, "o", &file).await;
    let said = output(&cluster).await;

    let limits = fs::read_to_string(format!("/proc/{}/limits", cluster.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let own: Vec<&str> = line.unwrap().split_ascii_whitespace().collect();
    assert_eq!(said, ["512", "end"]);
    assert_eq!(own[3], own[4], "{own:?}");
}

#[tokio::test]
async fn every_kept_part_of_a_log_is_read_in_order() {
    let cluster = Cluster::start().await;
    let script =
        "i=100; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; echo end; exec sleep 600";
    // Ten lines to a part: of a hundred and one, the last 31 stand in three parts and a piece.
    let logs = "log_limit = \"90B\"\nlog_files = 3\n";
    let file = pool(&cluster, "sh", "-c", script, logs);

    let _owner = Owner::with_pool(&cluster, "o", &file).await;
    // A first look may have begun while more was kept of the beginning.
    output(&cluster).await;
    let said = output(&cluster).await;

    let mut expected: Vec<_> = (170..200).map(|number| format!("line {number}")).collect();
    expected.push("end".to_owned());
    assert_eq!(said, expected);
}

#[tokio::test]
async fn a_worker_runs_as_whom_and_with_what_its_template_says() {
    if !is_root() {
        println!("skipped: only root may become somebody else");
        return;
    }
    let cluster = Cluster::start().await;
    let script = "id -u; id -g; id -G; umask; nice; ulimit -Sn; ulimit -Hn; nproc; cat; pwd; test -w . && echo mine; echo end; sleep 600";
    let process = "[template.own.process]\nuser = \"54321\"\ngroup = \"54322\"\ngroups = [\"54322\", \"54323\"]\numask = \"027\"\nnice = 5\ncpus = [0]\ninput = \"what it reads\\n\"\nresource_limits = { nofile = { soft = 64, hard = 128 } }\n";
    let file = pool(&cluster, "sh", "-c", script, process);

    let owner = Owner::with_pool(&cluster, "o", &file).await;
    let said = output(&cluster).await;

    let expected = [
        "54321",
        "54322",
        "54322 54323",
        "0027",
        "5",
        "64",
        "128",
        "1",
        "what it reads",
    ];
    assert_eq!(said[..expected.len()], expected);
    assert!(said[expected.len()].ends_with("/own"), "{said:?}");
    assert_eq!(said[expected.len() + 1], "mine");
    drop(owner);
    cluster.no_orphans().await;
}

#[tokio::test]
async fn a_worker_may_have_a_terminal_of_its_own() {
    let cluster = Cluster::start().await;
    let script = "test -t 0 && test -t 1 && test -t 2 && echo a terminal; read line; echo \"read $line\"; echo end; sleep 600";
    let process = "[template.own.process]\npty = true\ninput = \"typed\\n\"\n";
    let file = pool(&cluster, "sh", "-c", script, process);

    let owner = Owner::with_pool(&cluster, "o", &file).await;
    let said = output(&cluster).await;

    assert!(said.contains(&"a terminal".to_owned()), "{said:?}");
    assert!(said.contains(&"read typed".to_owned()), "{said:?}");
    drop(owner);
    cluster.no_orphans().await;
}

#[tokio::test]
async fn standard_input_ends_after_what_was_said_or_stays_open() {
    let cluster = Cluster::start().await;
    let script = "import select, sys\nsys.stdin.readline()\nprint('ended' if select.select([sys.stdin], [], [], 0.3)[0] else 'open', flush=True)\nprint('end', flush=True)\nimport time; time.sleep(600)\n";
    let python = python().display().to_string();

    for (hold, expected) in [(true, "open"), (false, "ended")] {
        let process =
            format!("[template.own.process]\ninput = \"one line\\n\"\nhold_input_open = {hold}\n");
        let file = pool(&cluster, &python, "-c", script, &process);
        let owner = Owner::with_pool(&cluster, "o", &file).await;

        assert_eq!(output(&cluster).await[0], expected);
        drop(owner);
        cluster.no_orphans().await;
        forgotten(&cluster).await;
    }
}

#[tokio::test]
async fn the_tree_of_a_worker_takes_no_more_memory_than_it_may_and_its_death_says_so() {
    if !is_root() {
        println!("skipped: no cgroup of this user limits memory");
        return;
    }
    let cluster = Cluster::start().await;
    let script = "held = []\nwhile True: held.append(bytearray(b'x' * (4 << 20)))\n";
    let limits = "[template.own.limits]\nmemory = \"64MiB\"\n";
    let file = pool(
        &cluster,
        &python().display().to_string(),
        "-c",
        script,
        limits,
    );

    let mut owner = Owner::start(&cluster, "o", &["--file", &file.display().to_string()]);
    owner.until("session").await;
    let death = death(&cluster).await;

    assert_eq!(death["cause"], "OOM_KILLED", "{death}");
    let peak = death["measures"]["peak_memory_bytes"].as_u64().unwrap();
    assert!((32 << 20..=64 << 20).contains(&peak), "{death}");
    assert!(death["measures"]["cpu_ms"].as_u64().is_some(), "{death}");
}

#[tokio::test]
async fn the_tree_of_a_worker_has_no_more_processes_than_it_may() {
    if !is_root() {
        println!("skipped: no cgroup of this user limits processes");
        return;
    }
    let cluster = Cluster::start().await;
    let script = "import os, time\nmade = 0\ntry:\n    while made < 50:\n        if os.fork() == 0: time.sleep(600)\n        made += 1\nexcept BlockingIOError:\n    pass\nprint(made, flush=True)\nprint('end', flush=True)\ntime.sleep(600)\n";
    let limits = "[template.own.limits]\npids = 8\n";
    let file = pool(
        &cluster,
        &python().display().to_string(),
        "-c",
        script,
        limits,
    );

    let owner = Owner::with_pool(&cluster, "o", &file).await;

    assert_eq!(output(&cluster).await[0], "7");
    drop(owner);
    cluster.no_orphans().await;
}

#[tokio::test]
async fn a_worker_is_asked_to_stop_by_the_signal_of_its_template() {
    let cluster = Cluster::start().await;
    let script = "trap 'echo interrupted >&2; exit 3' INT; echo end; while :; do sleep 0.05; done";
    let file = pool(
        &cluster,
        "sh",
        "-c",
        script,
        "[template.own.stop]\nsignal = \"SIGINT\"\n",
    );

    let _owner = Owner::with_pool(&cluster, "o", &file).await;
    output(&cluster).await;
    let stopped = cluster.tether().run(&["stop", "own/0"]).await;
    let death = death(&cluster).await;

    assert_eq!(stopped.code, Some(0), "{}", stopped.err);
    assert_eq!(
        (&death["cause"], &death["exit_code"]),
        (&"ORDERED_BY_OPERATOR".into(), &3.into())
    );
    assert!(
        death["stderr_tail"]
            .as_str()
            .unwrap()
            .contains("interrupted"),
        "{death}"
    );
    assert_eq!(death["measures"]["core_dumped"], false);
}

#[tokio::test]
async fn inside_its_namespace_a_workers_process_id_and_proc_agree() {
    let cluster = Cluster::start().await;
    let script = "import os, time\nprint(os.readlink('/proc/self') == str(os.getpid()), flush=True)\nprint('end', flush=True)\ntime.sleep(600)\n";
    let file = pool(&cluster, &python().display().to_string(), "-c", script, "");

    let owner = Owner::with_pool(&cluster, "o", &file).await;

    assert_eq!(output(&cluster).await[0], "True");
    drop(owner);
    cluster.no_orphans().await;
}

#[tokio::test]
async fn what_a_template_asks_for_and_cannot_have_is_refused_in_a_sentence() {
    let cluster = Cluster::start().await;
    for (process, reason) in [
        (
            "user = \"nobody-of-that-name\"",
            "there is no user `nobody-of-that-name`",
        ),
        (
            "resource_limits = { nofiles = 3 }",
            "limits `nofiles`, which is no limit of this system",
        ),
    ] {
        let file = pool(
            &cluster,
            "sleep",
            "--",
            "600",
            &format!("[template.own.process]\n{process}\n"),
        );
        let mut owner = Owner::start(&cluster, "o", &["--file", &file.display().to_string()]);
        owner.until("session").await;

        let told = eventually("the start is refused", async || {
            let events = cluster.tether().json_lines(&["events"]).await;
            let all = events.into_iter().map(|event| event.to_string());
            all.into_iter().find(|event| event.contains(reason))
        });
        told.await;
        owner.kill().await;
        forgotten(&cluster).await;
    }
}

#[tokio::test]
async fn a_node_tells_what_it_guarantees_and_refuses_to_start_with_less_than_was_demanded() {
    let mut cluster = Cluster::start().await;
    let nodes = cluster.tether().json(&["nodes"]).await;
    let level = nodes[0]["guarantee"].as_str().unwrap().to_owned();
    let doctor = cluster.tether().json(&["doctor"]).await;

    assert!(
        ["G1", "G2", "G3", "G4", "G5"].contains(&level.as_str()),
        "{nodes}"
    );
    assert_eq!(doctor["guarantee"], level.as_str());
    assert!(!nodes[0]["not_covered"].as_str().unwrap().is_empty());
    cluster.stop().await;

    let dir = cluster.dir().join("less");
    let refused = cluster
        .tether()
        .command(&[
            "up",
            "--store",
            "memory:",
            "--set",
            "agent.no_namespaces=true",
            "--set",
            "agent.no_cgroups=true",
            "--set",
            "agent.minimum_guarantee=G3",
            "--set",
            &format!("listen.runtime_dir={}", dir.display()),
            "--set",
            &format!("listen.gateway=[\"unix:{}\"]", dir.join("g.sock").display()),
        ])
        .output()
        .await
        .unwrap();

    let text = String::from_utf8_lossy(&refused.stderr);
    assert_ne!(refused.status.code(), Some(0));
    assert!(
        text.contains("demands G3") && text.contains("`agent.no_cgroups` is set"),
        "{text}"
    );
}
