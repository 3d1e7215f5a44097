//! A client that sends frames by hand sees the same through the gateway as without it.

use super::{
    case::Case,
    contract,
    pattern::crc,
    python,
    record::{Pairs, tidy},
    shapes::{self, Grpcio, Shape},
    wire::*,
};
use crate::client::soon;

/// An answer as it stood on the wire, whatever its frames were.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    head: Pairs,
    /// Length and CRC-32.
    body: (usize, u32),
    /// `None` where the head was all.
    trailers: Option<Pairs>,
    reset: Option<u32>,
    /// The connection was closed, with this word if any.
    closed: Option<Option<u32>>,
}

async fn play(address: &str, shape: &Shape) -> Answer {
    let (mut wire, _) = Wire::open(address, &shape.settings).await;
    wire.send(&shape.send).await;
    let mut answer = Answer::default();
    let (mut body, mut word) = (Vec::new(), None);
    loop {
        let Some(frame) = wire.next().await else {
            answer.closed = Some(word);
            return answer;
        };
        if frame.kind == GOAWAY {
            word = Some(frame.number_at(4));
        }
        // Every header block is read, so that the table is as it must be.
        let mut fields = match frame.kind {
            HEADERS => wire.fields(&frame.payload),
            _ => Vec::new(),
        };
        if frame.stream != shape.stream {
            continue;
        }
        match frame.kind {
            HEADERS => {
                assert!(frame.has(END_HEADERS), "answers are short");
                assert!(!frame.has(PADDED | PRIORITISED), "nobody pads answers");
                tidy(&mut fields);
                fields.sort_by(|(one, _), (other, _)| one.cmp(other));
                match answer.head.is_empty() {
                    true => answer.head = fields,
                    false => answer.trailers = Some(fields),
                }
                wire.send(&shape.then).await;
            }
            DATA => {
                body.extend_from_slice(&frame.payload);
                if shape.credit > 0 && !frame.has(END_STREAM) {
                    wire.send(window_update(shape.stream, shape.credit)).await;
                }
            }
            RST_STREAM => answer.reset = Some(frame.number_at(0)),
            _ => continue,
        }
        let ended = matches!(frame.kind, DATA | HEADERS) && frame.has(END_STREAM);
        if ended || answer.reset.is_some() {
            answer.body = (body.len(), crc(&body));
            return answer;
        }
    }
}

impl Answer {
    /// Its gRPC code; that of a reset is as the gRPC protocol lays down.
    fn code(&self) -> Option<u32> {
        match self.reset {
            Some(0x7) => Some(14),
            Some(0x8) => Some(1),
            Some(0xb) => Some(8),
            Some(0xc) => Some(7),
            Some(_) => Some(13),
            None => {
                let fields = self.trailers.as_ref().unwrap_or(&self.head);
                let status = fields.iter().find(|(key, _)| key == "grpc-status");
                status?.1.parse().ok()
            }
        }
    }
}

/// Whether nobody could tell the two apart, but for the words in which the gateway says that a worker reset a call.
fn alike(direct: &Answer, through: &Answer, grpcio: Grpcio) -> bool {
    match grpcio {
        Grpcio::Reads if direct.reset.is_some() => direct.code() == through.code(),
        Grpcio::Reads => direct == through,
        Grpcio::CannotRead => direct.code() != Some(0) && through.code() == Some(0),
        Grpcio::Guesses => through.code().is_some(),
    }
}

async fn compare(worker: &str, on_grpcio: impl Fn(&Shape) -> Grpcio) {
    let house = super::house().await;
    house.tell(0, 1, worker).await;
    let shapes = shapes::all();
    let mut different = Vec::new();
    for shape in &shapes {
        let ways = async { tokio::join!(play(worker, shape), play(&house.address, shape)) };
        let (direct, through) = soon(shape.name, ways).await;
        if !alike(&direct, &through, on_grpcio(shape)) {
            different.push(format!(
                "`{}` differs through the gateway:\n  direct:  {direct:?}\n  gateway: {through:?}",
                shape.name
            ));
        }
    }
    super::report("hand-made frames", shapes.len(), &different);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_by_hand_reach_grpcio_as_they_do_directly() {
    let worker = python::Worker::start().await;
    compare(&worker.address, |shape| shape.grpcio).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_by_hand_reach_tonic_as_they_do_directly() {
    let worker = contract::Worker::start().await;
    compare(&worker.address, |_| Grpcio::Reads).await;
}

/// grpcio goes on to refuse a key once it has refused a value of it that its table of fields keeps; and the gateway's
/// clients share the connection to a worker, as workers share those to clients.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_grpcio_cannot_read_spoils_nothing_for_others() {
    let worker = python::Worker::start().await;
    let house = super::house().await;
    house.tell(0, 1, &worker.address).await;
    let mut client = python::Client::connect(&house.address, "gateway", None);
    let compressed = Case::unary("Echo", "a compressed call").compressed();

    for name in ["an encoding nobody knows", "an encoding nobody uses"] {
        let shape = shapes::all().into_iter().find(|shape| shape.name == name);
        let spoilt = play(&house.address, &shape.expect("it is listed")).await;
        assert_ne!(spoilt.code(), Some(0), "{name}");

        let record = client.play(&compressed).await;
        assert_eq!((record.code, record.details.as_str()), (0, ""), "{name}");
    }
}
