//! A supervisor that is started after the agent, which is to be offered all the same.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use tether_tests::{
    Setup, eventually,
    supervisor::{Kind, Services},
};

#[tokio::test]
async fn a_supervisor_that_is_started_after_the_agent_is_offered() {
    let dir = tempfile::Builder::new()
        .prefix("tether-")
        .tempdir()
        .unwrap();
    let services = dir.path().join("services").display().to_string();
    let cluster = Setup::default()
        .set("agent.runit.directory", &services)
        .start()
        .await;
    let offers = async |launcher: &str| {
        let nodes = cluster.tether().json(&["nodes"]).await;
        nodes.to_string().contains(&format!("\"{launcher}\""))
    };
    eventually("the node is there", async || {
        offers("exec").await.then_some(())
    })
    .await;
    assert!(!offers("runit").await);

    let run = "#!/bin/sh\nexec sleep 600\n";
    let supervisor = Services::new(Kind::Runit, dir.path())
        .and_then(|services| services.add("idle", run))
        .unwrap()
        .start()
        .await
        .unwrap();

    eventually("runit is offered", async || {
        offers("runit").await.then_some(())
    })
    .await;
    drop(supervisor);
}
