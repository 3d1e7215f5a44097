//! What the gateway refuses, and how it says so.

use std::{num::NonZeroU32, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream, stream::FuturesUnordered};
use tether_gateway::{Breaker, Config, Retries};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tonic::{Code, Status};

use crate::{
    client::{framed, grpc_request, next, open, raw, soon},
    house::{DIGITS, House, UNARY, fact, reason},
    queue::{hold, serving},
    worker::{Mood, Worker, reached},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_message_is_refused_before_the_worker_gets_it() {
    let config = Config {
        max_message_bytes: 1 << 20,
        ..Config::default()
    };
    let house = House::with(config).await;
    let echo = house.worker(0).await;
    let client = house.client().await;

    let status = client
        .unary(UNARY, DIGITS, vec![0; (1 << 20) + 1])
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::ResourceExhausted, "MESSAGE_TOO_LARGE")
    );
    assert!(status.message().contains("1048577") && status.message().contains("max_message_bytes"));
    assert_eq!(fact(&status, "limit_bytes").unwrap(), "1048576");
    assert_eq!(echo.calls(), 0);

    client.unary(UNARY, DIGITS, vec![0; 1 << 20]).await.unwrap();

    let sizes = stream::iter([1, 2, (1 << 20) + 1]).chain(stream::pending());
    let messages = sizes.map(|size| Bytes::from(vec![0; size]));
    let status = client
        .client_stream("/test.Echo/ClientStream", DIGITS, messages)
        .await;
    assert_eq!(reason(&status.unwrap_err()), "MESSAGE_TOO_LARGE");
    // Whoever sends too much says nothing about the worker.
    client.unary(UNARY, DIGITS, "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_metadata_is_refused_by_name() {
    let house = House::open().await;
    let echo = house.worker(0).await;
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[], "`tether-pool: digits`"),
        (&[("tether-pool", "../etc")], "`../etc`"),
        (
            &[("tether-pool", "digits"), ("tether-pool", "digits")],
            "more than once",
        ),
        (
            &[("tether-worker", "digits/x")],
            "`tether-worker: digits/0`",
        ),
        (
            &[DIGITS[0], ("grpc-timeout", "soon")],
            "`grpc-timeout: 1500m`",
        ),
        (&[DIGITS[0], ("content-type", "text/html")], "content-type"),
    ];
    for (metadata, hint) in cases {
        let mut request = grpc_request(UNARY, &[]);
        for (key, value) in metadata {
            let name = http::HeaderName::from_bytes(key.as_bytes()).unwrap();
            if *key == "content-type" {
                request.headers_mut().remove("content-type");
            }
            request.headers_mut().append(name, value.parse().unwrap());
        }

        let status = raw(&house.address, request, framed(b"")).await.status();

        assert_eq!(
            (status.code(), reason(&status)),
            (Code::InvalidArgument, "METADATA_INVALID")
        );
        assert!(status.message().contains(hint), "{}", status.message());
    }
    assert_eq!(echo.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_client_is_told_what_this_is() {
    let house = House::open().await;
    let mut stream = tokio::net::TcpStream::connect(&house.address)
        .await
        .unwrap();

    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: gateway\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer))
        .await
        .unwrap();

    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    assert!(answer.contains("gRPC endpoint over HTTP/2"), "{answer}");
}

/// What calls send while they wait for a worker counts too: nobody reads it.
#[tokio::test(flavor = "multi_thread")]
async fn too_much_of_calls_that_wait_for_a_worker_ends_the_one_that_waits_for_longest() {
    const CALLS: usize = 8;
    let house = House::with(Config {
        max_unread_bytes: 1 << 20,
        ..Config::default()
    })
    .await;
    let worker = serving(&house, 0, 1).await;
    let client = house.client().await;
    let held = hold(&client, DIGITS).await;

    let large = vec![7; 200 << 10];
    let mut waiting: FuturesUnordered<_> = (0..CALLS)
        .map(|_| client.unary(UNARY, DIGITS, large.clone()))
        .collect();
    let first = soon("one is ended", waiting.next()).await.unwrap();
    let status = first.unwrap_err();
    assert_eq!(reason(&status), "OVERLOADED", "{status}");
    assert!(status.message().contains("max_unread_bytes"), "{status}");
    assert_eq!(fact(&status, "outcome").as_deref(), Some("never_sent"));
    assert_eq!(worker.calls(), 1, "the worker has seen none of them");

    drop(held);
    let ends: Vec<_> = soon("all end", waiting.collect()).await;
    let whole = ends.iter().filter(|end| end.is_ok()).count();
    assert!((4..CALLS).contains(&whole), "{whole}");
}

const WORK: &str = "/test.Echo/Work";

/// A call has to go because too much waits, and its worker has not seen it.
fn is_unsent(status: &Status) -> bool {
    reason(status) == "OVERLOADED" && status.message().contains("max_unread_bytes")
}

/// Whatever calls wait for: the answer of the first that is ended among those that send more than may wait.
async fn one_is_ended(house: &House) {
    let client = house.client().await;
    let large = vec![7; 200 << 10];
    let mut waiting: FuturesUnordered<_> = (0..8)
        .map(|_| client.unary(WORK, DIGITS, large.clone()))
        .collect();
    let first = soon("one is ended", waiting.next()).await;
    let status = first.expect("there are some").expect_err("too much waits");
    assert!(is_unsent(&status), "{status}");
    assert_eq!(fact(&status, "outcome").as_deref(), Some("never_sent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_whose_key_is_awaited_go_too_where_too_much_waits_however_little_each_has() {
    let rule = "['/test.Echo/*']\naffinity = { field = 3 }";
    for (pairs, calls) in [(8_191, 80), (5_000, 130)] {
        let house = House::with(Config {
            max_unread_bytes: 1 << 20,
            methods: toml::from_str(rule).unwrap(),
            ..Config::default()
        })
        .await;
        let _worker = house.worker(0).await;
        // Fields that are not the wanted one, of a message that does not end.
        let mut begun = vec![0, 0, 16, 0, 0];
        begun.extend([8, 1].repeat(pairs));
        let mut opened = Vec::new();
        let answers = FuturesUnordered::new();
        for _ in 0..calls {
            let (mut body, answer, driver) = open(&house.address, UNARY).await;
            body.send_data(begun.clone().into(), false).unwrap();
            opened.push((body, driver));
            answers.push(answer);
        }

        // One alone would not be enough.
        let ended: Vec<_> = soon("they are ended", answers.take(3).collect()).await;
        for answer in ended {
            let status = Status::from_header_map(answer.unwrap().headers()).unwrap();
            assert!(is_unsent(&status), "{status}");
        }
        let client = house.client().await;
        client.unary(UNARY, DIGITS, vec![0x1a, 1, 7]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_a_place_on_a_connection_go_too_where_too_much_waits() {
    let house = House::with(Config {
        threads: 1,
        max_unread_bytes: 1 << 20,
        ..Config::default()
    })
    .await;
    let narrow = Worker::narrow(1).await;
    house.tell(0, 1, &narrow.address).await;
    narrow.is(Mood::Stuck);
    let client = house.client().await;
    let held = tokio::spawn(async move { client.unary(WORK, DIGITS, "").await });
    reached(&narrow.seen.calls, 1).await;

    one_is_ended(&house).await;
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_the_arbiter_to_wake_their_pool_go_too_where_too_much_waits() {
    // It takes connections and says nothing.
    let arbiter = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config {
        max_unread_bytes: 1 << 20,
        connect_timeout: Duration::from_secs(60),
        pools: toml::from_str("['*']\nwake = 1").unwrap(),
        ..Config::default()
    };
    let address = arbiter.local_addr().unwrap().to_string();
    let house = House::with_arbiter(config, &address).await;

    one_is_ended(&house).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_a_worker_has_put_off_go_too_where_too_much_waits() {
    let rule = "['/test.Echo/*']\nidempotent = true";
    let house = House::with(Config {
        max_unread_bytes: 256 << 10,
        methods: toml::from_str(rule).unwrap(),
        breaker: Breaker {
            failure_threshold: NonZeroU32::MAX,
            window: 0,
            ..Breaker::default()
        },
        retries: Retries {
            percent: 100,
            per_second: 100,
        },
        ..Config::default()
    })
    .await;
    let worker = house.worker(0).await;
    worker.is(Mood::Unavailable(Some("20000")));
    let client = house.client().await;
    let mut put_off = FuturesUnordered::new();
    for calls in 1..=40 {
        let client = client.clone();
        let call = async move { client.unary(WORK, DIGITS, vec![7; 30 << 10]).await };
        put_off.push(tokio::spawn(call));
        reached(&worker.seen.calls, calls).await;
        // One whose request was not kept is not put off.
        while let Some(Some(end)) = put_off.next().now_or_never() {
            let status = end.unwrap().unwrap_err();
            if is_unsent(&status) {
                return;
            }
            assert_eq!(status.message(), "not now");
        }
        if put_off.len() > 12 {
            let end = soon("one is ended", put_off.next()).await.unwrap();
            assert!(is_unsent(&end.unwrap().unwrap_err()));
            return;
        }
    }
    panic!("no call is put off");
}

/// What waits for those who do not read is bounded, and ends the call that is behind for longest; whoever reads goes on.
#[tokio::test(flavor = "multi_thread")]
async fn too_much_that_nobody_reads_ends_the_call_that_is_behind_for_longest() {
    const STREAMS: usize = 12;
    let house = House::with(Config {
        max_unread_bytes: 6 << 20,
        ..Config::default()
    })
    .await;
    let _worker = house.worker(0).await;
    let (slow, quick) = (house.client().await, house.client().await);
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        let stream = slow.server_stream("/test.Echo/ServerStream", DIGITS, "1024 65536");
        unread.push(stream.await.unwrap());
    }

    let large = vec![7; 1 << 20];
    for _ in 0..20 {
        let answer = quick.unary(UNARY, DIGITS, large.clone()).await.unwrap();
        assert_eq!(answer.into_inner().len(), large.len());
    }

    // All at once: what their client has not read of some takes up its connection's window.
    let ends = unread.into_iter().map(|mut stream| async move {
        loop {
            match next(&mut stream).await {
                Ok(Some(_)) => {}
                Ok(None) => return "whole",
                Err(status) => return reason(&status),
            }
        }
    });
    let ends = futures::future::join_all(ends).await;
    let ended = ends.iter().filter(|end| **end == "OVERLOADED").count();
    assert!((1..STREAMS).contains(&ended), "{ends:?}");
    assert_eq!(
        ends.iter().filter(|end| **end == "whole").count(),
        STREAMS - ended
    );
}
