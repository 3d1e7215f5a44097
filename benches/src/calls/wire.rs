//! What client and server agree on: methods, messages, windows.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Answers with what it was sent.
pub(crate) const ECHO: &str = "/bench.Bench/Echo";
/// Answers with as many messages as are asked for.
pub(crate) const STREAM: &str = "/bench.Bench/Stream";

/// One message's head: not compressed, and its length.
pub(crate) const PREFIX: usize = 5;

/// A token of a language model, with the time at which it was sent.
pub(crate) const TOKEN_BYTES: u32 = 13;

/// Neither side's windows decide: the largest that HTTP/2 knows for a connection, a mebibyte for a stream.
pub(crate) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// What one stream may have on its way.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;

/// What is asked of [`STREAM`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    /// How many messages; one that hangs after the last has none to come.
    pub(crate) messages: u32,
    /// Of so many bytes, eight or more.
    pub(crate) bytes: u32,
    /// Between two of them; none for as fast as they are taken.
    pub(crate) pause: Duration,
    /// Whether the stream stays open after the last message.
    pub(crate) hangs: bool,
}

impl Order {
    /// As a whole message.
    pub(crate) fn framed(self) -> Bytes {
        let mut message = BytesMut::new();
        message.put_u32(self.messages);
        message.put_u32(self.bytes);
        message.put_u32(u32::try_from(self.pause.as_micros()).unwrap_or(u32::MAX));
        message.put_u8(u8::from(self.hangs));
        framed(&message)
    }

    /// Out of a whole message.
    pub(crate) fn read(mut framed: Bytes) -> Option<Self> {
        (framed.len() == PREFIX + 13).then_some(())?;
        framed.advance(PREFIX);
        Some(Self {
            messages: framed.get_u32(),
            bytes: framed.get_u32(),
            pause: Duration::from_micros(framed.get_u32().into()),
            hangs: framed.get_u8() == 1,
        })
    }
}

/// A message behind its head.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(message);
    framed.freeze()
}

/// A message of so many bytes that begins with a number.
pub(crate) fn numbered(number: u64, bytes: u32) -> Bytes {
    let mut message = vec![0; usize::try_from(bytes).unwrap_or(0).max(8)];
    message[..8].copy_from_slice(&number.to_be_bytes());
    framed(&message)
}

/// Nanoseconds since the first time anybody asked.
pub(crate) fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_written_and_nothing_else_is() {
        let order = Order {
            messages: 3,
            bytes: TOKEN_BYTES,
            pause: Duration::from_micros(2_500),
            hangs: true,
        };

        assert_eq!(Order::read(order.framed()), Some(order));
        assert_eq!(Order::read(numbered(1, 8)), None);
    }

    #[test]
    fn a_numbered_message_has_its_length_and_begins_with_its_number() {
        let message = numbered(7, 128);

        assert_eq!(message.len(), PREFIX + 128);
        assert_eq!(
            message[..PREFIX + 8],
            [0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 7]
        );
    }
}
