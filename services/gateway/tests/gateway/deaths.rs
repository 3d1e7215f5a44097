//! What a caller is told when its worker dies.

use std::time::{Duration, Instant};

use tether_gateway::Config;
use tonic::Code;

use crate::{
    client::next,
    discovery::{sigkill, worker},
    house::{DIGITS, House, UNARY, fact, reason, retry_delay},
    worker::reached,
};

fn patient() -> Config {
    Config {
        death_wait: Duration::from_secs(5),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_in_the_middle_of_a_stream_is_named_in_the_trailers() {
    let house = House::with(patient()).await;
    let mut echo = house.worker(2).await;
    let client = house.client().await;
    let mut stream = client
        .server_stream("/test.Echo/OneThenHang", DIGITS, "a")
        .await
        .unwrap();
    next(&mut stream).await.unwrap();

    echo.kill();
    house
        .discovery
        .gone(worker("digits", 2, 1), Some(sigkill()));

    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Unavailable, "WORKER_DIED")
    );
    let text = "worker `digits/2.1` died during the call: SIGNALED by signal 9 from outside Tether; see `tether events`";
    assert_eq!(status.message(), text);
    let facts = ["worker", "incarnation", "cause", "signal", "outcome"];
    let told = facts.map(|key| fact(&status, key).unwrap());
    assert_eq!(told, ["digits/2.1", "1", "SIGNALED", "9", "started"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_before_the_answer_is_named_in_the_headers() {
    let house = House::with(patient()).await;
    let mut echo = house.worker(0).await;
    let client = house.client().await;
    let call = tokio::spawn(async move { client.unary("/test.Echo/Hang", DIGITS, "").await });
    reached(&echo.seen.calls, 1).await;

    echo.kill();
    house
        .discovery
        .gone(worker("digits", 0, 1), Some(sigkill()));

    let status = call.await.unwrap().unwrap_err();
    assert_eq!(reason(&status), "WORKER_DIED");
    assert_eq!(fact(&status, "cause").unwrap(), "SIGNALED");
}

/// A machine that vanished closes no connection; the word of its death has to end the calls.
#[tokio::test(flavor = "multi_thread")]
async fn the_word_of_a_death_ends_calls_whose_connection_looks_well() {
    let house = House::with(patient()).await;
    let echo = house.worker(0).await;
    let client = house.client().await;
    let mut stream = client
        .server_stream("/test.Echo/OneThenHang", DIGITS, "a")
        .await
        .unwrap();
    next(&mut stream).await.unwrap();

    house
        .discovery
        .gone(worker("digits", 0, 1), Some(sigkill()));

    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(fact(&status, "cause").unwrap(), "SIGNALED");
    reached(&echo.seen.cancelled, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_without_a_reported_death_says_so_in_time() {
    let config = Config {
        death_wait: Duration::from_millis(100),
        ..Config::default()
    };
    let house = House::with(config).await;
    let mut echo = house.worker(0).await;
    let client = house.client().await;
    let mut stream = client
        .server_stream("/test.Echo/OneThenHang", DIGITS, "a")
        .await
        .unwrap();
    next(&mut stream).await.unwrap();

    echo.kill();

    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(reason(&status), "WORKER_DIED");
    assert!(
        status
            .message()
            .starts_with("connection to worker `digits/0.1` lost")
    );
    assert_eq!(fact(&status, "cause").unwrap(), "UNKNOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_a_ready_worker_says_how_the_last_one_died() {
    let house = House::open().await;
    let mut echo = house.worker(0).await;
    let client = house.client().await;
    echo.kill();
    house
        .discovery
        .gone(worker("digits", 0, 1), Some(sigkill()));

    let refused = async || {
        let status = client.unary(UNARY, DIGITS, "").await.unwrap_err();
        reason(&status) == "NO_WORKER_READY"
    };
    house.until("the removal is known", refused).await;

    let status = client.unary(UNARY, DIGITS, "").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(retry_delay(&status), Some(Duration::from_secs(1)));
    assert!(
        status
            .message()
            .contains("`digits/0.1`: SIGNALED by signal 9"),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_how_old_the_knowledge_is_where_a_source_is_away_and_only_there() {
    let house = House::open().await;
    let client = house.client().await;
    let refused = async || client.unary(UNARY, DIGITS, "").await.unwrap_err();
    assert_eq!(fact(&refused().await, "knowledge_age_ms"), None);

    house.discovery.is_old(Some(Duration::from_secs(90)));
    let is_old = async || fact(&refused().await, "knowledge_age_ms").is_some();
    house.until("the age is known", is_old).await;
    let status = refused().await;
    assert_eq!(reason(&status), "NO_WORKER_READY");
    let age: u64 = fact(&status, "knowledge_age_ms").unwrap().parse().unwrap();
    assert!(age >= 90_000, "{age}");
    assert!(
        status
            .message()
            .contains("may be out of date, it was known 9"),
        "{status}"
    );

    house.discovery.is_old(None);
    let is_fresh = async || fact(&refused().await, "knowledge_age_ms").is_none();
    house.until("the source is back", is_fresh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_incarnation_takes_calls_as_soon_as_it_is_told() {
    let house = House::open().await;
    let mut first = house.worker(0).await;
    let client = house.client().await;
    first.kill();
    house
        .discovery
        .gone(worker("digits", 0, 1), Some(sigkill()));

    let second = crate::worker::Worker::start().await;
    let told = Instant::now();
    house.tell(0, 2, &second.address).await;
    client.unary(UNARY, DIGITS, "").await.unwrap();

    assert!(
        told.elapsed() < Duration::from_secs(1),
        "{:?}",
        told.elapsed()
    );
    let pinned = [("tether-worker", "digits/0.1")];
    let status = client.unary(UNARY, &pinned, "").await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::NotFound, "UNKNOWN_WORKER")
    );
}
