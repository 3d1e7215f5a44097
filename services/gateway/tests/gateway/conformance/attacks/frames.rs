//! Frames that are wrong in themselves.

use super::*;

pub(super) fn shapes() -> Vec<Attack> {
    let long = [0; 16_385];
    let padded = |kind| {
        frame(
            kind,
            PADDED | END_HEADERS,
            1,
            [&[200][..], &[0; 10]].concat(),
        )
    };
    let nothing = frame(DATA, PADDED, 1, []);
    let half = frame(HEADERS, WHOLE | PRIORITISED, 1, [0, 0]);
    let promise = [&[0, 0, 0, 2][..], &block(CALL)].concat();
    let promise = frame(PUSH_PROMISE, END_HEADERS, 1, promise);
    let more = frame(CONTINUATION, END_HEADERS, 1, []);
    let cancel = [0, 0, 0, 8];
    vec![
        wrong_size(
            "DATA over the largest frame",
            opened(&frame(DATA, 0, 1, long)),
        ),
        wrong_size(
            "HEADERS over the largest frame",
            frame(HEADERS, WHOLE, 1, long),
        ),
        wrong_size("an unknown frame over the largest", frame(0xee, 0, 0, long)),
        closes("DATA on stream 0", frame(DATA, 0, 0, message(1))),
        closes(
            "DATA on a stream that is idle",
            frame(DATA, 0, 1, message(1)),
        ),
        closes(
            "DATA with more padding than there is",
            opened(&padded(DATA)),
        ),
        wrong_size("DATA that is padded and empty", opened(&nothing)),
        closes("HEADERS on stream 0", headers(0, WHOLE, block(CALL))),
        closes("HEADERS with more padding than there is", padded(HEADERS)),
        wrong_size("HEADERS with half a priority", half),
        closes("PUSH_PROMISE from a client", opened(&promise)),
        closes(
            "PRIORITY on stream 0",
            frame(PRIORITY, 0, 0, [0, 0, 0, 1, 1]),
        ),
        wrong_size("PRIORITY of four bytes", frame(PRIORITY, 0, 1, [0; 4])),
        closes("RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, cancel)),
        closes(
            "RST_STREAM on a stream that is idle",
            frame(RST_STREAM, 0, 1, cancel),
        ),
        wrong_size(
            "RST_STREAM of three bytes",
            opened(&frame(RST_STREAM, 0, 1, [0; 3])),
        ),
        closes("CONTINUATION out of nowhere", more.clone()),
        closes("CONTINUATION after the end of headers", opened(&more)),
        closes(
            "CONTINUATION on stream 0",
            unended(&frame(CONTINUATION, END_HEADERS, 0, [])),
        ),
        closes(
            "CONTINUATION on another stream",
            unended(&frame(CONTINUATION, END_HEADERS, 3, [])),
        ),
        closes("DATA between headers", unended(&frame(DATA, 0, 1, []))),
        closes(
            "HEADERS between headers",
            unended(&headers(3, WHOLE, block(CALL))),
        ),
        closes("PING between headers", unended(&frame(PING, 0, 0, [0; 8]))),
        closes(
            "an unknown frame between headers",
            unended(&frame(0xee, 0, 0, [])),
        ),
    ]
}

/// These bytes after headers that say that more are to come.
fn unended(then: &[u8]) -> Vec<u8> {
    [&headers(1, 0, block(CALL)), then].concat()
}

/// Settings, pings, farewells and windows.
pub(super) fn control() -> Vec<Attack> {
    const LARGEST: u32 = (1 << 31) - 1;
    let twice = |stream| window_update(stream, LARGEST).repeat(2);
    let wide = [window_update(1, LARGEST - 65_535), settings(&[(4, 65_536)])].concat();
    let overflow = Ends::Stream(&[FLOW_CONTROL]);
    vec![
        closes("SETTINGS on stream 1", frame(SETTINGS, 0, 1, [])),
        wrong_size("SETTINGS of five bytes", frame(SETTINGS, 0, 0, [0; 5])),
        wrong_size(
            "an acknowledgement with settings",
            frame(SETTINGS, ACK, 0, [0; 6]),
        ),
        closes("ENABLE_PUSH of 2", settings(&[(2, 2)])),
        too_wide(
            "INITIAL_WINDOW_SIZE over the largest",
            settings(&[(4, 1 << 31)]),
        ),
        closes(
            "MAX_FRAME_SIZE under the smallest",
            settings(&[(5, 16_383)]),
        ),
        closes("MAX_FRAME_SIZE over the largest", settings(&[(5, 1 << 24)])),
        too_wide(
            "INITIAL_WINDOW_SIZE that makes a window too large",
            opened(&wide),
        ),
        wrong_size("PING of seven bytes", frame(PING, 0, 0, [0; 7])),
        closes("PING on stream 1", frame(PING, 0, 1, [0; 8])),
        closes("GOAWAY on stream 1", frame(GOAWAY, 0, 1, [0; 8])),
        closes("WINDOW_UPDATE by nothing", window_update(0, 0)),
        intolerable(
            "WINDOW_UPDATE of a stream by nothing",
            opened(&window_update(1, 0)),
        ),
        wrong_size(
            "WINDOW_UPDATE of three bytes",
            frame(WINDOW_UPDATE, 0, 0, [0; 3]),
        ),
        closes(
            "WINDOW_UPDATE of a stream that is idle",
            window_update(1, 1),
        ),
        too_wide("WINDOW_UPDATE over the largest window", twice(0)),
        (
            "WINDOW_UPDATE over a stream's largest window",
            opened(&twice(1)),
            overflow,
        ),
    ]
}
