//! What a pool is promised beyond its mode, with real processes: order, spares, recycling, rates.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use tether_proto::{common::WorkerPhase, worker::Worker};
use tether_tests::{
    Cluster, Ran, Setup, digits::PredictRequest, digits_client, eventually, held_out, kill,
};

const STOP: &str = "[template.digits.stop]\ngrace = \"500ms\"";

async fn apply(cluster: &Cluster, pool: &str, size: u32, template: &str, more: &str) {
    let file = pool_file(cluster, pool, size, template, more);
    let ran = try_apply(cluster, &file).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

async fn try_apply(cluster: &Cluster, file: &Path) -> Ran {
    let file = file.display().to_string();
    let args = ["pool", "apply", "--owner", "ops", "--file", &file];
    cluster.tether().run(&args).await
}

fn pool_file(cluster: &Cluster, pool: &str, size: u32, template: &str, more: &str) -> PathBuf {
    let template = format!("{STOP}\n{template}");
    cluster.pool_file(pool, "independent", size, "worker.py", &template, more)
}

async fn ready(cluster: &Cluster, pool: &str, count: usize) -> Vec<Worker> {
    let what = format!("{count} workers of `{pool}` are ready");
    let (workers, _) = eventually(&what, async || {
        let workers = cluster.workers(pool).await;
        let ready = |worker: &&Worker| worker.phase() == WorkerPhase::Ready;
        (workers.iter().filter(ready).count() == count).then_some(workers)
    })
    .await;
    workers
}

async fn events(cluster: &Cluster, kind: &str) -> Vec<Value> {
    let events = cluster.tether().json_lines(&["events"]).await;
    let of_kind = |event: &Value| event["kind"] == kind;
    events.into_iter().filter(of_kind).collect()
}

async fn deaths(cluster: &Cluster, count: usize) -> Vec<Value> {
    let (deaths, _) = eventually("the deaths are recorded", async || {
        let deaths = events(cluster, "WORKER_DIED").await;
        (deaths.len() >= count).then_some(deaths)
    })
    .await;
    deaths
}

async fn delete(cluster: &Cluster, pool: &str) {
    let ran = cluster.tether().run(&["pool", "rm", pool]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

fn revision(event: &Value) -> u64 {
    event["revision"].as_u64().unwrap()
}

#[tokio::test]
async fn pools_start_after_those_they_depend_on_and_end_before_them() {
    let cluster = Cluster::start().await;
    let web = pool_file(&cluster, "web", 1, "", "depends_on = [\"db\"]");
    let refused = try_apply(&cluster, &web).await;
    assert_ne!(refused.code, Some(0));
    assert!(
        refused
            .err
            .contains("there is no pool `db`; apply that one first"),
        "{}",
        refused.err
    );

    apply(&cluster, "db", 1, "", "").await;
    apply(&cluster, "web", 1, "", "depends_on = [\"db\"]").await;
    ready(&cluster, "web", 1).await;
    let order: Vec<_> = events(&cluster, "WORKER_READY")
        .await
        .iter()
        .chain(&events(&cluster, "WORKER_STARTED").await)
        .map(|event| {
            (
                revision(event),
                event["kind"].clone(),
                event["worker"].clone(),
            )
        })
        .collect();
    let of = |kind: &str, pool: &str| {
        let found = order
            .iter()
            .find(|(_, its, worker)| *its == kind && worker.to_string().contains(pool));
        found.unwrap().0
    };
    assert!(
        of("WORKER_READY", "db") < of("WORKER_STARTED", "web"),
        "{order:?}"
    );

    delete(&cluster, "web").await;
    delete(&cluster, "db").await;
    let deaths = deaths(&cluster, 2).await;
    let pools: Vec<_> = deaths
        .iter()
        .map(|death| death["worker"].to_string())
        .collect();
    assert!(
        pools[0].contains("web") && pools[1].contains("db"),
        "{pools:?}"
    );
    let ending = events(&cluster, "WORKER_ENDING").await;
    let db = ending
        .iter()
        .find(|event| event["worker"].to_string().contains("db"));
    assert!(revision(db.unwrap()) > revision(&deaths[0]), "{ending:?}");
    cluster.no_orphans().await;
}

#[tokio::test]
async fn a_spare_answers_while_the_worker_it_stands_in_for_starts_anew() {
    let cluster = Cluster::start().await;
    // Long enough that an answer before it is the spare's.
    let slow = "[template.digits.restart]\ndelay = \"3s\"";
    apply(&cluster, "digits", 1, slow, "spares = 1").await;
    let workers = ready(&cluster, "digits", 2).await;
    let mut client = digits_client(cluster.client().channel(), "digits");
    let digit = held_out(1).remove(0);
    let mut predict = async || {
        let pixels = digit.pixels.clone();
        client.predict(PredictRequest { pixels }).await
    };
    eventually("a worker answers", async || predict().await.ok()).await;

    kill(workers[0].pid, Signal::KILL);

    eventually("its place is empty", async || {
        let workers = cluster.workers("digits").await;
        (workers[0].phase() != WorkerPhase::Ready).then_some(())
    })
    .await;
    // The gateway hears of it a moment after the arbiter's commit; until then a call is refused unsent.
    eventually("its spare answers", async || match predict().await {
        Ok(answer) => Some(answer),
        Err(status) => {
            assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
            None
        }
    })
    .await;
    let answered_by_spare = cluster.workers("digits").await[0].phase() != WorkerPhase::Ready;
    let workers = ready(&cluster, "digits", 2).await;
    assert!(
        answered_by_spare,
        "Python takes hundreds of milliseconds to start, a spare none"
    );
    assert_eq!((workers[0].restarts, workers[1].restarts), (1, 0));
    delete(&cluster, "digits").await;
    cluster.no_orphans().await;
}

#[tokio::test]
async fn workers_that_are_recycled_cost_no_call() {
    let cluster = Cluster::start().await;
    let recycle = "[template.digits.restart]\nmax_restarts = 0\n[template.digits.recycle]\nmax_lifetime = \"3s\"";
    apply(&cluster, "digits", 1, recycle, "spares = 1").await;
    ready(&cluster, "digits", 2).await;
    let mut client = digits_client(cluster.client().channel(), "digits");
    let digit = held_out(1).remove(0);

    let mut calls = 0;
    let (deaths, _) = eventually("three are recycled", async || {
        for _ in 0..20 {
            let pixels = digit.pixels.clone();
            let answer = client.predict(PredictRequest { pixels }).await;
            assert!(answer.is_ok(), "after {calls} calls: {answer:?}");
            calls += 1;
        }
        let deaths = events(&cluster, "WORKER_DIED").await;
        (deaths.len() >= 3).then_some(deaths)
    })
    .await;

    for death in &deaths {
        assert_eq!(death["death"]["cause"], "RECYCLED", "{death}");
    }
    assert!(events(&cluster, "WORKER_CRASH_LOOP").await.is_empty());
    delete(&cluster, "digits").await;
    cluster.no_orphans().await;
}

#[tokio::test]
async fn workers_are_replaced_after_their_calls_and_no_call_fails_by_it() {
    let mut cluster = Cluster::start().await;
    let recycle =
        "[template.digits.restart]\nmax_restarts = 0\n[template.digits.recycle]\nmax_calls = 10";
    apply(&cluster, "digits", 1, recycle, "spares = 1").await;
    ready(&cluster, "digits", 2).await;
    let mut client = digits_client(cluster.client().channel(), "digits");
    let digit = held_out(1).remove(0);

    let mut calls = 0;
    let (deaths, _) = eventually("three are recycled", async || {
        for _ in 0..20 {
            let pixels = digit.pixels.clone();
            let answer = client.predict(PredictRequest { pixels }).await;
            assert!(answer.is_ok(), "after {calls} calls: {answer:?}");
            calls += 1;
        }
        let deaths = events(&cluster, "WORKER_DIED").await;
        (deaths.len() >= 3).then_some(deaths)
    })
    .await;

    for death in &deaths {
        assert_eq!(death["death"]["cause"], "RECYCLED", "{death}");
    }
    assert!(calls >= 10 * deaths.len(), "none before its time: {calls}");
    let ending = events(&cluster, "WORKER_ENDING").await;
    let said = |event: &&Value| {
        event["text"]
            .to_string()
            .contains("reached its `max_calls`")
    };
    assert!(ending.iter().filter(said).count() >= 3, "{ending:?}");
    assert!(events(&cluster, "WORKER_CRASH_LOOP").await.is_empty());
    delete(&cluster, "digits").await;
    cluster.no_orphans().await;
    assert_eq!(
        cluster.stop().await,
        Some(0),
        "with the stream of counts open"
    );
}

/// A call to a pool of size 0 has the arbiter raise it, and waits for the worker. One that nobody named stays asleep.
#[tokio::test]
async fn a_call_wakes_a_pool_of_size_0_and_waits_for_its_worker() {
    let cluster = Setup::default()
        .set("gateway.pools.digits.wake", "1")
        .start()
        .await;
    apply(&cluster, "digits", 0, "", "").await;
    apply(&cluster, "asleep", 0, "", "").await;
    let digit = &held_out(1)[0];
    let call = async |pool: &str| {
        let pixels = digit.pixels.clone();
        let mut client = digits_client(cluster.client().channel(), pool);
        client.predict(PredictRequest { pixels }).await
    };
    eventually("the pools are known", async || {
        let asleep = call("asleep").await.unwrap_err();
        asleep.message().contains("no worker of pool").then_some(())
    })
    .await;

    let (first, second) = tokio::join!(call("digits"), call("digits"));
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    assert_eq!(ready(&cluster, "digits", 1).await.len(), 1);
    assert!(cluster.workers("asleep").await.is_empty());

    let ran = cluster
        .tether()
        .run(&["pool", "scale", "digits", "0"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ready(&cluster, "digits", 0).await;
    eventually("it is woken again", async || call("digits").await.ok()).await;
}
