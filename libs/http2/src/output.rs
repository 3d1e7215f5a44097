//! What is to be written: small frames side by side in one piece, large ones as they came.

use std::{collections::VecDeque, io::IoSlice, ops::Range};

use bytes::{Buf as _, Bytes, BytesMut};

/// From this length on a piece of data is not copied.
const LARGE: usize = 4 << 10;

/// What an empty buffer may keep for later.
const KEPT: usize = 64 << 10;

/// Bytes on their way out.
#[derive(Debug, Default)]
pub struct Output {
    /// What comes before `last`.
    first: VecDeque<Bytes>,
    last: BytesMut,
    /// How many bytes are in `first`.
    length: usize,
    /// How many there were before them.
    written: u64,
}

impl Output {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.length + self.last.len()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.length == 0 && self.last.is_empty()
    }

    /// How many were written, ever.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Where the next frame is written to.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.last
    }

    /// Takes the payload of a frame whose head was written: this part of some data.
    pub(crate) fn payload(&mut self, data: &Bytes, part: Range<usize>) {
        if part.len() < LARGE {
            self.last.extend_from_slice(&data[part]);
            return;
        }
        let head = self.last.split().freeze();
        self.length += head.len() + part.len();
        self.first.extend([head, data.slice(part)]);
    }

    /// The first of what is to be written, as many pieces as there is room for; answers with their number.
    pub fn slices<'a>(&'a self, room: &mut [IoSlice<'a>]) -> usize {
        let last = (!self.last.is_empty()).then_some(&self.last[..]);
        let all = self.first.iter().map(|piece| &piece[..]).chain(last);
        let mut count = 0;
        for (slot, piece) in room.iter_mut().zip(all) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// So many bytes were written.
    pub fn advance(&mut self, mut written: usize) {
        self.written += written as u64;
        while let Some(piece) = self.first.front_mut() {
            let part = piece.len().min(written);
            self.length -= part;
            written -= part;
            if part < piece.len() {
                piece.advance(part);
                return;
            }
            self.first.pop_front();
        }
        if written < self.last.len() {
            return self.last.advance(written);
        }
        match self.last.capacity() > KEPT {
            true => self.last = BytesMut::new(),
            false => self.last.clear(),
        }
    }

    /// All of it, in one piece.
    pub fn take(&mut self) -> Bytes {
        self.written += self.len() as u64;
        let mut whole = BytesMut::with_capacity(self.len());
        self.first
            .drain(..)
            .for_each(|piece| whole.extend_from_slice(&piece));
        whole.extend_from_slice(&self.last);
        self.length = 0;
        self.last.clear();
        whole.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_leave_in_order_however_they_are_written() {
        for step in 1..40 {
            let mut output = Output::default();
            let mut expected = Vec::new();
            for round in 0..6_u8 {
                output.buffer().extend_from_slice(&[round; 9]);
                expected.extend([round; 9]);
                let size = if round % 2 == 0 { LARGE + 3 } else { 10 };
                output.payload(&Bytes::from(vec![round + 100; size]), 0..size);
                expected.extend(vec![round + 100; size]);
            }
            let mut written: Vec<u8> = Vec::new();
            while !output.is_empty() {
                let mut room = [IoSlice::new(&[]); 3];
                let count = output.slices(&mut room);
                let bytes: Vec<u8> = room[..count].iter().flat_map(|one| one.to_vec()).collect();
                let part = bytes.len().min(step * 131);
                written.extend(&bytes[..part]);
                output.advance(part);
                assert_eq!(output.len(), expected.len() - written.len());
            }
            assert!(written == expected, "in steps of {step}");
        }
    }
}
