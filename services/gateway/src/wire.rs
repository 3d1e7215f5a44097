//! HTTP/2 as calls see it, by the engine that the configuration names; and what the gateway offers on either side.

use serde::{Deserialize, Serialize};
use tether_http2_io::{Config, either};
pub(crate) use tether_http2_io::{
    Error, Reason,
    either::{
        RecvStream, ResponseFuture, SendRequest, SendResponse, SendStream, Server, accept, connect,
    },
    recycle,
};

/// Who reads and writes HTTP/2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The h2 library.
    H2,
    /// Our own, made for passing calls on.
    #[default]
    Own,
}

impl From<Engine> for either::Engine {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::H2 => Self::H2,
            Engine::Own => Self::Own,
        }
    }
}

/// The largest window HTTP/2 knows. Streams share the connection's window, so with a smaller one a
/// client that does not read its streams would keep all others from the same worker waiting.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// What a worker may send of one stream that is not read, in bytes: with the buffer below a MiB in all.
const STREAM_WINDOW: u32 = 960 << 10;
/// What one call may send while nobody takes it, in bytes: as long as it waits for a worker nothing is read of it.
const CLIENT_WINDOW: u32 = 256 << 10;
/// The most that waits in HTTP/2 for one receiver that does not take it, in bytes: of one connection or, where each of
/// its streams has its own, a quarter of this of each.
const SEND_BUFFER: usize = 256 << 10;
/// The most metadata one call may carry each way, in bytes; details of an error fit in.
const HEADER_LIST: u32 = 64 << 10;
/// Calls that one client may have under way on one connection.
const MAX_STREAMS: u32 = 100_000;
/// Calls a client may cancel before the gateway has looked at them; more is an attack.
const MAX_ABANDONED: usize = 1_000;

/// No pings of any kind: Python's gRPC server closes the connection of a client that pings more
/// than it likes, and whether a worker lives is for its agent to say.
pub(crate) const TO_SERVERS: Config = Config {
    stream_window: STREAM_WINDOW,
    ..TO_CLIENTS
};

pub(crate) const TO_CLIENTS: Config = Config {
    max_streams: MAX_STREAMS,
    stream_window: CLIENT_WINDOW,
    connection_window: CONNECTION_WINDOW,
    header_list: HEADER_LIST,
    send_buffer: SEND_BUFFER,
    max_abandoned: MAX_ABANDONED,
};
