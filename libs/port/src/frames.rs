//! Where frames begin and end: each is four bytes of its size, and the bytes of one term.

use bytes::{Buf as _, Bytes, BytesMut};

/// The largest frame.
pub const FRAME_MAX: usize = 128 << 20;

/// A frame that says that it is larger than one may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes is larger than {FRAME_MAX}")]
pub struct TooLarge(pub usize);

/// What came of frames.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: BytesMut,
}

impl Frames {
    /// Where further bytes are put. It grows with what comes, and not with what a frame says that it will be.
    pub fn space(&mut self) -> &mut BytesMut {
        self.bytes.reserve(READ);
        &mut self.bytes
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// When one begins that is too large: nothing that follows means anything.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, TooLarge> {
        let Some(head) = self.bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let size = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if size > FRAME_MAX {
            return Err(TooLarge(size));
        }
        if self.bytes.len() - 4 < size {
            return Ok(None);
        }
        self.bytes.advance(4);
        Ok(Some(self.bytes.split_to(size).freeze()))
    }
}

/// How much is read at a time: what a pipe holds.
const READ: usize = 64 << 10;
