//! What came for one stream and was not taken yet.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// So many pieces are kept, each with the buffer that it is in. What comes beyond is one piece: many small ones would take
/// many times their size.
const PIECES: usize = 8;

/// A piece that is smaller is no part of what was read with it, and is put together with those beside it.
const LARGE: usize = 8 << 10;

/// How long a piece that was put together gets before another one is begun.
const MERGED: usize = 32 << 10;

/// The room that a piece which is put together begins with, for so many as long as its first.
const FIRST: usize = 4;

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
        self.more.get_or_insert_default().push(data);
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
    fn push(&mut self, data: Bytes) {
        let is_large = data.len() >= LARGE;
        let fits = !is_large && self.rest.len() + data.len() <= MERGED;
        if !fits && !self.rest.is_empty() && self.pieces.len() < PIECES {
            self.pieces
                .push_back(std::mem::take(&mut self.rest).freeze());
        }
        if is_large && self.rest.is_empty() && self.pieces.len() < PIECES {
            return self.pieces.push_back(data);
        }
        if self.rest.is_empty() {
            self.rest.reserve(FIRST * data.len());
        }
        self.rest.extend_from_slice(&data);
    }

    fn pop(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.pieces.pop_front() {
            return Some(piece);
        }
        (!self.rest.is_empty()).then(|| std::mem::take(&mut self.rest).freeze())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(received: &mut Received) -> (Vec<u8>, usize) {
        let pieces: Vec<Bytes> = std::iter::from_fn(|| received.pop()).collect();
        (pieces.concat(), pieces.len())
    }

    #[test]
    fn bytes_leave_as_they_came_and_small_ones_are_kept_together() {
        let mut received = Received::default();
        for byte in 0..100 {
            received.push(Bytes::from(vec![byte; 3]));
        }
        let all: Vec<u8> = (0..100).flat_map(|byte| [byte; 3]).collect();
        assert_eq!(taken(&mut received), (all, 2));

        received.push(Bytes::from_static(b"word"));
        assert_eq!(received.clear(), 4);
        assert!(received.is_empty());
    }

    proptest! {
        #[test]
        fn pieces_of_any_length_leave_as_they_came_and_are_few(
            steps in proptest::collection::vec((0..2 * LARGE, any::<bool>(), 0..16_u8), 0..120),
        ) {
            let (mut received, mut put, mut got) = (Received::default(), Vec::new(), Vec::new());
            for (length, is_small, pops) in steps {
                let length = 1 + if is_small { length % 40 } else { length };
                let piece = vec![u8::try_from(put.len() % 251).unwrap_or(0); length];
                put.extend_from_slice(&piece);
                received.push(Bytes::from(piece));
                if pops == 0 {
                    got.extend(received.pop().into_iter().flatten());
                }
            }
            let (rest, count) = taken(&mut received);
            got.extend(rest);
            prop_assert!(got == put);
            prop_assert!(count <= PIECES + 2, "{}", count);
        }
    }
}
