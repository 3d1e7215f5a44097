//! Calls of every kind pass through unchanged.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::{net::TcpListener, sync::mpsc::Receiver, task::JoinHandle};
use tonic::Code;

use crate::{
    client::{framed, grpc_request, next, open, raw, soon},
    house::{DIGITS, House, UNARY, reason},
    worker::{IMPATIENCE, Upload, plain, reached},
};

#[tokio::test(flavor = "multi_thread")]
async fn messages_pass_in_all_four_kinds_of_calls() {
    let house = House::open().await;
    let _worker = house.worker(0).await;
    let client = house.client().await;

    let unary = client.unary(UNARY, DIGITS, "hello").await.unwrap();
    assert_eq!(unary.get_ref(), "hello");

    let messages = stream::iter((0..100).map(|_| Bytes::from(vec![1; 1000])));
    let sum = client
        .client_stream("/test.Echo/ClientStream", DIGITS, messages)
        .await;
    assert_eq!(sum.unwrap(), "100 100000");

    let many = client
        .server_stream("/test.Echo/ServerStream", DIGITS, "300 1000")
        .await;
    let sizes: Vec<usize> = many
        .unwrap()
        .map(|message| message.unwrap().len())
        .collect()
        .await;
    assert_eq!(sizes, vec![1000; 300]);

    // Each message is answered before the next is sent, so nothing waits for an end.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = client
        .bidi("/test.Echo/Bidi", DIGITS, messages)
        .await
        .unwrap();
    for word in ["one", "two", "three"] {
        sender.send(Bytes::from(word)).await.unwrap();
        assert_eq!(next(&mut answers).await.unwrap().unwrap(), word);
    }
    drop(sender);
    assert!(next(&mut answers).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_pass_both_ways() {
    let house = House::open().await;
    let _worker = house.worker(0).await;
    let client = house.client().await;
    let message: Bytes = (0..20 << 20)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();

    let answer = client.unary(UNARY, DIGITS, message.clone()).await.unwrap();

    assert!(*answer.get_ref() == message);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_passes_in_headers_and_trailers_even_binary() {
    let house = House::open().await;
    let _worker = house.worker(0).await;
    let client = house.client().await;
    let metadata = &[DIGITS[0], ("x-word", "w"), ("x-raw-bin", "\u{0}\u{ff}")];

    let answer = client.unary(UNARY, metadata, "").await.unwrap();
    assert_eq!(answer.metadata().get("x-word").unwrap(), "w");
    let raw_bin = answer.metadata().get_bin("x-raw-bin").unwrap();
    assert_eq!(raw_bin.to_bytes().unwrap(), "\u{0}\u{ff}".as_bytes());

    let metadata = &[DIGITS[0], ("x-word", "w"), ("x-fail", "9")];
    let failure = client.unary(UNARY, metadata, "").await.unwrap_err();
    assert_eq!(
        (failure.code(), failure.message()),
        (Code::FailedPrecondition, "asked to fail")
    );
    assert_eq!(failure.metadata().get("x-word").unwrap(), "w");
    let why = failure.metadata().get_bin("x-why-bin").unwrap();
    assert_eq!(why.to_bytes().unwrap(), &[0, 159, 146, 150][..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_headers_alone_stays_one() {
    let house = House::open().await;
    let _worker = house.worker(0).await;
    let request = |fail| grpc_request(UNARY, &[DIGITS[0], ("x-fail", fail)]);

    let failed = raw(&house.address, request("5"), framed(b"a")).await;
    assert_eq!(failed.headers["grpc-status"], "5");
    assert!(failed.trailers.is_none() && failed.data.is_empty());

    let answered = raw(&house.address, grpc_request(UNARY, DIGITS), framed(b"a")).await;
    assert!(!answered.headers.contains_key("grpc-status"));
    assert_eq!(answered.data, framed(b"a"));
    assert_eq!(answered.trailers.unwrap()["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_enforced_and_passed_on() {
    let house = House::open().await;
    let worker = house.worker(0).await;
    let timed = |method, timeout| grpc_request(method, &[DIGITS[0], ("grpc-timeout", timeout)]);

    let late = raw(
        &house.address,
        timed("/test.Echo/Hang", "100m"),
        framed(b""),
    )
    .await;
    assert!(late.trailers.is_none());
    assert_eq!(late.status().code(), Code::DeadlineExceeded);
    assert_eq!(reason(&late.status()), "DEADLINE_EXCEEDED");
    reached(&worker.seen.cancelled, 1).await;

    let late = raw(
        &house.address,
        timed("/test.Echo/OneThenHang", "100m"),
        framed(b"a"),
    )
    .await;
    assert_eq!(late.data, framed(b"a"));
    assert_eq!(late.status().code(), Code::DeadlineExceeded);
    reached(&worker.seen.cancelled, 1).await;

    let quick = raw(&house.address, timed(UNARY, "60S"), framed(b"")).await;
    let left = quick.headers["x-timeout"].to_str().unwrap();
    let micros: u64 = left.strip_suffix('u').unwrap().parse().unwrap();
    assert!((50_000_000..60_000_000).contains(&micros), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_kept_for_a_worker_that_keeps_none() {
    let house = House::open().await;
    let (worker, mut seen) = silent_worker(&house).await;
    let headers = [DIGITS[0], ("grpc-timeout", "100m")];

    let late = raw(
        &house.address,
        grpc_request("/test.Plain/Upload", &headers),
        framed(b"a"),
    )
    .await;

    assert!(late.trailers.is_none());
    let status = late.status();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
    );
    for expected in [
        Upload::Began,
        Upload::Complete,
        Upload::Reset(Some(h2::Reason::CANCEL)),
    ] {
        assert_eq!(
            soon("what the worker saw", seen.recv()).await,
            Some(expected)
        );
    }
    worker.abort();
}

/// A worker's timer may run out a moment before the gateway's, and all it can say is "cancelled".
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cancels_at_the_deadline_has_missed_it() {
    let house = House::open().await;
    let (worker, _seen) = silent_worker(&house).await;
    let cancelled_within = async |method, timeout| {
        let headers = [DIGITS[0], ("grpc-timeout", timeout)];
        let request = grpc_request(method, &headers);
        raw(&house.address, request, framed(b"a"))
            .await
            .status()
            .code()
    };
    assert_eq!(IMPATIENCE, Duration::from_millis(200));

    for method in ["/test.Plain/Impatient", "/test.Plain/Polite"] {
        assert_eq!(
            cancelled_within(method, "206m").await,
            Code::DeadlineExceeded
        );
        assert_eq!(cancelled_within(method, "60S").await, Code::Cancelled);
    }
    worker.abort();
}

/// A plain worker in slot 0, which never answers an upload.
pub(crate) async fn silent_worker(house: &House) -> (JoinHandle<()>, Receiver<Upload>) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("there is a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let (sender, seen) = tokio::sync::mpsc::channel(1);
    let worker = tokio::spawn(plain(listener, sender));
    house.tell(0, 1, &address).await;
    (worker, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_is_cancelled_at_the_worker() {
    let house = House::open().await;
    let worker = house.worker(0).await;
    let client = house.client().await;

    let unanswered = tokio::spawn({
        let client = client.clone();
        async move { client.unary("/test.Echo/Hang", DIGITS, "").await }
    });
    reached(&worker.seen.calls, 1).await;
    unanswered.abort();
    reached(&worker.seen.cancelled, 1).await;

    let mut answered = client
        .server_stream("/test.Echo/OneThenHang", DIGITS, "a")
        .await
        .unwrap();
    assert_eq!(next(&mut answered).await.unwrap().unwrap(), "a");
    drop(answered);
    reached(&worker.seen.cancelled, 2).await;

    let (mut sending, receiving, connection) = open(&house.address, "/test.Echo/Bidi").await;
    sending.send_data(framed(b"a"), false).unwrap();
    reached(&worker.seen.calls, 3).await;
    drop((sending, receiving));
    reached(&worker.seen.cancelled, 3).await;
    drop(connection);
}

/// The worker takes 64 KiB of it, so the gateway has to give up what it could not send.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_upload_is_stuck_is_cancelled_at_the_worker() {
    let house = House::open().await;
    let worker = house.worker(0).await;
    let client = house.client().await;
    let (mut sending, receiving, _connection) = open(&house.address, "/test.Echo/Deaf").await;
    sending.send_data(framed(&[0; 1 << 20]), false).unwrap();
    reached(&worker.seen.calls, 1).await;
    // Meanwhile the upload runs into the worker's window.
    for _ in 0..50 {
        client.unary(UNARY, DIGITS, "a").await.unwrap();
    }

    drop((sending, receiving));

    reached(&worker.seen.cancelled, 1).await;
}

/// Half an upload that looked whole could be taken for all of it. Nor does it speak against the
/// worker that its clients cancel, however often.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_upload_never_looks_complete() {
    let house = House::open().await;
    let (worker, mut seen) = silent_worker(&house).await;

    for round in 1..=50 {
        let (mut sending, receiving, _connection) =
            open(&house.address, "/test.Plain/Upload").await;
        sending.send_data(framed(b"half"), false).unwrap();
        assert_eq!(soon("the message", seen.recv()).await, Some(Upload::Began));

        // Every other client says with its reset that nothing went wrong.
        if round % 2 == 0 {
            sending.send_reset(h2::Reason::NO_ERROR);
        }
        drop((sending, receiving));

        let end = soon("the end", seen.recv()).await;
        let reset = Upload::Reset(Some(h2::Reason::CANCEL));
        assert_eq!(end, Some(reset), "round {round}");
    }
    worker.abort();
}

/// The worker may run ahead of a client that does not read by what the buffers on the way hold,
/// and other clients of the same worker notice nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_up_its_own_stream_alone() {
    let house = House::open().await;
    let worker = house.worker(0).await;
    let (slow, quick) = (house.client().await, house.client().await);
    let total = 1024 * (64 << 10);

    let mut unread = slow
        .server_stream("/test.Echo/ServerStream", DIGITS, "1024 65536")
        .await
        .unwrap();
    for _ in 0..300 {
        quick.unary(UNARY, DIGITS, "a").await.unwrap();
    }

    let ahead = worker.seen.sent.load(Ordering::SeqCst);
    assert!(ahead < 8 << 20, "{ahead} bytes are on the way");
    let mut read = 0;
    while let Some(message) = next(&mut unread).await.unwrap() {
        read += message.len();
    }
    assert_eq!(read, total);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_behind_a_unix_socket_is_reached() {
    let house = House::open().await;
    let inner = House::open().await;
    let _worker = inner.worker(0).await;
    // A gateway is as good a gRPC server on a unix socket as any.
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("worker.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let discovery = tether_types::Address::Unix(inner.discovery.socket.clone());
    let gateway = tether_gateway::Gateway::build(
        tether_gateway::Config::default(),
        vec![discovery.clone()],
        discovery,
    );
    let listeners = vec![tether_gateway::Listener::from(listener)];
    let serving = tokio::spawn(gateway.serve(listeners, inner.stop.clone()));

    house
        .tell(0, 1, &format!("unix:{}", socket.display()))
        .await;
    let answer = house
        .client()
        .await
        .unary(UNARY, DIGITS, "a")
        .await
        .unwrap();

    assert_eq!(answer.get_ref(), "a");
    inner.stop.cancel();
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_lets_calls_end_and_takes_no_new_ones() {
    let mut house = House::open().await;
    let _worker = house.worker(0).await;
    let client = house.client().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut under_way = client
        .bidi("/test.Echo/Bidi", DIGITS, messages)
        .await
        .unwrap();

    house.stop.cancel();
    let refused = async || {
        tokio::net::TcpStream::connect(&house.address)
            .await
            .is_err()
    };
    house.until("no connection is taken", refused).await;
    sender.send(Bytes::from("still here")).await.unwrap();
    assert_eq!(next(&mut under_way).await.unwrap().unwrap(), "still here");
    drop(sender);
    assert!(next(&mut under_way).await.unwrap().is_none());

    drop((client, under_way));
    soon("the gateway's end", &mut house.serving)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_waits_no_longer_than_the_drain_time() {
    let config = tether_gateway::Config {
        drain: Duration::from_millis(100),
        ..Default::default()
    };
    let mut house = House::with(config).await;
    let worker = house.worker(0).await;
    let client = house.client().await;
    let mut endless = client
        .server_stream("/test.Echo/OneThenHang", DIGITS, "a")
        .await
        .unwrap();
    next(&mut endless).await.unwrap();

    house.stop.cancel();

    soon("the gateway's end", &mut house.serving)
        .await
        .unwrap()
        .unwrap();
    assert!(next(&mut endless).await.is_err());
    reached(&worker.seen.cancelled, 1).await;
}
