//! Bad input around leases: each is a clear error, and nothing that was granted is lost by it.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::process::Stdio;

use tether_client::{Problem, SessionOptions};
use tether_proto::{
    pool::{ApplyPoolRequest, PoolSpec},
    session::{KeepAliveRequest, OpenSessionRequest},
};
use tether_tests::{Cluster, eventually, program};
use tether_types::Reason;
use tokio::process::Command;

/// How an attempt to keep a session alive is answered.
async fn beat(cluster: &Cluster, owner: &str, epoch: u64) -> Problem {
    let beat = KeepAliveRequest {
        owner: owner.to_owned(),
        epoch,
        seq: 1,
        ack_seen: 0,
    };
    let mut sessions = cluster.client().sessions();
    let answers = sessions.keep_alive(tokio_stream::once(beat)).await;
    let refused = match answers {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(refused) => refused,
    };
    Problem::from(refused)
}

#[tokio::test]
async fn a_time_to_live_that_cannot_work_is_refused_with_its_consequence() {
    let cluster = Cluster::start().await;

    for ttl_ms in [1, u64::MAX] {
        let request = OpenSessionRequest {
            owner: "beam".to_owned(),
            ttl_ms,
            ..OpenSessionRequest::default()
        };
        let refused = cluster.client().sessions().open_session(request).await;
        let refused = Problem::from(refused.unwrap_err());
        assert_eq!(refused.reason, Some(Reason::ConfigInvalid), "{refused:?}");
        assert!(refused.text.contains("outside 100ms to"), "{refused:?}");
    }

    for (ttl, word) in [
        ("-5s", "-5s"),
        ("0s", "must be more than twice"),
        ("99999h", "outside"),
        ("20", "20"),
    ] {
        let output = Command::new(program("tether"))
            .args(["config", "check", "--set", &format!("lease.node_ttl={ttl}")])
            .env_remove("TETHER_CONFIG")
            .stdin(Stdio::null())
            .output();
        let output = output.await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{ttl}: {said}");
        assert!(
            said.contains("lease.node_ttl") && said.contains(word),
            "{ttl}: {said}"
        );
    }
}

#[tokio::test]
async fn epochs_that_are_old_forged_or_of_nobody_are_refused_and_cost_the_holder_nothing() {
    let cluster = Cluster::start().await;
    let open = async || {
        let client = cluster.client();
        let opened = client.open_session("beam".parse().unwrap(), SessionOptions::default());
        opened.await.unwrap()
    };
    let first = open().await;
    let second = open().await;
    assert!(second.epoch() > first.epoch());

    let old = beat(&cluster, "beam", first.epoch().0).await;
    assert_eq!(old.reason, Some(Reason::LeaseFenced), "{old:?}");
    let forged = beat(&cluster, "beam", second.epoch().0 + 1_000).await;
    assert_eq!(forged.reason, Some(Reason::UnknownSession), "{forged:?}");
    let nobody = beat(&cluster, "stranger", 1).await;
    assert_eq!(nobody.reason, Some(Reason::UnknownSession), "{nobody:?}");
    let request = ApplyPoolRequest {
        pool: Some(PoolSpec {
            name: "p".to_owned(),
            ..PoolSpec::default()
        }),
        owner: "beam".to_owned(),
        epoch: first.epoch().0,
    };
    let acted = cluster.client().pools().apply_pool(request).await;
    let acted = Problem::from(acted.unwrap_err());
    assert_eq!(acted.reason, Some(Reason::LeaseFenced), "{acted:?}");

    let mut sessions = cluster.client().sessions();
    let sessions = sessions.list_sessions(tether_proto::session::ListSessionsRequest {});
    let sessions = sessions.await.unwrap().into_inner().sessions;
    let epochs: Vec<_> = sessions.iter().map(|session| session.epoch).collect();
    assert_eq!(epochs, [second.epoch().0]);
    second.close().await.unwrap();
}

#[tokio::test]
async fn a_second_agent_under_a_nodes_name_is_refused_and_the_first_keeps_its_workers() {
    let cluster = Cluster::start().await;
    let file = cluster.dir().join("pool.toml");
    let text = "[template.t]\ncommand = \"sleep\"\nargs = [\"600\"]\nreadiness = { kind = \"started\" }\n\
                [pool.p]\ntemplate = \"t\"\nmode = \"independent\"\n";
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let apply = ["pool", "apply", "--owner", "ops", "--file", &file];
    assert_eq!(cluster.tether().run(&apply).await.code, Some(0));
    let worker = async || {
        let workers = cluster.workers("p").await;
        let ready = workers.into_iter().find(|worker| worker.pid != 0)?;
        Some((ready.pid, ready.worker?.incarnation))
    };
    let (before, _) = eventually("its worker runs", worker).await;

    let other = tempfile::tempdir().unwrap();
    let log = other.path().join("log");
    let arbiter = cluster.runtime().join("arbiter.sock");
    let mut second = Command::new(program("tether-agent"))
        .args(["--set", "agent.node=node-1"])
        .args([
            "--set",
            &format!("connect.arbiter=unix:{}", arbiter.display()),
        ])
        .args([
            "--set",
            &format!("listen.runtime_dir={}", other.path().join("run").display()),
        ])
        .env_remove("TETHER_CONFIG")
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    eventually("the second agent says why it is refused", async || {
        let said = std::fs::read_to_string(&log).ok()?;
        said.contains("another agent holds node `node-1`")
            .then_some(())
    })
    .await;
    assert_eq!(worker().await, Some(before));
    second.start_kill().unwrap();
    second.wait().await.unwrap();
}
