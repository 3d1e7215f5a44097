//! Numbers that begin in the last bits of a byte (RFC 7541, 5.1).

use bytes::{BufMut as _, BytesMut};

use super::Unreadable;

/// No table and no string is as long as this.
const LARGEST: u32 = 1 << 28;

/// Reads a number whose first bits are the last `bits` of the first byte, and moves past it.
pub(super) fn read(from: &mut &[u8], bits: u32) -> Result<usize, Unreadable> {
    let (first, mut rest) = from.split_first().ok_or(Unreadable)?;
    let full = (1_u32 << bits) - 1;
    let mut number = u32::from(*first) & full;
    if number == full {
        let mut shift = 0;
        loop {
            let (byte, more) = rest.split_first().ok_or(Unreadable)?;
            rest = more;
            // Five of them hold any number that is allowed, however many zeros it is led by.
            if shift > 28 {
                return Err(Unreadable);
            }
            let part = u64::from(byte & 0x7f) << shift;
            let sum = u64::from(number) + part;
            number = u32::try_from(sum)
                .ok()
                .filter(|sum| *sum <= LARGEST)
                .ok_or(Unreadable)?;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
        }
    }
    *from = rest;
    Ok(number as usize)
}

/// Writes a number behind the first bits of a byte.
pub(super) fn write(to: &mut BytesMut, first: u8, bits: u32, number: usize) {
    let full = (1_usize << bits) - 1;
    if number < full {
        to.put_u8(first | low(number));
        return;
    }
    to.put_u8(first | low(full));
    let mut rest = number - full;
    while rest >= 0x80 {
        to.put_u8(low(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    to.put_u8(low(rest));
}

/// The last eight bits.
fn low(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(first: u8, bits: u32, number: usize) -> Vec<u8> {
        let mut to = BytesMut::new();
        write(&mut to, first, bits, number);
        to.to_vec()
    }

    /// RFC 7541, C.1.
    #[test]
    fn the_examples_are_read_and_written() {
        for (bits, number, bytes) in [
            (5, 10, &[0b01010][..]),
            (5, 1337, &[0b11111, 0b1001_1010, 0b0000_1010]),
            (8, 42, &[0b0010_1010]),
        ] {
            assert_eq!(written(0, bits, number), bytes);
            let mut from = bytes;
            assert_eq!(read(&mut from, bits), Ok(number));
            assert!(from.is_empty());
        }
    }

    #[test]
    fn every_number_reads_back() {
        for bits in 4..=7 {
            for number in (0..70_000).chain([1 << 20, LARGEST as usize]) {
                let bytes = written(0, bits, number);
                let mut from = &bytes[..];
                assert_eq!(read(&mut from, bits), Ok(number));
            }
        }
    }

    #[test]
    fn one_that_is_too_large_or_without_end_is_refused() {
        let too_large = written(0, 5, LARGEST as usize + 1);
        for bytes in [
            &[0xff; 12][..],
            &[0x1f, 0x80, 0x80],
            &[0x1f],
            &[],
            &too_large,
        ] {
            assert_eq!(read(&mut &bytes[..], 5), Err(Unreadable), "{bytes:?}");
        }
    }
}
