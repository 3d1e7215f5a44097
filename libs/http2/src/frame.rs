//! Frames as they are on the wire (RFC 9113, 4 and 6).

use bytes::{BufMut as _, BytesMut};

use crate::error::Reason;

/// What a client's connection begins with.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of a frame's head.
pub(crate) const HEAD: usize = 9;
/// The largest payload that we take, and that everybody takes.
pub(crate) const MAX_FRAME: usize = 16_384;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIORITISED: u8 = 32;

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    /// Reads it, without the bit that is reserved.
    pub(crate) fn read(from: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = from.first_chunk::<HEAD>()?;
        Some(Self {
            length: u32::from_be_bytes([0, *a, *b, *c]) as usize,
            kind: *kind,
            flags: *flags,
            stream: number(stream) & (u32::MAX >> 1),
        })
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Reads four bytes.
pub(crate) fn number(bytes: &[u8; 4]) -> u32 {
    u32::from_be_bytes(*bytes)
}

/// The padding of a frame's payload: what comes before the rest, and what behind.
pub(crate) fn padding(head: &Head, payload: &[u8]) -> Result<(usize, usize), Reason> {
    if !head.has(PADDED) {
        return Ok((0, 0));
    }
    let padding = usize::from(*payload.first().ok_or(Reason::FRAME_SIZE_ERROR)?);
    match padding < payload.len() {
        true => Ok((1, padding)),
        false => Err(Reason::PROTOCOL_ERROR),
    }
}

/// Writes a frame's head.
pub(crate) fn head(to: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    to.put_uint(length as u64, 3);
    to.put_u8(kind);
    to.put_u8(flags);
    to.put_u32(stream);
}

/// Writes a frame of some numbers.
pub(crate) fn numbers<const N: usize>(to: &mut BytesMut, kind: u8, stream: u32, numbers: [u32; N]) {
    head(to, 4 * N, kind, 0, stream);
    numbers.into_iter().for_each(|number| to.put_u32(number));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back_without_its_reserved_bit() {
        let mut to = BytesMut::new();
        head(&mut to, 0x01_02_03, HEADERS, END_HEADERS, 0x8000_0005);
        let read = Head::read(&to).unwrap();

        assert_eq!(
            (read.length, read.kind, read.stream),
            (0x01_02_03, HEADERS, 5)
        );
        assert!(read.has(END_HEADERS) && !read.has(END_STREAM));
        assert_eq!(Head::read(&to[..8]), None);
    }

    #[test]
    fn padding_is_shorter_than_the_payload() {
        let padded = |payload: &[u8]| {
            let head = Head {
                length: payload.len(),
                kind: DATA,
                flags: PADDED,
                stream: 1,
            };
            padding(&head, payload)
        };
        assert_eq!(padded(&[2, 7, 0, 0]), Ok((1, 2)));
        assert_eq!(padded(&[0]), Ok((1, 0)));
        assert_eq!(padded(&[4, 7, 0, 0]), Err(Reason::PROTOCOL_ERROR));
        assert_eq!(padded(&[]), Err(Reason::FRAME_SIZE_ERROR));
    }
}
