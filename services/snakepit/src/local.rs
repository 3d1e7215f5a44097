//! What the relay answers itself: whether the BEAM is there is no question of the worker's life or death.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;
use prost_types::Timestamp;

pub(crate) const PING: &str = "/snakepit.bridge.BridgeService/Ping";
const HEARTBEAT: &str = "/snakepit.bridge.BridgeService/Heartbeat";

/// `snakepit.bridge.PingResponse`.
#[derive(Clone, PartialEq, Message)]
struct Pong {
    #[prost(string, tag = "1")]
    message: String,
    #[prost(message, optional, tag = "2")]
    server_time: Option<Timestamp>,
}

/// `snakepit.bridge.HeartbeatResponse`.
#[derive(Clone, PartialEq, Message)]
struct Beat {
    #[prost(message, optional, tag = "1")]
    server_time: Option<Timestamp>,
    #[prost(bool, tag = "2")]
    session_valid: bool,
}

/// The answer to a call of this method, framed; none where the BEAM is to answer.
pub(crate) fn answer(method: &str) -> Option<Bytes> {
    let server_time = Some(now());
    match method {
        PING => Some(framed(&Pong {
            message: "pong".to_owned(),
            server_time,
        })),
        HEARTBEAT => Some(framed(&Beat {
            server_time,
            session_valid: true,
        })),
        _ => None,
    }
}

/// For people: nothing is decided by it.
fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// A message as it goes over the wire.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut frame = BytesMut::with_capacity(5 + body.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    frame.put_slice(&body);
    frame.freeze()
}
