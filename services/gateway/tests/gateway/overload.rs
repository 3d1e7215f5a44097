//! What keeps calls from workers that would only be worse for them.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use tether_gateway::{Breaker, Config, PoolBreaker};
use tether_proto::gateway::{BreakerState, EjectRequest, SnapshotRequest};
use tonic::Code;

use crate::{
    client::soon,
    discovery::worker,
    house::{DIGITS, House, UNARY, fact, reason, retry_delay},
    queue::hold,
    worker::{Worker, reached},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_whose_workers_all_fail_is_left_alone_and_tried_again() {
    const OPEN: Duration = Duration::from_millis(300);
    let house = House::with(Config {
        breaker: Breaker {
            failure_threshold: NonZeroU32::MAX,
            window: 0,
            ..Breaker::default()
        },
        pool_breaker: PoolBreaker {
            failure_percent: 80,
            min_calls: 10,
            open_for: OPEN,
            ..PoolBreaker::default()
        },
        ..Config::default()
    })
    .await;
    let workers = [house.worker(0).await, house.worker(1).await];
    let client = house.client().await;
    let calls = || workers.iter().map(Worker::calls).sum::<u64>();
    let failing = [DIGITS[0], ("x-fail", "13")];
    let fails = async || client.unary(UNARY, &failing, "").await.unwrap_err();

    let began = Instant::now();
    let mut failed = 0;
    let refused = loop {
        let status = fails().await;
        if status.code() != Code::Internal {
            break status;
        }
        failed += 1;
        assert!(failed <= 100, "it is never left alone");
    };
    assert_eq!(reason(&refused), "BREAKER_OPEN", "{refused}");
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(fact(&refused, "outcome").as_deref(), Some("never_sent"));
    assert!(refused.message().contains("pool `digits`"), "{refused}");
    assert!(retry_delay(&refused).is_some_and(|delay| delay <= OPEN));
    assert_eq!(calls(), failed, "no worker has seen it");
    // It stays open until a call tries it.
    let mut control = house.control();
    let seen = control.snapshot(SnapshotRequest::default()).await.unwrap();
    let pools = seen.into_inner().routes.unwrap().pools;
    assert_eq!(pools[0].breaker(), BreakerState::Open);
    let request = EjectRequest {
        worker: Some(worker("digits", 1, 1)),
        ttl_ms: 1,
        ..EjectRequest::default()
    };
    let ejected = control.eject(request).await.unwrap();
    assert_eq!(
        ejected.get_ref().ready,
        0,
        "the other one takes none either"
    );

    let served = async || client.unary(UNARY, DIGITS, "").await.is_ok();
    house.until("it is tried again", served).await;
    assert!(began.elapsed() >= OPEN);
    assert_eq!(fails().await.code(), Code::Internal, "it is trusted again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_has_just_become_ready_is_spared() {
    const SLOW: Duration = Duration::from_secs(8);
    let house = House::with(Config {
        slow_start: SLOW,
        ..Config::default()
    })
    .await;
    let old = house.worker(0).await;
    // Its age is what counts: until that is a tenth of this time, none is newer than it.
    tokio::time::sleep(SLOW / 8).await;
    let new = house.worker(1).await;
    let client = house.client().await;
    let before = new.calls();

    for _ in 0..20 {
        client.unary(UNARY, DIGITS, "").await.unwrap();
    }

    assert_eq!((old.calls(), new.calls()), (20, before));
}

/// Where nobody knows how many calls a worker can take, it begins with one, and is given more as long as that does not
/// make it slower. A stream whose answer has begun is not in the way.
#[tokio::test(flavor = "multi_thread")]
async fn how_many_calls_a_worker_can_take_is_found_where_that_is_wanted() {
    let house = House::with(Config {
        pools: toml::from_str("[digits]\nadaptive = true").unwrap(),
        ..Config::default()
    })
    .await;
    let worker = house.worker(0).await;
    let client = house.client().await;
    let held = [hold(&client, DIGITS).await, hold(&client, DIGITS).await];

    // Its answer never begins: a second one would wait for it.
    let hangs = client.unary("/test.Echo/Hang", DIGITS, "");
    let mut hangs = Box::pin(hangs);
    assert!(futures::poll!(&mut hangs).is_pending());
    reached(&worker.seen.calls, 3).await;
    let metadata = [DIGITS[0], ("grpc-timeout", "50m")];
    let late = client.unary(UNARY, &metadata, "").await.unwrap_err();
    assert!(
        [Code::DeadlineExceeded, Code::Cancelled].contains(&late.code()),
        "{late}"
    );
    assert_eq!(worker.calls(), 3, "it has not seen it");
    drop(hangs);

    let calls = (0..50).map(|_| client.unary(UNARY, DIGITS, ""));
    let answers = soon("all are served", futures::future::join_all(calls)).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(worker.calls(), 53);
    let two = async || {
        let call = || client.unary("/test.Echo/Hang", &metadata, "");
        let before = worker.calls();
        let _ = tokio::join!(call(), call(), client.unary(UNARY, DIGITS, ""));
        worker.calls() >= before + 3
    };
    house.until("it is given several at a time", two).await;
    drop(held);
}
