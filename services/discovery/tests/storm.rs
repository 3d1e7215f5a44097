//! A registry that was away: what its replicas of discovery do meanwhile, and with what load they come back.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

mod support;

use std::{ops::Sub, time::Duration};

use prost::Message as _;
use support::{Messages, PATIENCE, Running, start};
use tether_discovery::Config;
use tether_etcd_cluster::{Loss, Member, REQUESTS, SENT, Setup};
use tether_proto::common::{Endpoint, WorkerRef};
use tether_store::{Txn, keys, open};
use tether_types::PoolName;
const REPLICAS: usize = 20;

const ENDPOINTS: u32 = 2_000;

/// One that hangs is given up after a silence of 9 s, and one more call.
const NOTICED: Duration = Duration::from_secs(30);

/// How long it is away, in seconds; `TETHER_REGISTRY_AWAY=600` for the long run.
fn away() -> Duration {
    let wished = std::env::var("TETHER_REGISTRY_AWAY").ok();
    let wished = wished.and_then(|wished| wished.parse().ok());
    Duration::from_secs(wished.unwrap_or(5))
}

/// What clients have asked of etcd, and how many bytes it has told them, by its own count.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    requests: f64,
    sent: f64,
}

impl Load {
    async fn of(etcd: &Member) -> Self {
        Self {
            requests: etcd.counted(REQUESTS).await,
            sent: etcd.counted(SENT).await,
        }
    }
}

impl Sub for Load {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            sent: self.sent - before.sent,
        }
    }
}

fn endpoint(pool: &PoolName, slot: u32) -> Endpoint {
    Endpoint {
        worker: Some(WorkerRef {
            pool: pool.to_string(),
            slot,
            incarnation: 1,
        }),
        address: format!("10.0.0.1:{}", slot + 1),
        node: "n1".to_owned(),
        ..Endpoint::default()
    }
}

async fn until(watch: &mut Messages, within: Duration, is: impl Fn(u64) -> bool) {
    let waiting = async { while !is(watch.any().await.source_age_ms) {} };
    let waited = tokio::time::timeout(within, waiting).await;
    waited.expect("the age of the knowledge is told");
}

#[expect(clippy::print_stdout, reason = "what was measured is the point")]
fn say(text: &str) {
    println!("{text}");
}

#[tokio::test]
async fn replicas_come_back_to_a_registry_that_was_dead_with_no_more_load_than_they_began_with() {
    come_back(Loss::Killed).await;
}

#[tokio::test]
async fn replicas_come_back_to_a_registry_that_hung_with_no_more_load_than_they_began_with() {
    come_back(Loss::Stopped).await;
}

async fn come_back(loss: Loss) {
    let mut etcd = Setup::members(1).start().await;
    let writer = open(&etcd.url("tether")).await.unwrap();
    let pool = PoolName::new("train").unwrap();
    for first in (0..ENDPOINTS).step_by(50) {
        let puts = (first..first + 50).fold(Txn::new(), |txn, slot| {
            let endpoint = endpoint(&pool, slot);
            txn.put(keys::endpoint(&pool, slot), endpoint.encode_to_vec())
        });
        writer.commit(puts).await.unwrap();
    }
    let before = Load::of(etcd.member(0)).await;
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
    let began = Load::of(etcd.member(0)).await - before;
    let before = match loss {
        // It counts from its start.
        Loss::Killed => Load::default(),
        Loss::Stopped => Load::of(etcd.member(0)).await,
    };

    etcd.lose(0, loss);
    for (_, watch) in &mut replicas {
        until(watch, NOTICED, |age| age > 0).await;
    }
    let long = u64::try_from(away().as_millis()).unwrap();
    for (running, watch) in &mut replicas {
        until(watch, away() + PATIENCE, |age| age >= long).await;
        let newcomer = running.watch("train", None).await.any().await;
        assert_eq!(newcomer.upserts.len(), ENDPOINTS as usize, "calls go on");
        assert!(newcomer.source_age_ms >= long);
    }
    etcd.bring_back(0, loss).await;
    for (_, watch) in &mut replicas {
        until(watch, PATIENCE, |age| age == 0).await;
    }
    // They follow again: what is written now reaches each of them.
    let txn = Txn::new().put(
        keys::endpoint(&pool, ENDPOINTS),
        endpoint(&pool, ENDPOINTS).encode_to_vec(),
    );
    writer.commit(txn).await.unwrap();
    for (_, watch) in &mut replicas {
        assert_eq!(watch.next().await.upserts.len(), 1);
    }
    let back = Load::of(etcd.member(0)).await - before;

    say(&format!(
        "{loss:?} for {:?}: {REPLICAS} replicas began with {began:?} and came back with {back:?}",
        away()
    ));
    assert!(
        began.requests >= 2.0 * REPLICAS as f64,
        "each lists and watches: {began:?}"
    );
    assert!(
        back.requests <= 2.0 * began.requests && back.sent <= 2.0 * began.sent,
        "{REPLICAS} replicas came back with {back:?}, and had begun with {began:?}"
    );
}
