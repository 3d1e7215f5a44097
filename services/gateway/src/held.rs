//! Bytes that wait, in few pieces: HTTP/2 would keep each small frame by itself, at many times its size.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// How large one piece is at least, and at most: as much as waits already is added at a time.
const LEAST: usize = 1 << 10;
const MOST: usize = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Held {
    pieces: VecDeque<BytesMut>,
    bytes: usize,
}

impl Held {
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds a copy of these bytes at the end.
    pub(crate) fn push(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let free = |piece: &BytesMut| piece.capacity() - piece.len();
            let room = self.pieces.back().map_or(0, free).min(data.len());
            if room == 0 {
                let size = self.bytes.clamp(LEAST, MOST);
                self.pieces.push_back(BytesMut::with_capacity(size));
                continue;
            }
            let (fits, rest) = data.split_at(room);
            if let Some(last) = self.pieces.back_mut() {
                last.extend_from_slice(fits);
            }
            self.bytes += room;
            data = rest;
        }
    }

    /// Copies of its pieces.
    pub(crate) fn copy(&self) -> impl Iterator<Item = Bytes> {
        self.pieces
            .iter()
            .map(|piece| Bytes::copy_from_slice(piece))
    }

    /// The first bytes, at most so many; none where there are none.
    pub(crate) fn take(&mut self, most: usize) -> Option<Bytes> {
        let first = self.pieces.front_mut()?;
        let taken = first.split_to(most.min(first.len()));
        if first.is_empty() {
            // It would keep its memory for as long as the stream lasts.
            self.pieces.pop_front();
        }
        self.bytes -= taken.len();
        Some(taken.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_comes_out_as_it_went_in_and_takes_little_more_memory() {
        let mut dice = fastrand::Rng::with_seed(7);
        let mut held = Held::default();
        let (mut put, mut got) = (Vec::new(), Vec::new());
        for _ in 0..5_000 {
            let size = match dice.u8(..3) {
                0 => dice.usize(..40),
                1 => dice.usize(..2_000),
                _ => 16 << 10,
            };
            let data: Vec<u8> = std::iter::repeat_with(|| dice.u8(..)).take(size).collect();
            held.push(&data);
            put.extend(data);
            if dice.u8(..4) == 0 {
                while let Some(taken) = held.take(dice.usize(1..30_000)) {
                    got.extend(taken);
                    if dice.u8(..40) == 0 {
                        break;
                    }
                }
            }
            let memory: usize = held.pieces.iter().map(BytesMut::capacity).sum();
            assert!(memory <= held.len() + MOST, "{memory} for {}", held.len());
            assert_eq!(held.len(), put.len() - got.len());
        }
        while let Some(taken) = held.take(usize::MAX) {
            got.extend(taken);
        }
        assert!(got == put);
        assert!(held.is_empty() && held.pieces.is_empty());
    }

    #[test]
    fn a_mebibyte_of_small_messages_takes_little_more_than_that() {
        let mut held = Held::default();
        for _ in 0..1 << 16 {
            held.push(&[7; 16]);
        }
        let memory: usize = held.pieces.iter().map(BytesMut::capacity).sum();

        assert_eq!(held.len(), 1 << 20);
        assert!(memory <= (1 << 20) + MOST, "{memory}");
    }
}
