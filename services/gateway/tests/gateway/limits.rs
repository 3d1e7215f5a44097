//! What the gateway refuses, and how it says so.

use bytes::Bytes;
use futures::{StreamExt as _, stream, stream::FuturesUnordered};
use tether_gateway::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::{
    client::{framed, grpc_request, next, raw, soon},
    house::{DIGITS, House, UNARY, fact, reason},
    queue::{hold, serving},
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
