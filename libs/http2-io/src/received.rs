//! What came for one stream and was not taken yet.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// So many pieces are kept as they came, each with the buffer that it was read into. What comes beyond is one piece: many
/// small ones would take many times their size.
const PIECES: usize = 8;

/// Most streams never have more than one piece waiting.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Empty where there is none.
    first: Bytes,
    more: Option<Box<More>>,
}

#[derive(Debug, Default)]
struct More {
    pieces: VecDeque<Bytes>,
    rest: BytesMut,
}

impl Received {
    /// Takes a piece, which is not empty.
    pub(crate) fn push(&mut self, data: Bytes) {
        if self.is_empty() {
            self.first = data;
            return;
        }
        let more = self.more.get_or_insert_default();
        if more.pieces.len() < PIECES && more.rest.is_empty() {
            more.pieces.push_back(data);
        } else {
            more.rest.extend_from_slice(&data);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        if self.is_empty() {
            return None;
        }
        let next = self.more.as_mut().and_then(|more| more.pop());
        if next.is_none() {
            self.more = None;
        }
        Some(std::mem::replace(&mut self.first, next.unwrap_or_default()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Forgets it all; answers with how many bytes that was.
    pub(crate) fn clear(&mut self) -> usize {
        let mut bytes = 0;
        while let Some(piece) = self.pop() {
            bytes += piece.len();
        }
        bytes
    }
}

impl More {
    fn pop(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.pieces.pop_front() {
            return Some(piece);
        }
        (!self.rest.is_empty()).then(|| std::mem::take(&mut self.rest).freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_as_they_came_and_small_ones_are_kept_together() {
        let mut received = Received::default();
        for byte in 0..100 {
            received.push(Bytes::from(vec![byte; 3]));
        }
        let mut all = Vec::new();
        let mut pieces = 0;
        while let Some(piece) = received.pop() {
            all.extend_from_slice(&piece);
            pieces += 1;
        }

        assert_eq!(
            all,
            (0..100).flat_map(|byte| [byte; 3]).collect::<Vec<u8>>()
        );
        assert_eq!(pieces, PIECES + 2);
        received.push(Bytes::from_static(b"word"));
        assert_eq!(received.clear(), 4);
        assert!(received.is_empty());
    }
}
