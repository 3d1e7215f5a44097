//! Frames by hand.

use bytes::{Bytes, BytesMut};
use tether_http2::{Config, Connection, Error, Event, Role};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const WHOLE: u8 = END_STREAM | END_HEADERS;

pub(crate) const CALL: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.B/Echo"),
    (":authority", "site"),
    ("te", "trailers"),
];

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len())
        .expect("it is as it should be")
        .to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()];
    [&head.concat(), payload].concat()
}

pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut encoder = fluke_hpack::Encoder::new();
    let pairs = fields
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    encoder.encode(pairs)
}

/// A frame that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(
            self.payload[at..at + 4]
                .try_into()
                .expect("it is as it should be"),
        )
    }
}

/// The frames in what was written.
pub(crate) fn frames(mut written: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, s, t, u, v, rest @ ..] = written {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (payload, more) = rest.split_at(length);
        frames.push(Frame {
            kind: *kind,
            flags: *flags,
            stream: u32::from_be_bytes([*s, *t, *u, *v]),
            payload: payload.to_vec(),
        });
        written = more;
    }
    assert!(written.is_empty(), "half a frame");
    frames
}

/// One end, and what was sent to it.
pub(crate) struct End {
    pub(crate) connection: Connection,
    input: BytesMut,
}

impl End {
    pub(crate) fn new(role: Role, config: Config) -> Self {
        Self {
            connection: Connection::new(role, config),
            input: BytesMut::new(),
        }
    }

    /// A server whose client has begun as it should.
    pub(crate) fn server() -> Self {
        let mut end = Self::new(Role::Server, Config::default());
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, [])].concat();
        end.read(&hello).expect("it is as it should be");
        end.written();
        end
    }

    /// A client whose server has begun as it should.
    pub(crate) fn client() -> Self {
        let mut end = Self::new(Role::Client, Config::default());
        end.read(&frame(SETTINGS, 0, 0, []))
            .expect("it is as it should be");
        end.connection.output().take();
        end
    }

    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<Vec<Event>, Error> {
        self.input.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(event) = self.connection.next(&mut self.input)? {
            events.push(event);
        }
        Ok(events)
    }

    pub(crate) fn written(&mut self) -> Vec<Frame> {
        let written: Bytes = self.connection.output().take();
        self.connection.on_written();
        frames(&written)
    }
}
