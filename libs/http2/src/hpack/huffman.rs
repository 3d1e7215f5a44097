//! Strings in Huffman's code (RFC 7541, 5.2 and Appendix B), read only: what we write is not coded, which costs a few
//! bytes on the wire and saves both sides the work.
//!
//! The code is canonical: codes of one length follow one another as their symbols do, and longer ones follow the shorter.
//! So the lengths are all there is to know.

use super::Unreadable;

/// The length of each symbol's code, in bits; the last is of the string's end, which no string may contain.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const LONGEST: usize = 30;
/// Codes up to this length are looked up, which are those of all letters and digits.
const SHORT: usize = 8;
const END: u16 = 256;

struct Code {
    /// For each first byte of a code that is short: its symbol, and its length; 0 where the code is longer.
    short: [(u8, u8); 1 << SHORT],
    /// For each length: the first code that is longer, with its bits leftmost of 32.
    beyond: [u32; LONGEST + 1],
    /// For each length: its first code, as a number of that many bits.
    first: [u32; LONGEST + 1],
    /// For each length: where the symbols of its codes begin among all symbols.
    start: [u16; LONGEST + 1],
    /// All symbols, in the order of their codes.
    symbols: [u16; 257],
}

static CODE: Code = build();

#[expect(
    clippy::cast_possible_truncation,
    reason = "symbols are bytes, but for the last, which is not short"
)]
const fn build() -> Code {
    let mut code = Code {
        short: [(0, 0); 1 << SHORT],
        beyond: [0; LONGEST + 1],
        first: [0; LONGEST + 1],
        start: [0; LONGEST + 1],
        symbols: [0; 257],
    };
    let (mut next, mut placed, mut length) = (0_u32, 0_usize, 1);
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.start[length] = placed as u16;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                code.symbols[placed] = symbol as u16;
                placed += 1;
                if length <= SHORT {
                    let fill = SHORT - length;
                    let mut low = 0;
                    while low < 1 << fill {
                        let at = ((next as usize) << fill) | low;
                        code.short[at] = (symbol as u8, length as u8);
                        low += 1;
                    }
                }
                next += 1;
            }
            symbol += 1;
        }
        // All ones is the end of the longest codes, and would not fit.
        code.beyond[length] = if length == LONGEST {
            u32::MAX
        } else {
            next << (32 - length)
        };
        length += 1;
    }
    code
}

/// Reads a string, and puts it behind what is there.
pub(super) fn read(coded: &[u8], to: &mut Vec<u8>) -> Result<(), Unreadable> {
    // Bits that were read and are not used yet, leftmost.
    let (mut bits, mut count) = (0_u64, 0_usize);
    let mut rest = coded.iter();
    loop {
        while count <= 56 {
            let Some(byte) = rest.next() else { break };
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        let window = (bits >> 32) as u32;
        let (symbol, length) = CODE.short[(window >> (32 - SHORT)) as usize];
        let length = match length {
            0 => {
                let found = (SHORT + 1..=LONGEST).find(|length| window < CODE.beyond[*length]);
                let length = found.unwrap_or(LONGEST);
                if length <= count {
                    let place = (window >> (32 - length)) - CODE.first[length];
                    let at = usize::from(CODE.start[length]) + place as usize;
                    match CODE.symbols.get(at) {
                        Some(symbol) if *symbol != END => to.push(symbol.to_le_bytes()[0]),
                        _ => return Err(Unreadable),
                    }
                }
                length
            }
            length => {
                let length = usize::from(length);
                if length <= count {
                    to.push(symbol);
                }
                length
            }
        };
        if length > count {
            // The rest is padding: less than a byte, and the beginning of the end's code.
            let ones = bits.leading_ones() as usize;
            return match count < 8 && ones >= count {
                true => Ok(()),
                false => Err(Unreadable),
            };
        }
        bits <<= length;
        count -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(coded: &[u8]) -> Result<String, Unreadable> {
        let mut to = Vec::new();
        read(coded, &mut to)?;
        Ok(String::from_utf8(to).unwrap())
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<char> = text.chars().filter(|digit| *digit != ' ').collect();
        let byte =
            |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    /// RFC 7541, C.4 and C.6.
    #[test]
    fn the_examples_are_read() {
        for (coded, text) in [
            ("f1e3c2e5f23a6b a0ab90f4ff", "www.example.com"),
            ("a8eb 1064 9cbf", "no-cache"),
            ("25a849 e95b a97d7f", "custom-key"),
            ("25a8 49e9 5bb8 e8b4 bf", "custom-value"),
            ("6402", "302"),
            ("aec3 771a 4b", "private"),
            (
                "d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (
                "9d29 ad17 1863 c78f 0b97 c8e9 ae82 ae43 d3",
                "https://www.example.com",
            ),
            ("", ""),
        ] {
            assert_eq!(decoded(&hex(coded)).as_deref(), Ok(text), "{coded}");
        }
    }

    #[test]
    fn padding_is_short_and_all_ones_and_the_end_is_not_in_it() {
        // "a" is 00011.
        assert_eq!(decoded(&[0b0001_1111]).as_deref(), Ok("a"));
        for wrong in [
            &[0b0001_1000][..],
            &[0b0001_1110],
            &[0b0001_1111, 0xff],
            &[0xff],
            &[0xff, 0xff, 0xff, 0xff],
            &[0xff, 0xff, 0xff, 0xfc],
        ] {
            assert_eq!(decoded(wrong), Err(Unreadable), "{wrong:?}");
        }
    }

    /// Each symbol by itself, with the code that the lengths make.
    #[test]
    fn every_symbol_is_read() {
        for symbol in 0..=255_u8 {
            let length = usize::from(LENGTHS[usize::from(symbol)]);
            let order = |other: usize| (LENGTHS[other], other);
            let before = (0..257).filter(|other| {
                LENGTHS[*other] as usize == length && order(*other) < order(usize::from(symbol))
            });
            let code = CODE.first[length] + u32::try_from(before.count()).unwrap();
            let padded = (u64::from(code) << (64 - length)) | (u64::MAX >> length);
            let bytes = padded.to_be_bytes();
            let mut to = Vec::new();
            read(&bytes[..length.div_ceil(8)], &mut to).unwrap();
            assert_eq!(to, [symbol]);
        }
    }
}
