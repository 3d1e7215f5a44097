//! Frames that are well, and wrong where they stand; and requests that are none.

use super::*;

/// What a stream's state or its head forbids.
pub(super) fn states() -> Vec<Attack> {
    let itself = [0, 0, 0, 1, 1];
    let of_itself = frame(
        HEADERS,
        WHOLE | PRIORITISED,
        1,
        [&itself[..], &block(CALL)].concat(),
    );
    let third = headers(3, END_HEADERS, block(CALL));
    let data = frame(DATA, 0, 1, message(1));
    let last = frame(DATA, END_STREAM, 1, message(1));
    let ended = |then: &[u8]| opened(&[&last, then].concat());
    let sized = |length, then: &[u8]| [&with(&[("content-length", length)]), then].concat();
    let unending = headers(1, END_HEADERS, block(&[("x-a", "b")]));
    vec![
        closes("HEADERS on an even stream", headers(2, WHOLE, block(CALL))),
        late(
            "HEADERS on a stream before the last",
            [third, opened(&[])].concat(),
        ),
        late("DATA after the end of a stream", ended(&data)),
        late("HEADERS after the end of a stream", ended(&opened(&[]))),
        late(
            "CONTINUATION after the end of a stream",
            ended(&frame(CONTINUATION, END_HEADERS, 1, [])),
        ),
        malformed("HEADERS that depend on themselves", of_itself),
        malformed(
            "PRIORITY of a stream over itself",
            opened(&frame(PRIORITY, 0, 1, itself)),
        ),
        malformed("trailers that do not end their stream", opened(&unending)),
        malformed("less than content-length says", sized("100", &last)),
        malformed("more than content-length says", sized("1", &last)),
        malformed(
            "frame by frame more than content-length says",
            sized("7", &[&data[..], &last].concat()),
        ),
        malformed("content-length that is no number", sized("ten", &[])),
    ]
}

/// Fields that no request may have, and requests without those they must have.
pub(super) fn heads() -> Vec<Attack> {
    vec![
        intolerable("a key in upper case", with(&[("X-Word", "w")])),
        intolerable("a key with a space", with(&[("x word", "w")])),
        intolerable("a key of no letters", with(&[("", "w")])),
        intolerable(
            "a value with a line's end",
            with(&[("x-word", "a\r\nb: c")]),
        ),
        intolerable("a value with a zero", with(&[("x-word", "a\0b")])),
        intolerable("an unknown pseudo-header", before(&[(":word", "w")])),
        malformed("a pseudo-header of answers", before(&[(":status", "200")])),
        malformed(
            "a pseudo-header behind others",
            with(&[(":authority", "late")]),
        ),
        malformed("no path", without(":path")),
        malformed("no method", without(":method")),
        malformed("no scheme", without(":scheme")),
        malformed("an empty path", changed(":path", "")),
        malformed("two paths", before(&[(":path", "/a")])),
        malformed("two methods", before(&[(":method", "GET")])),
        malformed("two schemes", before(&[(":scheme", "http")])),
        malformed("connection", with(&[("connection", "keep-alive")])),
        malformed("keep-alive", with(&[("keep-alive", "5")])),
        malformed("proxy-connection", with(&[("proxy-connection", "close")])),
        malformed(
            "transfer-encoding",
            with(&[("transfer-encoding", "chunked")]),
        ),
        malformed("upgrade", with(&[("upgrade", "h2c")])),
        malformed("TE other than trailers", changed("te", "gzip")),
    ]
}

/// A call with these fields before the others.
fn before(fields: &[(&str, &str)]) -> Vec<u8> {
    headers(1, END_HEADERS, block(&[fields, CALL].concat()))
}

/// A call without a field.
fn without(name: &str) -> Vec<u8> {
    let rest = CALL.iter().filter(|(key, _)| *key != name);
    headers(1, END_HEADERS, block(&rest.copied().collect::<Vec<_>>()))
}

/// A call in which a field has another value.
fn changed(name: &str, value: &str) -> Vec<u8> {
    let fields = CALL.iter().map(|(key, old)| match *key == name {
        true => (*key, value),
        false => (*key, *old),
    });
    headers(1, END_HEADERS, block(&fields.collect::<Vec<_>>()))
}
