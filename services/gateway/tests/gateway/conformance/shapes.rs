//! Calls as only hand-made frames say them: cut in odd places, padded, interrupted, oddly compressed; and requests
//! that gRPC does not know.

mod requests;

use super::wire::*;

/// One call, as frames.
#[derive(Clone)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) settings: Vec<(u16, u32)>,
    pub(super) send: Vec<u8>,
    /// Sent when the answer's head is there.
    pub(super) then: Vec<u8>,
    /// Credit for the stream after each frame of data, where the windows are too small for the answer.
    pub(super) credit: u32,
    /// The stream whose answer counts.
    pub(super) stream: u32,
    pub(super) grpcio: Grpcio,
}

/// What a worker on grpcio makes of it without a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grpcio {
    /// What anybody would.
    Reads,
    /// It cannot read it, though it is allowed; the gateway passes on what it can read.
    CannotRead,
    /// One thing or another, by whether head and body arrive at once.
    Guesses,
}

type Fields<'a> = Vec<(&'a str, &'a str)>;

const ALL: u8 = END_HEADERS | END_STREAM;

pub(super) fn all() -> Vec<Shape> {
    [
        frames(),
        tables(),
        windows(),
        requests::heads(),
        requests::messages(),
    ]
    .concat()
}

fn shape(name: &'static str, pieces: &[Vec<u8>]) -> Shape {
    Shape {
        name,
        settings: Vec::new(),
        send: pieces.concat(),
        then: Vec::new(),
        credit: 0,
        stream: 1,
        grpcio: Grpcio::Reads,
    }
}

impl Shape {
    fn on_grpcio(self, grpcio: Grpcio) -> Self {
        Self { grpcio, ..self }
    }
}

/// The fields of a call to a method of the contract.
fn call<'a>(method: &'a str, more: &[(&'a str, &'a str)]) -> Fields<'a> {
    let usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "worker"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("tether-pool", "digits"),
    ];
    [&usual[..], more].concat()
}

const ECHO: &str = "/conform.v1.Contract/Echo";
const INSPECT: &str = "/conform.v1.Contract/Inspect";
const DIGEST: &str = "/conform.v1.Contract/Digest";
const SIZE: &str = "/conform.v1.Contract/Size";

fn head(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, block(&call(method, more)))
}

fn data(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    frame(DATA, 0, 1, bytes)
}

fn last(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    frame(DATA, END_STREAM, 1, bytes)
}

/// Bytes in frames of so many each, and the end.
fn cut(bytes: &[u8], size: usize) -> Vec<u8> {
    let frames = bytes.chunks(size).flat_map(data);
    frames.chain(last([])).collect()
}

fn padded(flags: u8, kind: u8, padding: u8, bytes: &[u8]) -> Vec<u8> {
    let zeros = vec![0; padding.into()];
    frame(
        kind,
        flags | PADDED,
        1,
        [&[padding], bytes, &zeros].concat(),
    )
}

/// Places of frames and of what they carry.
fn frames() -> Vec<Shape> {
    let one = message(30);
    let three = [message(10), message(0), message(20)].concat();
    let fields = block(&call(ECHO, &[]));
    let quarters: Vec<&[u8]> = fields.chunks(fields.len().div_ceil(4)).collect();
    let more = |flags, at: usize| frame(CONTINUATION, flags, 1, quarters[at]);
    let pieces = [
        frame(HEADERS, 0, 1, quarters[0]),
        more(0, 1),
        more(0, 2),
        more(END_HEADERS, 3),
    ];
    let priority = [&[0, 0, 0, 0, 200], &fields[..]].concat();
    let trailers = frame(HEADERS, ALL, 1, block(&[("x-trailer", "t")]));
    let noise = [
        frame(PING, 0, 0, [3; 8]),
        frame(0xee, 0, 1, [1, 2]),
        settings(&[(3, 50), (0xeee, 1)]),
        frame(PRIORITY, 0, 1, [0, 0, 0, 0, 9]),
        window_update(0, 1),
        window_update(1, 1),
    ];
    let empty = [
        data([]),
        data([]),
        data(&one[..7]),
        data([]),
        data(&one[7..]),
        last([]),
    ];
    vec![
        shape("a plain call", &[head(ECHO, &[]), last(&one)]),
        shape("a message byte by byte", &[head(ECHO, &[]), cut(&one, 1)]),
        shape(
            "three messages in one frame",
            &[head(DIGEST, &[]), last(&three)],
        ),
        shape(
            "three messages cut by sevens",
            &[head(DIGEST, &[]), cut(&three, 7)],
        ),
        shape("frames that are empty", &[head(ECHO, &[]), empty.concat()]),
        shape(
            "padded data",
            &[
                head(ECHO, &[]),
                padded(0, DATA, 255, &one[..9]),
                padded(END_STREAM, DATA, 0, &one[9..]),
            ],
        )
        .on_grpcio(Grpcio::CannotRead),
        shape(
            "padded headers",
            &[padded(END_HEADERS, HEADERS, 99, &fields), last(&one)],
        )
        .on_grpcio(Grpcio::CannotRead),
        shape(
            "headers with a priority",
            &[
                frame(HEADERS, END_HEADERS | PRIORITISED, 1, priority),
                last(&one),
            ],
        ),
        shape("headers in four frames", &[pieces.concat(), last(&one)]),
        shape(
            "a whole upload without messages",
            &[frame(HEADERS, ALL, 1, block(&call(DIGEST, &[])))],
        ),
        shape(
            "a unary call without a message",
            &[frame(HEADERS, ALL, 1, block(&call(ECHO, &[])))],
        ),
        shape(
            "an upload that ends with trailers",
            &[head(DIGEST, &[]), data(&three), trailers.clone()],
        ),
        shape(
            "a unary call that ends with trailers",
            &[head(ECHO, &[]), data(&one), trailers],
        ),
        shape(
            "other frames in between",
            &[
                head(ECHO, &[]),
                data(&one[..3]),
                noise.concat(),
                last(&one[3..]),
            ],
        ),
    ]
}

/// What compression of headers allows.
fn tables() -> Vec<Shape> {
    let fields = call(INSPECT, &[("x-first", "one"), ("x-second", "two")]);
    let as_literals = |first: u8| -> Vec<u8> {
        fields
            .iter()
            .flat_map(|field| literal(first, field))
            .collect()
    };
    let kept = as_literals(0x40);
    // The last that was kept is the first of the table, behind 61 that everybody knows.
    let known: Vec<u8> = (0..fields.len())
        .map(|at| 0x80 | u8::try_from(61 + fields.len() - at).unwrap_or(0))
        .collect();
    let again = frame(HEADERS, END_HEADERS, 3, known);
    let huffman = [
        0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
    ];
    let coded = [
        &as_literals(0)[..],
        &[0x00, 3, b'x', b'-', b'h', 0x8c],
        &huffman,
    ]
    .concat();
    let begin = |block: &[u8]| frame(HEADERS, END_HEADERS, 1, block);
    let none = [&[0x20], &as_literals(0x40)[..]].concat();
    vec![
        shape(
            "fields that are never indexed",
            &[begin(&as_literals(0x10)), last(message(0))],
        ),
        shape(
            "a value in Huffman code",
            &[begin(&coded), last(message(0))],
        ),
        shape("a table of nothing", &[begin(&none), last(message(0))]),
        Shape {
            stream: 3,
            ..shape(
                "fields from the table",
                &[
                    begin(&kept),
                    last(message(0)),
                    again,
                    frame(DATA, END_STREAM, 3, message(0)),
                ],
            )
        },
        Shape {
            settings: vec![(1, 0)],
            ..shape(
                "a client without a table",
                &[head(ECHO, &[("h-a", "b"), ("t-a", "b")]), last(message(3))],
            )
        },
        Shape {
            settings: vec![(1, 65_536)],
            ..shape(
                "a client with a large table",
                &[head(ECHO, &[("h-a", "b"), ("t-a", "b")]), last(message(3))],
            )
        },
    ]
}

/// Windows and frames of unusual sizes.
fn windows() -> Vec<Shape> {
    let asked = |size| [head(SIZE, &[("do-sizes", size)]), last(message(0))];
    vec![
        Shape {
            settings: vec![(4, 1)],
            credit: 1,
            ..shape("an answer byte by byte", &asked("60"))
        },
        Shape {
            settings: vec![(4, 0)],
            then: settings(&[(4, 1_000)]),
            ..shape("a window opened by settings", &asked("500"))
        },
        Shape {
            settings: vec![(4, 0)],
            then: window_update(1, 1_000),
            ..shape("a window opened by itself", &asked("500"))
        },
        Shape {
            settings: vec![(4, 1 << 20), (5, (1 << 24) - 1)],
            ..shape(
                "frames as large as they come",
                &[window_update(0, 1 << 20), asked("300000").concat()],
            )
        },
        Shape {
            settings: vec![(4, 10_000)],
            credit: 10_000,
            ..shape("an answer in pieces of a small window", &asked("50000"))
        },
    ]
}
