//! What a call asks of a clerk, as a whole message of gRPC.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

/// The method; it answers with what it was sent.
pub const METHOD: &str = "/bench.Bench/Echo";

/// Stands before a call's number, so that the number is also found by who sees bytes on their way.
pub const MARK: [u8; 8] = *b"clerk#id";

/// One message's head: not compressed, and its length.
const PREFIX: usize = 5;

/// As long as a small message is.
const BYTES: usize = 128;

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Its number, which nobody else's has.
    pub id: u64,
    /// How long serving it takes; zero for as long as the clerk takes by itself.
    pub work: Duration,
}

impl Order {
    /// As a whole message.
    pub fn framed(self) -> Bytes {
        let mut message = BytesMut::with_capacity(PREFIX + BYTES);
        message.put_u8(0);
        message.put_u32(u32::try_from(BYTES).unwrap_or(u32::MAX));
        message.put_slice(&MARK);
        message.put_u64(self.id);
        message.put_u32(u32::try_from(self.work.as_micros()).unwrap_or(u32::MAX));
        message.resize(PREFIX + BYTES, 0);
        message.freeze()
    }

    /// The first in bytes that have one in them, and where it ends.
    pub fn next(bytes: &[u8]) -> Option<(Self, usize)> {
        let at = bytes.windows(MARK.len()).position(|part| part == MARK)?;
        let rest = bytes.get(at + MARK.len()..)?;
        let (id, rest) = rest.split_first_chunk::<8>()?;
        let (work, rest) = rest.split_first_chunk::<4>()?;
        let order = Self {
            id: u64::from_be_bytes(*id),
            work: Duration::from_micros(u32::from_be_bytes(*work).into()),
        };
        Some((order, bytes.len() - rest.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_found_in_the_middle_of_other_bytes_and_half_of_one_is_not() {
        let order = Order {
            id: 4_711,
            work: Duration::from_millis(100),
        };
        let bytes = [b"a frame's head".as_slice(), &order.framed()].concat();

        assert_eq!(Order::next(&bytes), Some((order, 14 + PREFIX + 20)));
        assert_eq!(Order::next(&bytes[..14 + PREFIX + 12]), None);
        assert_eq!(Order::next(b"nothing"), None);
    }
}
