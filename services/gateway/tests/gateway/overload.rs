//! What keeps calls from workers that would only be worse for them.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use tether_gateway::{Breaker, Config, PoolBreaker};
use tonic::Code;

use crate::{
    house::{DIGITS, House, UNARY, fact, reason, retry_delay},
    worker::Worker,
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
    // Until it is older than a tenth of that time, none is newer than it.
    tokio::time::sleep(SLOW / 8).await;
    let new = house.worker(1).await;
    let client = house.client().await;
    let before = new.calls();

    for _ in 0..20 {
        client.unary(UNARY, DIGITS, "").await.unwrap();
    }

    assert_eq!((old.calls(), new.calls()), (20, before));
}
