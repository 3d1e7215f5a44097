//! Answers that no gRPC library gives: other servers do, or something between. A worker that gives them, frame by
//! frame, and a case for each.

use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Speaks,
    case::{Case, Compare, Kind},
    wire::*,
};

/// Says which answer is asked for.
const ASKED: &str = "do-answer";

type Fields<'a> = &'a [(&'a str, &'a str)];

const OK: Fields<'_> = &[("grpc-status", "0")];
const GONE: Fields<'_> = &[("grpc-status", "5"), ("grpc-message", "gone")];

/// The frames of one stream.
struct On(u32);

impl On {
    fn fields(&self, flags: u8, fields: Fields<'_>) -> Vec<u8> {
        frame(HEADERS, END_HEADERS | flags, self.0, block(fields))
    }

    /// The head of an answer in gRPC, with these fields too.
    fn head(&self, flags: u8, more: Fields<'_>) -> Vec<u8> {
        let usual = [(":status", "200"), ("content-type", "application/grpc")];
        self.fields(flags, &[&usual, more].concat())
    }

    fn data(&self, flags: u8, bytes: &[u8]) -> Vec<u8> {
        frame(DATA, flags, self.0, bytes)
    }

    fn trailers(&self, fields: Fields<'_>) -> Vec<u8> {
        self.fields(END_STREAM, fields)
    }

    fn reset(&self, code: u32) -> Vec<u8> {
        frame(RST_STREAM, 0, self.0, code.to_be_bytes())
    }

    /// A message, and these trailers.
    fn ending(&self, trailers: Fields<'_>) -> Vec<u8> {
        [
            self.head(0, &[]),
            self.data(0, &message(4)),
            self.trailers(trailers),
        ]
        .concat()
    }

    /// A body instead of messages, and that it went well.
    fn body(&self, bytes: &[u8]) -> Vec<u8> {
        [self.head(0, &[]), self.data(0, bytes), self.trailers(OK)].concat()
    }

    /// An answer of HTTP, with a page or without.
    fn http(&self, status: &str, page: &str) -> Vec<u8> {
        let head: Fields<'_> = &[(":status", status), ("content-type", "text/html")];
        match page {
            "" => self.fields(END_STREAM, head),
            page => [self.fields(0, head), self.data(END_STREAM, page.as_bytes())].concat(),
        }
    }
}

/// Every answer, as it is on a stream.
fn all(stream: u32) -> Vec<(&'static str, Vec<u8>)> {
    let on = On(stream);
    [
        statuses(&on),
        bodies(&on),
        pages(&on),
        resets(&on),
        frames(&on),
    ]
    .concat()
}

fn statuses(on: &On) -> Vec<(&'static str, Vec<u8>)> {
    let odd = |status| on.ending(&[("grpc-status", status)]);
    let worded = |words| on.trailers(&[("grpc-status", "5"), ("grpc-message", words)]);
    let open = |status| [on.head(0, status), on.data(END_STREAM, &[])].concat();
    let both = [on.head(0, OK), on.data(0, &message(4)), on.trailers(GONE)];
    vec![
        ("an answer as it should be", on.ending(OK)),
        ("well, and nothing but a head", on.head(END_STREAM, OK)),
        ("failed, and nothing but a head", on.head(END_STREAM, GONE)),
        ("well by a head that does not end", open(OK)),
        ("failed by a head that does not end", open(GONE)),
        ("well by its head, failed by its trailers", both.concat()),
        ("a status with a zero", odd("05")),
        ("a status beyond those known", odd("17")),
        ("a status below zero", odd("-1")),
        ("a status that is a word", odd("OK")),
        ("a status that is nothing", odd("")),
        ("two statuses", on.ending(&[OK[0], GONE[0]])),
        (
            "words that are badly encoded",
            [on.head(0, &[]), worded("%zz%e4%")].concat(),
        ),
        (
            "words that are not encoded",
            [on.head(0, &[]), worded("a b/c")].concat(),
        ),
        ("trailers without a status", on.ending(&[("x-word", "w")])),
        ("a head and no more", on.head(END_STREAM, &[])),
    ]
}

fn bodies(on: &On) -> Vec<(&'static str, Vec<u8>)> {
    let flagged = |flag: u8| [&[flag], &message(4)[1..]].concat();
    let started = on.head(0, &[]);
    let encoded = [
        on.head(0, &[("grpc-encoding", "snappy")]),
        on.data(0, &flagged(1)),
        on.trailers(OK),
    ];
    let padded = [&[3][..], &message(4), &[0; 3]].concat();
    let padded = on.data(PADDED, &padded);
    vec![
        (
            "no trailers",
            [started.clone(), on.data(END_STREAM, &message(4))].concat(),
        ),
        ("half a message, and well", on.body(&message(4)[..7])),
        (
            "half a message, and no trailers",
            [started.clone(), on.data(END_STREAM, &message(4)[..7])].concat(),
        ),
        ("half a prefix, and well", on.body(&[0, 0])),
        (
            "a compressed message without an encoding",
            on.body(&flagged(1)),
        ),
        ("a flag that is none", on.body(&flagged(9))),
        ("an encoding nobody knows", encoded.concat()),
        (
            "a message that is padded",
            [started.clone(), padded, on.trailers(OK)].concat(),
        ),
        (
            "a message byte by byte",
            [
                started,
                message(4)
                    .iter()
                    .flat_map(|byte| on.data(0, &[*byte]))
                    .collect(),
                on.trailers(OK),
            ]
            .concat(),
        ),
    ]
}

fn pages(on: &On) -> Vec<(&'static str, Vec<u8>)> {
    let other = |fields: Fields<'_>| {
        [
            on.fields(0, fields),
            on.data(0, &message(4)),
            on.trailers(OK),
        ]
        .concat()
    };
    let failed = [
        &[(":status", "503"), ("content-type", "application/grpc")],
        GONE,
    ]
    .concat();
    vec![
        ("no content-type", other(&[(":status", "200")])),
        (
            "another content-type",
            other(&[(":status", "200"), ("content-type", "application/json")]),
        ),
        ("a page of text", on.http("200", "<p>it works")),
        ("HTTP 204", on.http("204", "")),
        ("HTTP 301", on.http("301", "")),
        ("HTTP 400", on.http("400", "")),
        ("HTTP 401", on.http("401", "")),
        ("HTTP 403", on.http("403", "")),
        ("HTTP 404", on.http("404", "")),
        ("HTTP 429", on.http("429", "")),
        ("HTTP 500", on.http("500", "")),
        ("HTTP 502", on.http("502", "")),
        ("HTTP 503", on.http("503", "")),
        ("HTTP 504", on.http("504", "")),
        ("HTTP 503 with a page", on.http("503", "<p>too busy")),
        ("HTTP 404 with a page", on.http("404", "<p>not here")),
        ("HTTP 503 with a status", on.fields(END_STREAM, &failed)),
    ]
}

fn resets(on: &On) -> Vec<(&'static str, Vec<u8>)> {
    let (head, word) = (on.head(0, &[]), on.data(0, &message(4)));
    let well = on.ending(OK);
    vec![
        ("reset: NO_ERROR", on.reset(0)),
        ("reset: PROTOCOL_ERROR", on.reset(1)),
        ("reset: INTERNAL_ERROR", on.reset(2)),
        ("reset: FLOW_CONTROL_ERROR", on.reset(3)),
        ("reset: CANCEL", on.reset(8)),
        ("reset: ENHANCE_YOUR_CALM", on.reset(11)),
        ("reset: INADEQUATE_SECURITY", on.reset(12)),
        ("reset: a code nobody knows", on.reset(99)),
        ("reset after a head", [&head[..], &on.reset(2)].concat()),
        (
            "reset after a message",
            [&head[..], &word, &on.reset(2)].concat(),
        ),
        (
            "cancelled after a message",
            [&head[..], &word, &on.reset(8)].concat(),
        ),
        ("reset after the end", [well, on.reset(0)].concat()),
    ]
}

fn frames(on: &On) -> Vec<(&'static str, Vec<u8>)> {
    let trailers = block(&[OK[0], ("x-word", "w")]);
    let (first, rest) = trailers.split_at(9);
    let cut = [
        on.head(0, &[]),
        on.data(0, &message(4)),
        frame(HEADERS, END_STREAM, on.0, first),
        frame(CONTINUATION, END_HEADERS, on.0, rest),
    ];
    let noise = [
        frame(PING, 0, 0, [7; 8]),
        frame(0xee, 0, on.0, [1]),
        settings(&[(3, 77)]),
        window_update(0, 5),
    ];
    let early = on.fields(0, &[(":status", "103"), ("link", "</a>")]);
    vec![
        ("trailers in two frames", cut.concat()),
        (
            "frames of other kinds in between",
            [
                on.head(0, &[]),
                noise.concat(),
                on.data(0, &message(4)),
                on.trailers(OK),
            ]
            .concat(),
        ),
        (
            "an early hint before the head",
            [early, on.ending(OK)].concat(),
        ),
    ]
}

/// A call for each of them.
pub(super) fn cases(client: Speaks) -> Vec<Case> {
    let case = |(name, _)| {
        Case::new(Kind::ServerStream, "/odd.v1.Answers/Give", name)
            .say(ASKED, name)
            .ends_somehow(compared(client, name))
    };
    all(1).into_iter().map(case).collect()
}

/// How far a client agrees with itself on an answer.
fn compared(client: Speaks, name: &str) -> Compare {
    match (client, name) {
        // It knows neither padding nor hints, both of which the gateway takes out.
        (Speaks::Grpcio, "a message that is padded" | "an early hint before the head") => {
            Compare::Readable
        }
        // It drops messages that wait to be read when something it cannot read arrives behind them.
        (
            Speaks::Grpcio,
            "a status below zero"
            | "a status that is a word"
            | "a status that is nothing"
            | "no trailers"
            | "a page of text"
            | "reset after a message"
            | "cancelled after a message",
        ) => Compare::Code,
        // It minds the flag, or has the good end before it comes to that.
        (Speaks::Grpcio, "a flag that is none") => Compare::Ending,
        // It tells what it makes of the page, or of the status before it.
        (Speaks::Grpcio, "HTTP 503 with a page" | "HTTP 404 with a page") => Compare::Failing,
        // It has words of its own for what it takes for no answer, and forgets the trailers then.
        (Speaks::Tonic, "reset: a code nobody knows" | "half a message, and no trailers") => {
            Compare::Failing
        }
        (Speaks::Tonic, "trailers without a status") => Compare::Code,
        (Speaks::Tonic, name) if name.starts_with("reset: ") => Compare::Code,
        _ => Compare::AllButDetails,
    }
}

pub(super) struct Worker {
    pub(super) address: String,
    _serving: AbortOnDropHandle<()>,
}

impl Worker {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("there is a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(Wire::accept(stream)));
            }
        });
        Self {
            address,
            _serving: AbortOnDropHandle::new(serving),
        }
    }
}

/// Answers what one connection asks for.
async fn serve(wire: impl Future<Output = Wire>) {
    let mut wire = wire.await;
    let mut asked = String::new();
    while let Some(frame) = wire.read().await {
        if frame.kind == SETTINGS && !frame.has(ACK) {
            wire.send(super::wire::frame(SETTINGS, ACK, 0, [])).await;
        }
        if frame.kind == HEADERS {
            let fields = wire.fields(&frame.payload);
            let named = fields.into_iter().find(|(key, _)| key == ASKED);
            asked = named.map(|(_, name)| name).unwrap_or_default();
        }
        if matches!(frame.kind, HEADERS | DATA) && frame.has(END_STREAM) {
            let named = all(frame.stream)
                .into_iter()
                .find(|(name, _)| *name == asked);
            let unknown = || On(frame.stream).head(END_STREAM, &[("grpc-status", "12")]);
            wire.send(named.map_or_else(unknown, |(_, answer)| answer))
                .await;
        }
    }
}
