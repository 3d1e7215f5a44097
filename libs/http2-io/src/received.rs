//! What came for one stream and was not taken yet.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// So many pieces are kept as they came, each with the buffer that it was read into. What comes beyond is one piece: many
/// small ones would take many times their size.
const PIECES: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Received {
    pieces: VecDeque<Bytes>,
    rest: BytesMut,
}

impl Received {
    pub(crate) fn push(&mut self, data: Bytes) {
        if self.pieces.len() < PIECES && self.rest.is_empty() {
            self.pieces.push_back(data);
        } else {
            self.rest.extend_from_slice(&data);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.pieces.pop_front() {
            return Some(piece);
        }
        (!self.rest.is_empty()).then(|| std::mem::take(&mut self.rest).freeze())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.rest.is_empty()
    }

    /// Forgets it all; answers with how many bytes that was.
    pub(crate) fn clear(&mut self) -> usize {
        let bytes = self.pieces.iter().map(Bytes::len).sum::<usize>() + self.rest.len();
        self.pieces.clear();
        self.rest = BytesMut::new();
        bytes
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
        assert_eq!(pieces, PIECES + 1);
        received.push(Bytes::from_static(b"word"));
        assert_eq!(received.clear(), 4);
        assert!(received.is_empty());
    }
}
