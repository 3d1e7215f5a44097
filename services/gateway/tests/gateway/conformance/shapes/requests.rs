//! Heads that are odd and allowed, and bodies that are no messages.

use super::*;

/// Heads that are odd and allowed.
pub(super) fn heads() -> Vec<Shape> {
    let inspected =
        |name, more: &[(&str, &str)]| shape(name, &[head(INSPECT, more), last(message(0))]);
    let changed = |name, key: &str, value: &str| {
        let fields = call(INSPECT, &[])
            .into_iter()
            .map(|(old, was)| (old, if old == key { value } else { was }));
        let fields: Fields<'_> = fields.filter(|(_, value)| !value.is_empty()).collect();
        shape(
            name,
            &[
                frame(HEADERS, END_HEADERS, 1, block(&fields)),
                last(message(0)),
            ],
        )
    };
    let many: Vec<String> = (0..100).map(|at| format!("x-{at}")).collect();
    let many: Fields<'_> = many.iter().map(|key| (key.as_str(), "w")).collect();
    vec![
        changed("no te", "te", ""),
        changed("no authority", ":authority", "").on_grpcio(Grpcio::CannotRead),
        changed("an odd authority", ":authority", "user@[::1]:99"),
        changed(
            "content of a subtype",
            "content-type",
            "application/grpc+proto",
        ),
        changed(
            "content with a parameter",
            "content-type",
            "application/grpc;charset=utf-8",
        ),
        changed("a scheme of https", ":scheme", "https"),
        changed(
            "a path with a query",
            ":path",
            "/conform.v1.Contract/Inspect?a=b&c=%20",
        ),
        changed(
            "a path with a percent sign",
            ":path",
            "/conform.v1.Contract/Insp%65ct",
        ),
        changed(
            "a path that is not there",
            ":path",
            "/conform.v1.Contract/nothing",
        ),
        changed("a path without a method", ":path", "/conform.v1.Contract"),
        changed(
            "a path that goes deeper",
            ":path",
            "/a/conform.v1.Contract/Inspect",
        ),
        inspected("cookies in crumbs", &[("cookie", "a=b"), ("cookie", "c=d")]),
        inspected(
            "a name of the client",
            &[("user-agent", "grpc-c/1.0 (hand-made)")],
        ),
        inspected("a hundred fields", &many),
        inspected("spaces around a value", &[("x-word", " w  ")]),
        inspected("letters beyond ASCII", &[("x-word", "äöü")]),
        inspected("a tab in a value", &[("x-word", "a\tb")]),
        inspected(
            "binary with padding",
            &[("x-bin", "AAE="), ("x-bin", "AA==")],
        ),
        inspected(
            "binary without padding",
            &[("x-bin", "AAE"), ("x-bin", "AA")],
        ),
        inspected("binary in one field", &[("x-bin", "AAE,AA")]),
        inspected(
            "encodings that are accepted",
            &[("grpc-accept-encoding", "identity,gzip,br")],
        ),
        inspected("a deadline in hours", &[("grpc-timeout", "1H")]),
        inspected(
            "a deadline in microseconds",
            &[("grpc-timeout", "60000000u")],
        ),
        inspected("the length of the content", &[("content-length", "5")]),
    ]
}

/// Bodies that are no messages.
pub(super) fn messages() -> Vec<Shape> {
    let flagged = |flag: u8| [&[flag][..], &message(4)[1..]].concat();
    let short = message(100)[..50].to_vec();
    let two = [message(3), message(4)].concat();
    let encoded = [("grpc-encoding", "snappy")];
    vec![
        shape(
            "a compressed message without an encoding",
            &[head(ECHO, &[]), last(flagged(1))],
        ),
        shape(
            "an encoding nobody knows",
            &[head(ECHO, &encoded), last(flagged(1))],
        ),
        shape(
            "an encoding nobody uses",
            &[head(ECHO, &encoded), last(flagged(0))],
        ),
        shape("a flag that is none", &[head(ECHO, &[]), last(flagged(7))])
            .on_grpcio(Grpcio::Guesses),
        shape("half a message", &[head(ECHO, &[]), last(&short)]),
        shape("half a prefix", &[head(ECHO, &[]), last([0, 0, 0])]),
        shape(
            "half a message in an upload",
            &[head(DIGEST, &[]), last([message(3), short].concat())],
        ),
        shape(
            "two messages in a unary call",
            &[head(ECHO, &[]), last(two)],
        ),
    ]
}
