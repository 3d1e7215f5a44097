//! Calls that wait for a worker which is free.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, future::join_all};
use tether_gateway::{Config, Queue};
use tether_proto::common::{Endpoint, EndpointHealth};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use crate::{
    client::{Client, Metadata, next, soon},
    discovery::worker,
    house::{DIGITS, House, UNARY, fact, reason, retry_delay},
    worker::{Worker, reached},
};

/// A house in which `most` calls may wait.
async fn house(most: usize) -> House {
    House::with(Config {
        queue: Queue {
            max_calls: most,
            ..Queue::default()
        },
        ..Config::default()
    })
    .await
}

/// Starts a worker that serves `capacity` calls at once, and waits until the gateway knows.
pub(crate) async fn serving(house: &House, slot: u32, capacity: u32) -> Worker {
    let started = Worker::start().await;
    house.discovery.tell(endpoint(&started, slot, capacity));
    house.knows(slot, 1).await;
    started
}

fn endpoint(started: &Worker, slot: u32, capacity: u32) -> Endpoint {
    Endpoint {
        worker: Some(worker("digits", slot, 1)),
        address: started.address.clone(),
        capacity,
        node: "n1".to_owned(),
        ..Endpoint::default()
    }
}

/// Whether a call finds the queue full: it waits itself for a moment where it is not.
async fn is_full(client: &Client) -> bool {
    let metadata = [DIGITS[0], ("grpc-timeout", "5m")];
    let answer = client.unary(UNARY, &metadata, "").await;
    answer.is_err_and(|status| reason(&status) == "OVERLOADED")
}

/// Keeps one credit of a worker until it is dropped.
pub(crate) struct Held {
    _messages: mpsc::Sender<Bytes>,
    _answers: tonic::Streaming<Bytes>,
}

pub(crate) async fn hold(client: &Client, metadata: Metadata<'_>) -> Held {
    let (messages, sent) = mpsc::channel(1);
    messages.try_send("a".into()).expect("there is room");
    let mut answers = client
        .bidi("/test.Echo/Bidi", metadata, ReceiverStream::new(sent))
        .await
        .expect("a worker is free");
    let first = next(&mut answers).await;
    assert_eq!(first.expect("it answers"), Some(Bytes::from("a")));
    Held {
        _messages: messages,
        _answers: answers,
    }
}

/// Makes a call that waits. Where the one that looks whether the queue is full has the place, it comes again.
fn call(client: &Arc<Client>) -> JoinHandle<Result<Response<Bytes>, Status>> {
    let client = Arc::clone(client);
    tokio::spawn(async move {
        loop {
            let answer = client.unary(UNARY, DIGITS, "").await;
            let full = |status: &Status| status.message().contains("queue.max_calls");
            if !answer.as_ref().is_err_and(full) {
                return answer;
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_never_has_more_calls_than_it_serves_at_once() {
    let house = house(100).await;
    let few = serving(&house, 0, 2).await;
    let client = Arc::new(house.client().await);
    let first = hold(&client, DIGITS).await;
    let second = hold(&client, DIGITS).await;
    let before = few.calls();

    let metadata = [DIGITS[0], ("grpc-timeout", "50m")];
    let status = client.unary(UNARY, &metadata, "").await.unwrap_err();
    // Whichever of client and gateway is first to see the deadline pass.
    let late = [Code::DeadlineExceeded, Code::Cancelled];
    assert!(late.contains(&status.code()), "{status}");
    assert_eq!(few.calls(), before, "the worker has not seen it");

    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.unary(UNARY, DIGITS, "b").await })
        })
        .collect();
    drop(first);
    let answers = soon("all are served", join_all(waiting)).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.as_ref().unwrap().is_ok())
    );
    assert_eq!(few.calls(), before + 20);
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_wait_is_told_so_at_once_and_that_nobody_has_seen_the_call() {
    let house = house(1).await;
    let one = serving(&house, 0, 1).await;
    let client = Arc::new(house.client().await);
    let held = hold(&client, DIGITS).await;
    let waits = call(&client);
    house
        .until("the queue is full", async || is_full(&client).await)
        .await;
    assert!(!waits.is_finished(), "it is the one that waits");

    let full = client.unary(UNARY, DIGITS, "").await.unwrap_err();
    assert_eq!(
        (full.code(), reason(&full)),
        (Code::ResourceExhausted, "OVERLOADED")
    );
    assert!(full.message().contains("queue.max_calls"), "{full}");
    assert_eq!(fact(&full, "outcome").as_deref(), Some("never_sent"));
    assert!(retry_delay(&full).is_some());
    let strict = [
        DIGITS[0],
        ("tether-affinity", "session-42"),
        ("tether-affinity-mode", "strict_fail_fast"),
    ];
    let refused = client.unary(UNARY, &strict, "").await.unwrap_err();
    assert_eq!(reason(&refused), "OVERLOADED", "{refused}");

    let urgent = [DIGITS[0], ("tether-priority", "high")];
    let urgent = client.unary(UNARY, &urgent, "");
    let shed = async {
        let shed = soon("the other is shed", waits).await.unwrap().unwrap_err();
        assert!(shed.message().contains("tether-priority"), "{shed}");
        drop(held);
    };
    let ((), urgent) = futures::join!(shed, urgent);
    urgent.unwrap();
    assert_eq!(one.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_has_waited_for_long_enough_is_told_what_would_help() {
    let house = House::with(Config {
        queue: Queue {
            max_wait: Duration::from_millis(20),
            ..Queue::default()
        },
        ..Config::default()
    })
    .await;
    let _one = serving(&house, 0, 1).await;
    let client = house.client().await;
    let _held = hold(&client, DIGITS).await;

    let status = client.unary(UNARY, DIGITS, "").await.unwrap_err();

    assert_eq!(reason(&status), "OVERLOADED");
    assert!(status.message().contains("queue.max_wait"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_comes_takes_what_waits_and_one_that_gave_up_is_not_in_the_way() {
    let house = house(1).await;
    let _one = serving(&house, 0, 1).await;
    let client = Arc::new(house.client().await);
    let _held = hold(&client, DIGITS).await;
    let gives_up = call(&client);
    house
        .until("it waits", async || is_full(&client).await)
        .await;
    gives_up.abort();
    house
        .until("its place is free", async || !is_full(&client).await)
        .await;
    let stays = call(&client);
    house
        .until("it waits", async || is_full(&client).await)
        .await;

    let another = Worker::start().await;
    house.discovery.tell(endpoint(&another, 1, 1));

    soon("it is served", stays).await.unwrap().unwrap();
    reached(&another.seen.calls, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_worker_that_is_gone_is_told() {
    let house = house(10).await;
    let one = serving(&house, 0, 1).await;
    let client = Arc::new(house.client().await);
    let _held = hold(&client, DIGITS).await;
    let pinned: &[_] = &[("tether-worker", "digits/0.1")];
    let waits = client.unary(UNARY, pinned, "");
    let mut waits = std::pin::pin!(waits);
    assert!(waits.as_mut().now_or_never().is_none());

    house
        .discovery
        .up(worker("digits", 0, 2), &one.address, false);

    let gone: Status = soon("it is told", waits).await.unwrap_err();
    assert_eq!(reason(&gone), "UNKNOWN_WORKER", "{gone}");
}

/// Where a worker is and how it is decides who is asked first, and never that nobody is.
#[tokio::test(flavor = "multi_thread")]
async fn workers_of_the_own_zone_that_are_well_come_first() {
    let house = House::with(Config {
        zone: "b".to_owned(),
        ..Config::default()
    })
    .await;
    let mut workers = Vec::new();
    for slot in 0..3 {
        workers.push(house.worker(slot).await);
    }
    let tell = |slot: usize, zone: &str, health: EndpointHealth| {
        house.discovery.tell(Endpoint {
            zone: zone.to_owned(),
            health: health.into(),
            ..endpoint(&workers[slot], slot.try_into().unwrap(), 1)
        });
    };
    tell(0, "a", EndpointHealth::Passing);
    tell(1, "b", EndpointHealth::Passing);
    tell(2, "b", EndpointHealth::Failing);
    let client = house.client().await;
    let calls = || -> Vec<u64> { workers.iter().map(Worker::calls).collect() };
    let settled = async || {
        let before = calls()[1];
        client.unary(UNARY, DIGITS, "").await.unwrap();
        calls()[1] > before
    };
    house.until("the zones are known", settled).await;
    let before = calls();

    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(hold(&client, DIGITS).await);
        let now = calls();
        assert_eq!(
            now.iter().sum::<u64>() - before.iter().sum::<u64>(),
            held.len() as u64
        );
        let expected = match held.len() {
            1 => [0, 1, 0],
            2 => [1, 1, 0],
            _ => [1, 1, 1],
        };
        let got: Vec<u64> = now
            .iter()
            .zip(&before)
            .map(|(now, before)| now - before)
            .collect();
        assert_eq!(got, expected);
    }
}
