//! Workers that nobody of ours starts, with `tether register` beside them: real processes, as one would run them.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tether_client::{Condition, Registrant};
use tether_tests::{
    ByHand, Cluster, Owner, Registrar, digits::PredictRequest, digits_client, eventually, kill,
};
use tether_types::Reason;
use tokio::time::Instant;
use tonic::Request;

/// Of a registration that is to end soon.
const TTL: Duration = Duration::from_secs(3);

/// A call through the gateway.
async fn call(cluster: &Cluster, pool: &str) -> Result<(), Option<Reason>> {
    let mut client = digits_client(cluster.client().channel(), pool);
    let mut request = Request::new(PredictRequest {
        pixels: vec![0; 64],
    });
    // A worker that was stopped answers nothing.
    request.set_timeout(Duration::from_secs(2));
    match client.predict(request).await {
        Ok(_) => Ok(()),
        Err(status) => Err(tether_proto::reason_of(&status)),
    }
}

async fn registrations(cluster: &Cluster) -> Vec<Value> {
    let all = cluster.tether().json(&["registrations"]).await;
    all.as_array().unwrap().clone()
}

#[tokio::test]
async fn a_worker_started_by_hand_serves_once_it_is_registered_and_until_the_lease_is_over() {
    let cluster = Cluster::start().await;
    let socket = format!("unix:{}", cluster.dir().join("one.sock").display());
    let ttl = format!("{TTL:?}");
    let args = [
        "digits",
        &socket,
        "--name",
        "one",
        "--ttl",
        &ttl,
        "--zone",
        "a",
        "--weight",
        "2",
        "--check-interval",
        "200ms",
    ];
    let mut registrar = Registrar::start(&cluster.tether(), &args);
    registrar.notes("waits until the worker serves").await;
    assert_eq!(
        call(&cluster, "digits").await,
        Err(Some(Reason::UnknownPool))
    );

    let worker = ByHand::start(cluster.dir(), "one");
    assert_eq!(worker.address(), socket);
    let said = registrar.says("registered").await;

    eventually("calls reach it", async || {
        call(&cluster, "digits").await.ok()
    })
    .await;
    let listed = registrations(&cluster).await;
    assert_eq!(listed.len(), 1);
    let facts = |key: &str| listed[0][key].clone();
    assert_eq!(
        (facts("name"), facts("zone"), facts("weight")),
        ("one".into(), "a".into(), 2.into())
    );
    assert_eq!(
        (facts("worker"), facts("health")),
        (said["worker"].clone(), "passing".into())
    );
    let ps = cluster.tether().json(&["ps", "digits"]).await;
    assert_eq!(
        (&ps[0]["worker"], &ps[0]["phase"]),
        (&said["worker"], &"ready".into())
    );
    let pools = cluster.tether().json(&["pool", "ls"]).await;
    assert_eq!(
        (&pools[0]["pool"], &pools[0]["mode"], &pools[0]["ready"]),
        (&"digits".into(), &"registered".into(), &1.into())
    );
    let scaled = cluster
        .tether()
        .run(&["pool", "scale", "digits", "3"])
        .await;
    assert!(
        scaled.err.contains("were registered by others"),
        "{}",
        scaled.err
    );

    registrar.signal(Signal::KILL);
    let killed = Instant::now();
    registrar.ended().await;
    // Last heard a beat before that at most; its holder's side of the lease is over first.
    let (_, lasted) = eventually("it is withdrawn", async || {
        registrations(&cluster).await.is_empty().then_some(())
    })
    .await;
    assert!(
        killed.elapsed() >= TTL * 5 / 6,
        "withdrawn after {lasted:?}, before the lease was over"
    );
    eventually("no call goes there", async || {
        (call(&cluster, "digits").await == Err(Some(Reason::NoWorkerReady))).then_some(())
    })
    .await;
    let events = cluster
        .tether()
        .json_lines(&["events", "--pool", "digits"])
        .await;
    let died = events
        .iter()
        .find(|event| event["kind"] == "WORKER_DIED")
        .unwrap();
    assert_eq!(
        (&died["worker"], &died["death"]["cause"]),
        (&said["worker"], &"LEASE_EXPIRED".into())
    );
    // It lives: only nobody stands for it any more.
    assert!(std::fs::metadata(format!("/proc/{}", worker.pid())).is_ok());
}

#[tokio::test]
async fn a_registration_outlives_arbiter_and_gateway_and_is_withdrawn_in_good_order() {
    let mut cluster = Cluster::start().await;
    let worker = ByHand::start(cluster.dir(), "one");
    let args = [
        "digits",
        &worker.address(),
        "--name",
        "one",
        "--ttl",
        "60s",
        "--drain",
        "1s",
        "--check",
        "tcp",
    ];
    let mut registrar = Registrar::start(&cluster.tether(), &args);
    let said = registrar.says("registered").await;

    cluster.kill().await;
    cluster.up().await;

    // At once, and not when it has beaten again: the store knows it.
    let listed = registrations(&cluster).await;
    assert_eq!(listed[0]["worker"], said["worker"]);
    eventually("calls reach it", async || {
        call(&cluster, "digits").await.ok()
    })
    .await;
    let before = listed[0]["remaining_ms"].as_u64().unwrap();
    eventually("it beats again", async || {
        let left = registrations(&cluster).await[0]["remaining_ms"].as_u64()?;
        (left > before).then_some(())
    })
    .await;

    registrar.signal(Signal::TERM);
    eventually("it drains first", async || {
        (registrations(&cluster).await[0]["draining"] == true).then_some(())
    })
    .await;
    assert_eq!(
        registrar.says("deregistered").await["worker"],
        said["worker"]
    );
    assert_eq!(registrar.ended().await, Some(0));
    assert_eq!(registrations(&cluster).await, Vec::<Value>::new());
    let events = cluster
        .tether()
        .json_lines(&["events", "--pool", "digits"])
        .await;
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["WORKER_REGISTERED", "WORKER_DEREGISTERED"]);
}

#[tokio::test]
async fn a_worker_that_does_not_answer_takes_no_new_calls_until_it_does() {
    let cluster = Cluster::start().await;
    let worker = ByHand::start(cluster.dir(), "one");
    let args = [
        "digits",
        &worker.address(),
        "--check-interval",
        "500ms",
        "--check-failures",
        "2",
    ];
    let mut registrar = Registrar::start(&cluster.tether(), &args);
    registrar.says("registered").await;

    kill(worker.pid(), Signal::STOP);
    registrar.notes("takes no new calls").await;
    eventually("it is told", async || {
        (registrations(&cluster).await[0]["health"] == "failing").then_some(())
    })
    .await;
    eventually("calls are refused", async || {
        (call(&cluster, "digits").await == Err(Some(Reason::Draining))).then_some(())
    })
    .await;

    kill(worker.pid(), Signal::CONT);
    registrar.notes("it serves again").await;
    eventually("calls reach it", async || {
        call(&cluster, "digits").await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_name_and_an_address_are_given_to_one_at_a_time() {
    let cluster = Cluster::start().await;
    let worker = ByHand::start(cluster.dir(), "one");
    let client = cluster.client();
    let registrant = |pool: &str, name: &str, address: &str| Registrant {
        pool: pool.parse().unwrap(),
        name: name.parse().unwrap(),
        address: address.parse().unwrap(),
        protocol: String::new(),
        ttl: Some(Duration::from_secs(60)),
    };
    let ask = async |pool: &str, name: &str, address: &str| {
        let asked = client.register(registrant(pool, name, address), Condition::default());
        asked
            .await
            .map_err(|problem| (problem.reason.unwrap(), problem.facts))
    };
    let taken = |what: &str| {
        (
            Reason::RegistrationTaken,
            vec![("taken".to_owned(), what.to_owned())],
        )
    };
    let first = ask("digits", "one", &worker.address()).await.unwrap();
    assert_eq!(first.worker().slot, 0);

    assert_eq!(
        ask("digits", "one", "10.0.0.1:1").await.unwrap_err(),
        taken("name")
    );
    assert_eq!(
        ask("digits", "two", &worker.address()).await.unwrap_err(),
        taken("address")
    );
    assert_eq!(
        ask("other", "one", &worker.address()).await.unwrap_err(),
        taken("address")
    );
    let refused = ask("digits", "two", "0.0.0.0:1").await.unwrap_err();
    assert_eq!(refused.0, Reason::ConfigInvalid);

    // Agents and registrations share no pool, whoever was first.
    let file = cluster.pool_file("digits", "independent", 1, "worker.py", "", "");
    let applied = cluster
        .tether()
        .run(&[
            "pool",
            "apply",
            "-f",
            &file.display().to_string(),
            "--owner",
            "beam",
        ])
        .await;
    assert!(
        applied.err.contains("workers that were registered"),
        "{}",
        applied.err
    );
    let file = cluster.pool_file("run", "coupled", 1, "worker.py", "", "");
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let refused = ask("run", "one", "10.0.0.1:1").await.unwrap_err();
    assert_eq!(refused.0, Reason::ModeForbids);

    // The command waits for its turn.
    let args = [
        "other",
        &worker.address(),
        "--name",
        "next",
        "--check",
        "none",
    ];
    let mut next = Registrar::start(&cluster.tether(), &args);
    next.notes("is registered already").await;
    let before = first.epoch().0;
    first.close().await.unwrap();
    let said = next.says("registered").await;
    assert!(said["epoch"].as_u64().unwrap() > before);
    eventually("calls reach it", async || {
        call(&cluster, "other").await.ok()
    })
    .await;
}
