//! Real clients of xDS, gRPC's own and Envoy, call real workers and follow what becomes of them.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

mod caller;
mod envoy;

use std::net::SocketAddr;

use caller::Caller;
use envoy::{Envoy, Form};
use tether_tests::{Cluster, Setup, eventually};

/// A cluster, and where it serves xDS: at a port that was free a moment ago.
async fn start(balance: &str) -> (Cluster, SocketAddr) {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let xds = taken.local_addr().unwrap();
    drop(taken);
    let setup = Setup::default()
        .set("discovery.xds.listen", &xds.to_string())
        .set("discovery.xds.balance", balance);
    (setup.start().await, xds)
}

/// A pool of workers that say which slot is theirs.
async fn pool(cluster: &Cluster, size: u32, spares: u32) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/xds/worker.py");
    let (template, more) = ("listen = \"tcp\"", format!("spares = {spares}"));
    let file = cluster.pool_file("who", "independent", size, script, template, &more);
    let file = file.display().to_string();
    let apply = ["pool", "apply", "--owner", "ops", "--file", &file];
    run(cluster, &apply).await;
}

async fn run(cluster: &Cluster, args: &[&str]) {
    let ran = cluster.tether().run(args).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

/// A gRPC client that asks discovery itself.
fn without_a_proxy(xds: SocketAddr) -> Caller {
    let bootstrap = format!(
        r#"{{"xds_servers": [{{"server_uri": "{xds}", "channel_creds": [{{"type": "insecure"}}], "server_features": ["xds_v3"]}}], "node": {{"id": "caller"}}}}"#
    );
    Caller::start("xds:///who", &[("GRPC_XDS_BOOTSTRAP_CONFIG", &bootstrap)])
}

#[tokio::test]
async fn what_a_grpc_client_refuses_is_logged_once_and_not_told_again() {
    let (cluster, xds) = start("least_request").await;
    pool(&cluster, 1, 0).await;
    let mut caller = without_a_proxy(xds);

    caller.hears(&["UNAVAILABLE"]).await;
    eventually("the refusal is logged", async || {
        cluster.log().contains("refuses").then_some(())
    })
    .await;
    // Its endpoints change, and the cluster that it cannot use does not.
    run(&cluster, &["pool", "drain", "who"]).await;
    caller.hears(&["UNAVAILABLE"]).await;

    let log = cluster.log();
    let refusals: Vec<_> = log
        .lines()
        .filter(|line| line.contains("refuses"))
        .collect();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    for said in ["LB policy is not supported", "caller", "127.0.0.1"] {
        assert!(refusals[0].contains(said), "{refusals:?}");
    }
}

#[tokio::test]
async fn a_grpc_client_without_a_proxy_finds_a_pool_and_follows_it() {
    let (cluster, xds) = start("round_robin").await;
    // The third is ready, and told as draining.
    pool(&cluster, 2, 1).await;
    let mut caller = without_a_proxy(xds);

    caller.hears(&["0", "1"]).await;
    let refusals = caller.refusals();
    run(&cluster, &["pool", "scale", "who", "3"]).await;
    caller.hears(&["0", "1", "2"]).await;
    assert_eq!(caller.refusals(), refusals, "one more worker costs no call");

    run(&cluster, &["pool", "drain", "who"]).await;
    caller.hears(&["UNAVAILABLE"]).await;
    run(&cluster, &["pool", "drain", "who", "--undo"]).await;
    caller.hears(&["0", "1", "2"]).await;
    run(&cluster, &["pool", "scale", "who", "1"]).await;
    caller.hears(&["0"]).await;
    assert!(!cluster.log().contains("refuses"), "{}", cluster.log());
}

#[tokio::test]
async fn envoy_follows_a_pool_by_the_state_of_the_world_and_outlives_discovery() {
    envoy_follows_a_pool(Form::StateOfTheWorld, "round_robin").await;
}

#[tokio::test]
async fn envoy_follows_a_pool_by_increments_and_outlives_discovery() {
    envoy_follows_a_pool(Form::Increments, "least_request").await;
}

async fn envoy_follows_a_pool(form: Form, balance: &str) {
    let Some(program) = envoy::program().await else {
        return;
    };
    let (mut cluster, xds) = start(balance).await;
    pool(&cluster, 2, 1).await;
    let envoy = Envoy::start(&program, cluster.dir(), xds, form, "who").await;
    let mut caller = Caller::start(&envoy.target(), &[]);
    caller.hears(&["0", "1"]).await;

    run(&cluster, &["pool", "scale", "who", "3"]).await;
    caller.hears(&["0", "1", "2"]).await;

    let refusals = caller.refusals();
    cluster.kill().await;
    envoy.is_connected(false).await;
    caller.hears(&["0", "1", "2"]).await;
    cluster.up().await;
    envoy.is_connected(true).await;
    caller.hears(&["0", "1", "2"]).await;
    assert_eq!(
        caller.refusals(),
        refusals,
        "calls went on without discovery"
    );

    run(&cluster, &["pool", "drain", "who"]).await;
    caller.hears(&["UNAVAILABLE"]).await;
    run(&cluster, &["pool", "drain", "who", "--undo"]).await;
    run(&cluster, &["pool", "scale", "who", "1"]).await;
    caller.hears(&["0"]).await;
    run(&cluster, &["pool", "rm", "who"]).await;
    caller.hears(&["UNAVAILABLE"]).await;
    assert_eq!(envoy.refused().await, [0; 0], "Envoy takes all it is told");
    assert!(!cluster.log().contains("refuses"), "{}", cluster.log());
}
