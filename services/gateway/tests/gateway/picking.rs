//! Which worker gets a call, and what is said when none can.

use std::{num::NonZeroU32, time::Duration};

use tether_gateway::{Breaker, Config};
use tether_proto::common::Endpoint;
use tonic::Code;

use crate::{
    calls::silent_worker,
    client::next,
    discovery::worker,
    house::{DIGITS, House, UNARY, fact, reason, retry_delay},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_never_sent_goes_to_another_worker() {
    let house = House::open().await;
    let echo = house.worker(0).await;
    let client = house.client().await;
    // Nobody listens there, and affinity prefers it for some keys.
    let empty = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = empty.local_addr().unwrap().to_string();
    drop(empty);
    house.discovery.up(worker("digits", 1, 1), &address, false);
    let unreachable = async || {
        let pinned = [("tether-worker", "digits/1")];
        let status = client.unary(UNARY, &pinned, "").await.unwrap_err();
        status.message().contains("cannot connect")
    };
    house.until("the empty slot is known", unreachable).await;

    for key in 0..40 {
        let key = format!("key-{key}");
        let metadata = [DIGITS[0], ("tether-affinity", key.as_str())];
        client.unary(UNARY, &metadata, "a").await.unwrap();
    }

    assert_eq!(echo.calls(), 40);
}

/// The head of an answer is no sign of health: a failure is often in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_trial_that_fails_with_its_head_leaves_the_breaker_open() {
    let house = House::with(Config {
        breaker: Breaker {
            failure_threshold: NonZeroU32::MIN,
            open_for: Duration::from_secs(1),
            codes: vec!["UNIMPLEMENTED".to_owned()],
            ..Breaker::default()
        },
        ..Config::default()
    })
    .await;
    // Its first call fails like this, and opens the breaker.
    let _echo = house.worker(0).await;
    let client = house.client().await;
    let fails = async || {
        client
            .unary("/test.Echo/None", DIGITS, "")
            .await
            .unwrap_err()
    };
    assert_eq!(reason(&fails().await), "BREAKER_OPEN");

    let tried = async || fails().await.code() == Code::Unimplemented;
    house.until("it is tried again", tried).await;

    assert_eq!(reason(&fails().await), "BREAKER_OPEN");
}

/// A stream that is refused was not begun with, so that the call may be sent again, and is executed once.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_a_worker_refuses_goes_to_another_with_all_of_its_request() {
    let house = House::open().await;
    let (refuses, _seen) = silent_worker(&house).await;
    let echo = house.worker(1).await;
    let client = house.client().await;
    let long = vec![7; 40_000];

    for key in 0..40 {
        let key = format!("key-{key}");
        let metadata = [DIGITS[0], ("tether-affinity", key.as_str())];
        let answer = client.unary(UNARY, &metadata, long.clone()).await.unwrap();
        assert_eq!(answer.into_inner(), long);
    }
    assert_eq!(echo.calls(), 40);

    let pinned = [("tether-worker", "digits/0")];
    let status = client.unary(UNARY, &pinned, "a").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        fact(&status, "outcome").as_deref(),
        Some("refused"),
        "{status}"
    );
    let shown = |key| {
        status
            .metadata()
            .get(key)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(shown("tether-outcome"), "refused");
    assert_eq!(shown("tether-worker"), "digits/0.1");
    assert_eq!(shown("tether-attempts"), "1");
    refuses.abort();
}

/// An ending worker is taken away before its death is recorded, and its spare steps in with that.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_an_ending_worker_never_got_goes_to_the_spare_that_steps_in() {
    let config = Config {
        death_wait: Duration::from_secs(60),
        ..Config::default()
    };
    let house = House::with(config).await;
    let spare = house.worker(0).await;
    // It listens no more, which is the first that one sees of a worker that is ending.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ending = closed.local_addr().unwrap().to_string();
    drop(closed);
    let client = house.client().await;
    let pinned = [("tether-worker", "digits/0")];
    let is_spare = async || {
        let status = client.unary(UNARY, &pinned, "").await.err();
        status.is_some_and(|status| reason(&status) == "DRAINING")
    };
    house.discovery.up(worker("digits", 1, 1), &ending, false);
    house
        .discovery
        .up(worker("digits", 0, 1), &spare.address, true);
    house.until("the spare is known as one", is_spare).await;
    let before = spare.calls();

    let mut call = Box::pin(client.unary(UNARY, DIGITS, "a"));
    assert!(futures::poll!(&mut call).is_pending());
    // An answer to a later call shows that the gateway has begun with the earlier one.
    assert!(is_spare().await);
    house.discovery.gone(worker("digits", 1, 1), None);
    house
        .discovery
        .up(worker("digits", 0, 1), &spare.address, false);

    call.await.unwrap();
    assert_eq!(spare.calls() - before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_received_says_so() {
    let config = Config {
        death_wait: Duration::from_millis(50),
        ..Config::default()
    };
    let house = House::with(config).await;
    let mut echo = house.worker(0).await;
    let client = house.client().await;
    client.unary(UNARY, DIGITS, "").await.unwrap();
    echo.kill();

    let unconnected = async || {
        let status = client.unary(UNARY, DIGITS, "").await.unwrap_err();
        fact(&status, "outcome").as_deref() == Some("never_sent")
    };
    house
        .until("the connection is known to be gone", unconnected)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_affinity_key_stays_with_one_worker_and_pins_are_kept() {
    let house = House::open().await;
    let workers = [
        house.worker(0).await,
        house.worker(1).await,
        house.worker(2).await,
    ];
    let client = house.client().await;

    let metadata = [DIGITS[0], ("tether-affinity", "session-42")];
    for _ in 0..30 {
        client.unary(UNARY, &metadata, "").await.unwrap();
    }
    let mut calls = workers.each_ref().map(|worker| worker.calls());
    calls.sort_unstable();
    assert_eq!(calls, [0, 0, 30]);

    let before = workers[1].calls();
    for _ in 0..10 {
        client
            .unary(UNARY, &[("tether-worker", "digits/1.1")], "")
            .await
            .unwrap();
    }
    assert_eq!(workers[1].calls() - before, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_loaded_worker_is_picked() {
    let house = House::open().await;
    let (busy, idle) = (house.worker(0).await, house.worker(1).await);
    let client = house.client().await;
    let pinned = [("tether-worker", "digits/0")];
    let mut stream = client
        .server_stream("/test.Echo/OneThenHang", &pinned, "a")
        .await
        .unwrap();
    next(&mut stream).await.unwrap();

    for _ in 0..20 {
        client.unary(UNARY, DIGITS, "").await.unwrap();
    }

    assert_eq!((busy.calls(), idle.calls()), (1, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_breaker_opens_after_five_failures_and_closes_after_a_good_call() {
    let open_for = Duration::from_millis(300);
    let config = Config {
        breaker: Breaker {
            open_for,
            ..Breaker::default()
        },
        ..Config::default()
    };
    assert_eq!(
        config.breaker.failure_threshold,
        NonZeroU32::new(5).unwrap()
    );
    let house = House::with(config).await;
    let echo = house.worker(0).await;
    let client = house.client().await;

    for _ in 0..5 {
        let failing = [DIGITS[0], ("x-fail", "13")];
        let status = client.unary(UNARY, &failing, "").await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
    }
    let status = client.unary(UNARY, DIGITS, "").await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Unavailable, "BREAKER_OPEN")
    );
    assert!(retry_delay(&status).unwrap() <= open_for);
    assert_eq!(echo.calls(), 5);

    let answered = async || client.unary(UNARY, DIGITS, "").await.is_ok();
    house.until("the breaker closes", answered).await;
    assert_eq!(echo.calls(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_are_the_callers_doing_do_not_open_the_breaker() {
    let house = House::open().await;
    let echo = house.worker(0).await;
    let client = house.client().await;

    for code in [
        "1", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "16",
    ] {
        let failing = [DIGITS[0], ("x-fail", code)];
        client.unary(UNARY, &failing, "").await.unwrap_err();
    }

    client.unary(UNARY, DIGITS, "").await.unwrap();
    assert_eq!(echo.calls(), 13);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_finishes_its_calls_and_gets_no_more() {
    let house = House::open().await;
    let echo = house.worker(0).await;
    let client = house.client().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut under_way = client
        .bidi("/test.Echo/Bidi", DIGITS, messages)
        .await
        .unwrap();

    house
        .discovery
        .up(worker("digits", 0, 1), &echo.address, true);
    let draining = async || match client.unary(UNARY, DIGITS, "").await {
        Ok(_) => false,
        Err(status) => reason(&status) == "DRAINING",
    };
    house.until("the drain is known", draining).await;
    house.discovery.gone(worker("digits", 0, 1), None);
    let gone = async || {
        let status = client.unary(UNARY, DIGITS, "").await.unwrap_err();
        reason(&status) == "NO_WORKER_READY"
    };
    house.until("the removal is known", gone).await;

    sender.send("still here".into()).await.unwrap();
    assert_eq!(next(&mut under_way).await.unwrap().unwrap(), "still here");
    drop(sender);
    assert!(next(&mut under_way).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_pool_is_answered_with_those_that_are_known() {
    let house = House::open().await;
    let client = house.client().await;

    let status = client
        .unary(UNARY, &[("tether-pool", "digit")], "")
        .await
        .unwrap_err();

    assert_eq!(
        (status.code(), reason(&status)),
        (Code::NotFound, "UNKNOWN_POOL")
    );
    assert_eq!(
        status.message(),
        "no pool is named `digit`: known are `digits`"
    );
}

/// No agent runs them, so that their numbers have no order.
#[tokio::test(flavor = "multi_thread")]
async fn who_took_over_an_address_gets_no_call_that_was_meant_for_the_one_before() {
    let house = House::open().await;
    let second = house.worker(7).await;
    house.tell(7, 9, &second.address).await;
    let client = house.client().await;

    // Lower than the number of before, as one in two is.
    house.discovery.gone(worker("digits", 7, 9), None);
    house.tell(7, 4, &second.address).await;

    let before = second.calls();
    let status = client
        .unary(UNARY, &[("tether-worker", "digits/7.9")], "")
        .await
        .unwrap_err();
    assert_eq!(
        (reason(&status), status.code()),
        ("UNKNOWN_WORKER", Code::NotFound)
    );
    assert!(status.message().contains("of incarnation 4"), "{status:?}");
    assert_eq!(second.calls(), before);
    for pinned in ["digits/7.4", "digits/7"] {
        client
            .unary(UNARY, &[("tether-worker", pinned)], "")
            .await
            .unwrap();
    }
    assert_eq!(second.calls(), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_the_gateway_itself_is_found_out_and_left_alone() {
    let house = House::open().await;
    let client = house.client().await;
    house
        .discovery
        .up(worker("digits", 1, 1), &house.address, false);
    let pinned = [("tether-worker", "digits/1")];
    let came_back = async || {
        let status = client.unary(UNARY, &pinned, "").await.unwrap_err();
        status.message().contains("came back") && status.message().contains("`digits`")
    };
    house.until("the loop is found out", came_back).await;

    // And its breaker opens, so that calls go where somebody serves.
    let is_open = async || {
        let status = client.unary(UNARY, &pinned, "").await.unwrap_err();
        reason(&status) == "BREAKER_OPEN"
    };
    house.until("its breaker is open", is_open).await;
    let echo = house.worker(0).await;
    for _ in 0..10 {
        client.unary(UNARY, DIGITS, "a").await.unwrap();
    }
    assert_eq!(echo.calls(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_discovery_tells_may_be_as_large_as_there_is_to_tell() {
    let house = House::open().await;
    let odd = Endpoint {
        worker: Some(worker("large", 1, 1)),
        address: "127.0.0.1:1".to_owned(),
        zone: "z".repeat(9 << 20),
        ..Endpoint::default()
    };

    house.discovery.tell(odd);

    // What is told after it comes through.
    let echo = house.worker(0).await;
    house
        .client()
        .await
        .unary(UNARY, DIGITS, "a")
        .await
        .unwrap();
    assert!(echo.calls() >= 1);
}
