//! How a gateway ends: who is told, what may go on, and what those are told that may not.

use std::time::Duration;

use bytes::Bytes;
use tether_gateway::Config;
use tether_proto::gateway::{GatewayState, WatchRoutesRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    client::{Client, Metadata, next, soon},
    house::{DIGITS, House, UNARY, fact, reason},
    owners::Arbiter,
    worker::{Worker, reached},
};

const HANG: &str = "/test.Echo/OneThenHang";

/// A stream whose first message has come, and no other will.
async fn endless(client: &Client, metadata: Metadata<'_>) -> Streaming<Bytes> {
    let answers = client.server_stream(HANG, metadata, "a").await;
    let mut answers = answers.expect("a worker is free");
    next(&mut answers).await.expect("it answers");
    answers
}

async fn ended(house: &mut House) {
    let end = soon("the gateway's end", &mut house.serving).await;
    let end = end.expect("it does not panic");
    end.expect("it was told to");
}

fn assert_dismissed(status: &Status, outcome: &str) {
    assert_eq!(
        (status.code(), reason(status)),
        (Code::Unavailable, "DRAINING"),
        "{status}"
    );
    assert_eq!(fact(status, "outcome").as_deref(), Some(outcome));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_cut_are_told_how_far_they_got() {
    let config = Config {
        drain: Duration::from_millis(100),
        ..Config::default()
    };
    let mut house = House::with(config).await;
    let worker = house.worker(0).await;
    let client = house.client().await;
    let mut begun = endless(&client, DIGITS).await;
    let before = worker.calls();
    let hanging = tokio::spawn(async move { client.unary("/test.Echo/Hang", DIGITS, "").await });
    reached(&worker.seen.calls, before + 1).await;

    house.stop.cancel();

    let status = soon("its end", next(&mut begun)).await.unwrap_err();
    assert_dismissed(&status, "started");
    assert_eq!(fact(&status, "worker").as_deref(), Some("digits/0.1"));
    let status = soon("its end", hanging).await.unwrap().unwrap_err();
    assert_dismissed(&status, "sent_unknown");
    ended(&mut house).await;
    reached(&worker.seen.cancelled, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_read_does_not_hold_up_the_end() {
    let config = Config {
        drain: Duration::from_millis(50),
        ..Config::default()
    };
    let mut house = House::with(config).await;
    let worker = house.worker(0).await;
    let client = house.client().await;
    // Far more than the windows have room for.
    let many = "10000 10000";
    let unread = client.server_stream("/test.Echo/ServerStream", DIGITS, many);
    let unread = unread.await.unwrap();
    let before = worker.calls();
    assert!(before >= 1);

    house.stop.cancel();

    ended(&mut house).await;
    drop(unread);
}

/// Whether calls are taken over a connection that is new.
async fn takes_calls(house: &House) -> bool {
    let client = house.client().await;
    client.unary(UNARY, DIGITS, "").await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_is_told_while_calls_are_still_taken() {
    let arbiter = Worker::start().await;
    let config = Config {
        drain_notice: Duration::from_secs(3_600),
        ..Config::default()
    };
    let house = House::with_arbiter(config, &arbiter.address).await;
    let _worker = house.worker(0).await;
    let endpoint = Channel::from_shared(format!("http://{}", house.address)).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    let mut watch = watch.into_inner();
    let routes = house
        .control()
        .watch_routes(WatchRoutesRequest::default())
        .await;
    let mut routes = routes.unwrap().into_inner();
    while soon("health", watch.message())
        .await
        .unwrap()
        .unwrap()
        .status()
        != ServingStatus::Serving
    {}

    house.stop.cancel();

    let told = soon("health", watch.message()).await.unwrap().unwrap();
    assert_eq!(told.status(), ServingStatus::NotServing);
    loop {
        let word = soon("routes", routes.message()).await.unwrap().unwrap();
        if word.state() == GatewayState::Draining {
            break;
        }
    }
    assert!(takes_calls(&house).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_its_health_does_not_hold_up_the_end() {
    let mut house = House::open().await;
    let endpoint = Channel::from_shared(format!("http://{}", house.address)).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    let mut watch = watch.into_inner();
    soon("health", watch.message()).await.unwrap().unwrap();

    house.stop.cancel();

    // Not even for as long as calls to workers are waited for.
    let within = Config::default().drain / 2;
    let end = tokio::time::timeout(within, &mut house.serving).await;
    end.unwrap().unwrap().unwrap();
    let status = loop {
        match soon("the end", watch.message()).await {
            Ok(word) => assert_eq!(word.unwrap().status(), ServingStatus::NotServing),
            Err(status) => break status,
        }
    };
    assert_dismissed(&status, "never_sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_session_goes_on_while_that_holds() {
    let arbiter = Arbiter::start(7);
    let config = Config {
        drain: Duration::from_millis(50),
        session_drain: Duration::from_secs(60),
        ..Config::default()
    };
    let mut house = arbiter.house(config).await;
    let _worker = house.worker(0).await;
    let client = house.client().await;
    let session = [DIGITS[0], ("tether-owner", "beam@a"), ("tether-epoch", "7")];
    let mut others = endless(&client, DIGITS).await;
    let (messages, sent) = mpsc::channel(1);
    let stays = client.bidi("/test.Echo/Bidi", &session, ReceiverStream::new(sent));
    messages.send("a".into()).await.unwrap();
    let mut stays = stays.await.unwrap();
    assert_eq!(next(&mut stays).await.unwrap().unwrap(), "a");

    house.stop.cancel();

    let status = soon("its end", next(&mut others)).await.unwrap_err();
    assert_dismissed(&status, "started");
    for text in ["b", "c"] {
        messages.send(text.into()).await.unwrap();
        assert_eq!(next(&mut stays).await.unwrap().unwrap(), text);
    }
    assert!(!house.serving.is_finished());
    arbiter.epoch.send_replace(8);
    let status = soon("its end", next(&mut stays)).await.unwrap_err();
    assert_dismissed(&status, "started");
    ended(&mut house).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_holds_has_its_limit_too() {
    let arbiter = Arbiter::start(7);
    let config = Config {
        drain: Duration::from_millis(20),
        session_drain: Duration::from_millis(100),
        ..Config::default()
    };
    let mut house = arbiter.house(config).await;
    let _worker = house.worker(0).await;
    let client = house.client().await;
    let session = [DIGITS[0], ("tether-owner", "beam@a"), ("tether-epoch", "7")];
    let mut stays = endless(&client, &session).await;

    house.stop.cancel();

    let status = soon("its end", next(&mut stays)).await.unwrap_err();
    assert_dismissed(&status, "started");
    ended(&mut house).await;
}
