//! What a connection tells, and what streams go by.

use bytes::Bytes;
use http::{HeaderMap, request, response};

use crate::error::Error;

/// Names a stream, from its beginning until [`Connection::forget`](crate::Connection::forget); then it may name another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(crate) u32);

impl Key {
    /// Small numbers, to keep things by.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn at(index: usize) -> Self {
        // Streams have numbers of 31 bits.
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }
}

/// What came.
#[derive(Debug)]
pub enum Event {
    /// A request, on a new stream.
    Request {
        /// Its stream.
        stream: Key,
        /// The request without its body.
        head: request::Parts,
        /// Whether this is all of it.
        ends: bool,
    },
    /// The answer to a request of ours.
    Response {
        /// Its stream.
        stream: Key,
        /// The answer without its body.
        head: response::Parts,
        /// Whether this is all of it.
        ends: bool,
    },
    /// A piece of a body.
    Data {
        /// Its stream.
        stream: Key,
        /// May be empty where it is the last.
        data: Bytes,
        /// Whether nothing comes behind it.
        ends: bool,
    },
    /// The end of a body, with fields.
    Trailers {
        /// Its stream.
        stream: Key,
        /// The fields.
        fields: HeaderMap,
    },
    /// A stream ended before its time.
    Reset {
        /// Which.
        stream: Key,
        /// Why, and who said so.
        error: Error,
    },
    /// There may be room for more on one stream.
    Writable(Key),
    /// There may be room on streams that waited for the connection's window.
    ConnectionWritable,
    /// There may be room for more on any stream, or for more streams.
    AllWritable,
    /// The other side takes no new streams; [`Connection::refused`](crate::Connection::refused) tells which of ours it has not begun with.
    GoAway,
}
