//! What the gateway promises of a connection as a whole: it is answered at once, has room, and stays.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use super::wire::*;
use crate::{
    client::{Client, next, soon},
    house::DIGITS,
};

const PINGS: u8 = 200;
const STREAMS: u32 = 10_000;

const CALL: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.B/Echo"),
    (":authority", "gateway"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("tether-pool", "digits"),
];

/// A worker without limits of its own: it echoes data, ends a call as its path says, and tells the kinds of frames it
/// gets. A library would close the connection over as many small frames, or as many cancelled calls.
struct Worker {
    address: String,
    kinds: UnboundedReceiver<u8>,
    _serving: AbortOnDropHandle<()>,
}

impl Worker {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("there is a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (sender, kinds) = tokio::sync::mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            // Each lane of the gateway has a connection of its own.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("the gateway connects");
                let sender = sender.clone();
                connections.spawn(async move { echo(Wire::accept(stream).await, sender).await });
            }
        });
        Self {
            address,
            kinds,
            _serving: AbortOnDropHandle::new(serving),
        }
    }
}

async fn echo(mut wire: Wire, kinds: UnboundedSender<u8>) {
    const ENDS: u8 = END_HEADERS | END_STREAM;
    let mut paths = HashMap::new();
    while let Some(received) = wire.read().await {
        let stream = received.stream;
        let ends = received.has(END_STREAM);
        let mut answer = Vec::new();
        match received.kind {
            SETTINGS if !received.has(ACK) => answer.extend(frame(SETTINGS, ACK, 0, [])),
            HEADERS => {
                let fields = wire.fields(&received.payload);
                let path = fields.into_iter().find(|(key, _)| key == ":path");
                paths.insert(stream, path.map(|(_, path)| path).unwrap_or_default());
            }
            DATA if !received.payload.is_empty() && paths[&stream].ends_with("/Echo") => {
                let head = block(&[(":status", "200"), ("content-type", "application/grpc")]);
                answer.extend(frame(HEADERS, END_HEADERS, stream, head));
                answer.extend(frame(DATA, 0, stream, &received.payload));
            }
            _ => {}
        }
        if matches!(received.kind, HEADERS | DATA) && ends {
            let last = match paths.remove(&stream).as_deref() {
                Some("/a.B/Echo") => Some(block(&[("grpc-status", "0")])),
                Some("/a.B/Hang") => None,
                _ => Some(block(&[(":status", "200"), ("grpc-status", "12")])),
            };
            answer.extend(
                last.iter()
                    .flat_map(|last| frame(HEADERS, ENDS, stream, last)),
            );
        }
        wire.send(answer).await;
        let _ = kinds.send(received.kind);
    }
}

/// grpcio closes the connection of a client that pings it often; and a worker that hangs is no reason not to answer.
#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_by_the_gateway_itself() {
    let house = super::house().await;
    let mut worker = Worker::start().await;
    house.tell(0, 1, &worker.address).await;
    let (mut wire, _) = Wire::open(&house.address, &[]).await;
    let call = [
        frame(HEADERS, END_HEADERS, 1, block(CALL)),
        frame(DATA, 0, 1, message(5)),
    ];
    wire.send(call.concat()).await;

    for round in 0..PINGS {
        wire.send(frame(PING, 0, 0, [round; 8])).await;
        let answer = wire.next_of(PING).await.expect("it stays open");
        assert_eq!((answer.flags, answer.payload), (ACK, vec![round; 8]));
    }

    wire.send(frame(DATA, END_STREAM, 1, [])).await;
    let mut seen = Vec::new();
    // The call's end comes behind whatever was passed on before.
    while seen.iter().filter(|kind| **kind == DATA).count() < 2 {
        seen.push(soon("the call", worker.kinds.recv()).await.unwrap());
    }
    assert!(!seen.contains(&PING), "{seen:?}");
}

/// Some BEAM clients fail calls over the limit instead of waiting.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_streams_are_offered_and_served_at_once() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    let house = super::house().await;
    let worker = Worker::start().await;
    house.tell(0, 1, &worker.address).await;
    let (mut wire, theirs) = Wire::open(&house.address, &[]).await;
    let offered = theirs.payload.chunks(6).find_map(|setting| {
        let (key, value) = setting.split_at(2);
        let is_it = key == MAX_CONCURRENT_STREAMS.to_be_bytes();
        is_it.then(|| u32::from_be_bytes(value.try_into().expect("four bytes")))
    });
    // To offer no limit is to offer enough.
    assert!(offered.unwrap_or(u32::MAX) >= STREAMS, "{offered:?}");

    // Each is open, and has had an answer, before the first ends.
    let streams = || (0..STREAMS).map(|at| 2 * at + 1);
    for stream in streams() {
        let call = [
            frame(HEADERS, END_HEADERS, stream, block(CALL)),
            frame(DATA, 0, stream, message(1)),
        ];
        wire.send(call.concat()).await;
    }
    wait_for(&mut wire, DATA, |frame| !frame.payload.is_empty()).await;
    for stream in streams() {
        wire.send(frame(DATA, END_STREAM, stream, [])).await;
    }
    wait_for(&mut wire, HEADERS, |frame| frame.has(END_STREAM)).await;
}

/// Waits until as many frames of this kind have come as there are streams; none of another that ends one may.
async fn wait_for(wire: &mut Wire, kind: u8, counts: impl Fn(&Frame) -> bool) {
    let mut count = 0;
    while count < STREAMS {
        let frame = wire.next().await.expect("it stays open");
        assert!(![RST_STREAM, GOAWAY].contains(&frame.kind), "{frame:?}");
        if frame.kind == kind && counts(&frame) {
            count += 1;
        }
    }
}

/// A BEAM's channel may never recover from a GOAWAY, so it hears none while the gateway serves, whatever its calls do.
#[tokio::test(flavor = "multi_thread")]
async fn no_farewell_is_said_while_serving() {
    const CALLS: usize = 1_000;
    let house = super::house().await;
    let worker = Worker::start().await;
    house.tell(0, 1, &worker.address).await;
    let client = house.client().await;
    let open = client.bidi(
        "/a.B/Echo",
        DIGITS,
        stream::once(async { word() }).chain(stream::pending()),
    );
    let mut open = open.await.expect("the stream opens");

    let calls = (0..CALLS).map(|at| fleeting(client.clone(), at));
    let codes: Vec<Code> = stream::iter(calls).buffer_unordered(200).collect().await;

    let count = |code| codes.iter().filter(|seen| **seen == code).count();
    assert_eq!(count(Code::Ok), CALLS / 4);
    assert_eq!(count(Code::Unimplemented), CALLS / 4);
    // What tonic says of a deadline that has passed, and what the gateway does.
    assert_eq!(
        count(Code::Cancelled) + count(Code::DeadlineExceeded),
        CALLS / 2
    );
    // The stream from before is on the same connections, and would have ended with either.
    assert_eq!(next(&mut open).await.expect("it is there"), Some(word()));
    let more = futures::poll!(Box::pin(open.message()));
    assert!(more.is_pending(), "{more:?}");
}

fn word() -> Bytes {
    Bytes::from("still here")
}

/// A call that ends well, with a failure, or by a deadline before or after the worker has it.
async fn fleeting(client: Client, at: usize) -> Code {
    let (method, timeout) = match at % 4 {
        0 => ("/a.B/Echo", "60S"),
        1 => ("/a.B/None", "60S"),
        2 => ("/a.B/Hang", "5m"),
        _ => ("/a.B/Hang", "1n"),
    };
    let metadata: &[(&str, &str)] = &[DIGITS[0], ("grpc-timeout", timeout)];
    match client.unary(method, metadata, Bytes::from("a")).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}
