//! What no client may send, after the chapters of h2spec, and how each must end.

mod blocks;
mod frames;
mod streams;

use super::wire::*;

/// How a connection with something malformed on it ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ends {
    /// The connection is closed, after a GOAWAY with one of these codes.
    Connection(&'static [u32]),
    /// The connection is closed, with or without a word.
    Closed,
    /// Stream 1 alone is reset, with one of these codes.
    Stream(&'static [u32]),
    /// Stream 1 is reset or, as RFC 9113 lets an endpoint do (5.4.1), the whole connection closed.
    Either(&'static [u32]),
    /// Stream 1 is answered with this HTTP status.
    Answered(&'static str),
    /// Nothing happens: it is to be ignored.
    Ignored,
    /// As our own engine has it, stream 1 is reset with one of these codes; h2 takes no offence.
    Tolerated(&'static [u32]),
}

/// One attempt: a name, what is sent after a connection has begun well, and how it must end.
pub(super) type Attack = (&'static str, Vec<u8>, Ends);

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const COMPRESSION: u32 = 9;

const WHOLE: u8 = END_HEADERS | END_STREAM;

/// A call that is as it should be.
const CALL: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/conform.v1.Contract/Echo"),
    (":authority", "gateway"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("tether-pool", "digits"),
];

pub(super) fn all() -> Vec<Attack> {
    let groups = [
        frames::shapes(),
        frames::control(),
        streams::states(),
        streams::heads(),
        blocks::all(),
        ignored(),
    ];
    groups.concat()
}

/// Before anything of HTTP/2 is spoken: these are the first bytes.
pub(super) fn prefaces() -> Vec<Attack> {
    let bad = b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec();
    let noise = vec![0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    let bare = [PREFACE, &opened(&[])].concat();
    let twice = [&PREFACE[..20], PREFACE].concat();
    vec![
        ("a preface that is none", bad, Ends::Closed),
        ("noise instead of a preface", noise, Ends::Closed),
        ("a preface cut off by another", twice, Ends::Closed),
        // h2 does not insist on settings.
        ("a preface without settings", bare, Ends::Ignored),
    ]
}

/// What is odd and allowed, or allowed by h2.
fn ignored() -> Vec<Attack> {
    let path = headers(1, WHOLE, block(&[(":path", "/")]));
    let idle = frame(PRIORITY, 0, 7, [0, 0, 0, 1, 1]);
    vec![
        ignore("an unknown frame", frame(0xee, 0xff, 0, [1, 2, 3])),
        ignore(
            "an unknown frame on a stream",
            opened(&frame(0xee, 0, 1, [1])),
        ),
        ignore("an unknown setting", settings(&[(0xeeee, 7)])),
        ignore("PING with unknown flags", frame(PING, 0xfe, 0, [1; 8])),
        ignore("the answer to no PING", frame(PING, ACK, 0, [9; 8])),
        ignore("a reserved bit", opened(&window_update(1 | 1 << 31, 1))),
        ignore("PRIORITY of a stream that is idle", idle),
        // Without a call that is under way the connection may be over at once.
        ignore("GOAWAY during a call", opened(&frame(GOAWAY, 0, 0, [0; 8]))),
        ignore("settings again", settings(&[])),
        (
            "trailers with a pseudo-header",
            opened(&path),
            Ends::Tolerated(&[PROTOCOL]),
        ),
    ]
}

fn headers(stream: u32, flags: u8, block: Vec<u8>) -> Vec<u8> {
    frame(HEADERS, flags, stream, block)
}

/// These bytes on a call whose messages are still to come.
fn opened(then: &[u8]) -> Vec<u8> {
    [&headers(1, END_HEADERS, block(CALL)), then].concat()
}

/// A call with these fields behind the others.
fn with(fields: &[(&str, &str)]) -> Vec<u8> {
    headers(1, END_HEADERS, block(&[CALL, fields].concat()))
}

/// An error of the protocol, which ends the connection.
fn closes(name: &'static str, bytes: Vec<u8>) -> Attack {
    (name, bytes, Ends::Connection(&[PROTOCOL]))
}

/// A frame of the wrong size, for which h2 has no word of its own.
fn wrong_size(name: &'static str, bytes: Vec<u8>) -> Attack {
    (name, bytes, Ends::Connection(&[FRAME_SIZE, PROTOCOL]))
}

/// More window than there may be, for which h2 has a word of its own only at times.
fn too_wide(name: &'static str, bytes: Vec<u8>) -> Attack {
    (name, bytes, Ends::Connection(&[FLOW_CONTROL, PROTOCOL]))
}

/// A header block that cannot be read, for which h2 has no word of its own.
fn unreadable(name: &'static str, bytes: Vec<u8>) -> Attack {
    (name, bytes, Ends::Connection(&[COMPRESSION, PROTOCOL]))
}

/// A request that is none, without harm to other streams.
fn malformed(name: &'static str, bytes: Vec<u8>) -> Attack {
    (name, bytes, Ends::Stream(&[PROTOCOL]))
}

/// A request that is none, which h2 takes for the end of the connection.
fn intolerable(name: &'static str, bytes: Vec<u8>) -> Attack {
    (name, bytes, Ends::Either(&[PROTOCOL]))
}

/// Something on a stream that has ended, and may be forgotten already.
fn late(name: &'static str, bytes: Vec<u8>) -> Attack {
    (name, bytes, Ends::Either(&[STREAM_CLOSED, PROTOCOL]))
}

fn ignore(name: &'static str, bytes: Vec<u8>) -> Attack {
    (name, bytes, Ends::Ignored)
}
