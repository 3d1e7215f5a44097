//! HTTP/2 by hand: frames as bytes on a connection, for what no library would send.

use std::io::ErrorKind;

use fluke_hpack::Decoder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::record::Pairs;
use crate::client::soon;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITISED: u8 = 0x20;

/// One frame of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// A number in the payload, which RST_STREAM begins and GOAWAY goes on with.
    pub(super) fn number_at(&self, at: usize) -> u32 {
        let bytes = self.payload[at..at + 4].try_into();
        u32::from_be_bytes(bytes.expect("it has four bytes"))
    }
}

/// A frame's bytes.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len()).expect("it is short");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(super) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let values = values
        .iter()
        .flat_map(|(key, value)| [&key.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, values.collect::<Vec<u8>>())
}

pub(super) fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, by.to_be_bytes())
}

/// Header fields as literals, neither indexed nor compressed.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = fields.iter();
    fields.flat_map(|field| literal(0x00, field)).collect()
}

/// One field as a literal whose first byte says what the table is to do with it.
pub(super) fn literal(first: u8, (name, value): &(&str, &str)) -> Vec<u8> {
    [
        &[first][..],
        &string(name.as_bytes()),
        &string(value.as_bytes()),
    ]
    .concat()
}

/// A string of HPACK's: its length in seven bits and as many bytes as more takes, and itself.
pub(super) fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match u8::try_from(text.len()) {
        Ok(length) if length < 127 => bytes.push(length),
        _ => {
            bytes.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).unwrap_or(0) | 0x80);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).unwrap_or(0));
        }
    }
    bytes.extend(text);
    bytes
}

/// A message with its prefix.
pub(super) fn message(size: usize) -> Vec<u8> {
    crate::client::framed(&super::pattern::pattern(size)).to_vec()
}

/// One end of a connection.
pub(super) struct Wire {
    stream: BufReader<TcpStream>,
    decoder: Decoder<'static>,
}

impl Wire {
    /// A connection on which nothing has been said.
    pub(super) async fn silent(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        Self::over(stream)
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("it is a TCP socket");
        Self {
            stream: BufReader::new(stream),
            decoder: Decoder::new(),
        }
    }

    /// A connection that has begun as it should, with these settings. Answers with those of the other side, too.
    pub(super) async fn open(address: &str, own: &[(u16, u32)]) -> (Self, Frame) {
        let mut wire = Self::silent(address).await;
        wire.send([PREFACE, &settings(own)].concat()).await;
        let theirs = wire.next().await.expect("it speaks");
        assert_eq!((theirs.kind, theirs.flags), (SETTINGS, 0));
        wire.send(frame(SETTINGS, ACK, 0, [])).await;
        (wire, theirs)
    }

    /// The other end: of a connection that a client has opened.
    pub(super) async fn accept(stream: TcpStream) -> Self {
        let mut wire = Self::over(stream);
        wire.fill(&mut [0; PREFACE.len()]).await;
        wire.send(settings(&[])).await;
        wire
    }

    /// Sends bytes. The other side may have heard enough.
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// The next frame; `None` when the connection is closed.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        soon("a frame", self.read()).await
    }

    /// The next frame, however long it takes.
    pub(super) async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.fill(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let mut payload = vec![0; usize::try_from(length).expect("it fits")];
        self.fill(&mut payload).await?;
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }

    async fn fill(&mut self, buffer: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(buffer).await {
            Ok(_) => Some(()),
            Err(error) => {
                let ends = [
                    ErrorKind::UnexpectedEof,
                    ErrorKind::ConnectionReset,
                    ErrorKind::BrokenPipe,
                ];
                assert!(ends.contains(&error.kind()), "{error}");
                None
            }
        }
    }

    /// The next frame of a kind; what comes before it is of no interest.
    pub(super) async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// The fields of a whole header block.
    pub(super) fn fields(&mut self, block: &[u8]) -> Pairs {
        let fields = self.decoder.decode(block).expect("it is compressed well");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        fields
            .into_iter()
            .map(|(key, value)| (text(key), text(value)))
            .collect()
    }
}
