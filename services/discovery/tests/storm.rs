//! A registry that was away: what its replicas of discovery do meanwhile, and with what load they come back.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

mod support;

use std::time::Duration;

use prost::Message as _;
use support::{Messages, PATIENCE, Running, start};
use tether_discovery::Config;
use tether_etcd_cluster::{Cluster, Setup};
use tether_proto::common::{Endpoint, WorkerRef};
use tether_store::{Txn, keys, open};
use tether_types::PoolName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const REPLICAS: usize = 20;

const ENDPOINTS: u32 = 2_000;

/// How long it is away, in seconds; `TETHER_REGISTRY_AWAY=600` for the long run.
fn away() -> Duration {
    let wished = std::env::var("TETHER_REGISTRY_AWAY").ok();
    let wished = wished.and_then(|wished| wished.parse().ok());
    Duration::from_secs(wished.unwrap_or(5))
}

/// What clients have asked etcd since it started, by its own count.
async fn asked(etcd: &mut Cluster) -> f64 {
    let mut stream = TcpStream::connect(etcd.member(0).address()).await.unwrap();
    let request = b"GET /metrics HTTP/1.0\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let counts = text
        .lines()
        .filter(|line| line.starts_with("grpc_server_started_total"));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    counts.sum()
}

async fn until(watch: &mut Messages, within: Duration, is: impl Fn(u64) -> bool) {
    let waiting = async { while !is(watch.any().await.source_age_ms) {} };
    let waited = tokio::time::timeout(within, waiting).await;
    waited.expect("the age of the knowledge is told");
}

#[tokio::test]
async fn replicas_keep_what_they_know_and_come_back_with_no_more_load_than_they_began_with() {
    let mut etcd = Setup::members(1).start().await;
    let writer = open(&etcd.url("tether")).await.unwrap();
    let pool = PoolName::new("train").unwrap();
    for first in (0..ENDPOINTS).step_by(50) {
        let puts = (first..first + 50).fold(Txn::new(), |txn, slot| {
            let endpoint = Endpoint {
                worker: Some(WorkerRef {
                    pool: pool.to_string(),
                    slot,
                    incarnation: 1,
                }),
                address: format!("10.0.0.1:{}", slot + 1),
                node: "n1".to_owned(),
                ..Endpoint::default()
            };
            txn.put(keys::endpoint(&pool, slot), endpoint.encode_to_vec())
        });
        writer.commit(puts).await.unwrap();
    }
    let before = asked(&mut etcd).await;
    let mut replicas: Vec<(Running, Messages)> = Vec::new();
    for _ in 0..REPLICAS {
        let config = Config {
            sign_of_life: Duration::from_millis(200),
            ..Config::default()
        };
        let running = start(config, open(&etcd.url("tether")).await.unwrap()).await;
        let mut watch = running.watch("", None).await;
        let first = watch.next().await;
        assert_eq!(first.upserts.len(), ENDPOINTS as usize);
        replicas.push((running, watch));
    }
    let began = asked(&mut etcd).await - before;

    etcd.member(0).kill();
    for (_, watch) in &mut replicas {
        until(watch, PATIENCE, |age| age > 0).await;
    }
    let long = u64::try_from(away().as_millis()).unwrap();
    for (running, watch) in &mut replicas {
        until(watch, away() + PATIENCE, |age| age >= long).await;
        let newcomer = running.watch("train", None).await.any().await;
        assert_eq!(newcomer.upserts.len(), ENDPOINTS as usize, "calls go on");
        assert!(newcomer.source_age_ms >= long);
    }
    etcd.restart(0).await;
    for (_, watch) in &mut replicas {
        until(watch, PATIENCE, |age| age == 0).await;
    }
    let back = asked(&mut etcd).await;

    assert!(
        began >= 2.0 * REPLICAS as f64,
        "each lists and watches: {began}"
    );
    assert!(
        back <= 2.0 * began,
        "{REPLICAS} replicas came back with {back} requests, and had begun with {began}"
    );
}
