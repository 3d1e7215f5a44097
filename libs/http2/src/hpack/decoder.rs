//! Reading header blocks.

use std::collections::VecDeque;

use super::{ENTRY_OVERHEAD, Field, TABLE_SIZE, Unreadable, huffman, number, table};

/// What a buffer may keep from one field to the next.
const KEPT: usize = 4 << 10;

/// Reads the header blocks of one connection, in the order in which they come.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The last that came is the first.
    entries: VecDeque<(Field, usize)>,
    size: usize,
    /// How large the other side keeps its table, which is at most what we have offered.
    limit: Limit,
    name: Vec<u8>,
    value: Vec<u8>,
}

#[derive(Debug)]
struct Limit(usize);

impl Default for Limit {
    fn default() -> Self {
        Self(TABLE_SIZE)
    }
}

impl Decoder {
    /// Reads a block; `each` is given its fields, and the size of each as RFC 9113 counts it (6.5.2).
    ///
    /// # Errors
    /// Where it cannot be read. No other block can be, then.
    pub(crate) fn read(
        &mut self,
        mut block: &[u8],
        mut each: impl FnMut(Field, usize),
    ) -> Result<(), Unreadable> {
        let mut may_resize = true;
        while let Some(first) = block.first().copied() {
            let resizes = first >> 5 == 0b001;
            if resizes {
                let limit = number::read(&mut block, 5)?;
                if !may_resize || limit > TABLE_SIZE {
                    return Err(Unreadable);
                }
                self.limit = Limit(limit);
                self.evict(0);
                continue;
            }
            may_resize = false;
            if first & 0x80 != 0 {
                let at = number::read(&mut block, 7)?;
                let (field, size) = self.get(at)?;
                each(field.clone(), *size);
                continue;
            }
            let keeps = first & 0x40 != 0;
            let at = number::read(&mut block, if keeps { 6 } else { 4 })?;
            let (mut field, size) = self.literal(at, &mut block)?;
            // Whoever passes it on is to keep it out of tables too (RFC 7541, 6.2.3).
            if !keeps
                && first & 0x10 != 0
                && let Field::Plain(_, value) = &mut field
            {
                value.set_sensitive(true);
            }
            if keeps {
                self.keep(&field, size);
            }
            each(field, size);
        }
        Ok(())
    }

    /// Reads a field that is spelled out, but for its name where `at` is not 0.
    fn literal(&mut self, at: usize, block: &mut &[u8]) -> Result<(Field, usize), Unreadable> {
        let (mut name, mut value) = (
            std::mem::take(&mut self.name),
            std::mem::take(&mut self.value),
        );
        let read = self.parse(at, block, &mut name, &mut value);
        // A connection of years is not to keep what its largest field took.
        for room in [&mut name, &mut value] {
            if room.capacity() > KEPT {
                *room = Vec::new();
            }
        }
        (self.name, self.value) = (name, value);
        read
    }

    fn parse(
        &self,
        at: usize,
        block: &mut &[u8],
        name: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<(Field, usize), Unreadable> {
        if at == 0 {
            let name = string(block, name)?;
            let value = string(block, value)?;
            let size = name.len() + value.len() + ENTRY_OVERHEAD;
            return Ok((Field::parse(name, value), size));
        }
        let (known, _) = self.get(at)?;
        let value = string(block, value)?;
        let size = known.name().len() + value.len() + ENTRY_OVERHEAD;
        Ok((known.with(value), size))
    }

    fn get(&self, at: usize) -> Result<&(Field, usize), Unreadable> {
        match at.checked_sub(table::COUNT + 1) {
            None => table::get(at),
            Some(at) => self.entries.get(at),
        }
        .ok_or(Unreadable)
    }

    fn keep(&mut self, field: &Field, size: usize) {
        self.evict(size);
        // One that is larger than the table has emptied it, and is not kept (RFC 7541, 4.4).
        if size <= self.limit.0 {
            self.size += size;
            self.entries.push_front((field.clone(), size));
        }
    }

    /// Makes room for so much more.
    fn evict(&mut self, more: usize) {
        while self.size + more > self.limit.0 {
            let Some((_, size)) = self.entries.pop_back() else {
                return;
            };
            self.size -= size;
        }
    }
}

/// Reads a string, into `room` where it has to be decoded.
fn string<'a, 'b: 'a>(block: &mut &'b [u8], room: &'a mut Vec<u8>) -> Result<&'a [u8], Unreadable> {
    let coded = block.first().ok_or(Unreadable)? & 0x80 != 0;
    let length = number::read(block, 7)?;
    let (string, rest) = block.split_at_checked(length).ok_or(Unreadable)?;
    *block = rest;
    if !coded {
        return Ok(string);
    }
    room.clear();
    huffman::read(string, room)?;
    Ok(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<char> = text
            .chars()
            .filter(|digit| !digit.is_whitespace())
            .collect();
        let byte =
            |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, Unreadable> {
        let mut fields = Vec::new();
        decoder.read(block, |field, _| {
            let name = String::from_utf8_lossy(field.name()).into_owned();
            let value = match &field {
                Field::Method(method) => method.to_string(),
                Field::Scheme(scheme) => scheme.to_string(),
                Field::Authority(authority) => authority.to_string(),
                Field::Path(path) => path.to_string(),
                Field::Status(status) => status.as_str().to_owned(),
                Field::Plain(_, value) => value.to_str().unwrap().to_owned(),
                Field::Malformed(_) => "?".to_owned(),
            };
            fields.push(format!("{name}: {value}"));
        })?;
        Ok(fields)
    }

    const GET: &str = ":method: GET";
    const SITE: &str = ":authority: www.example.com";

    /// RFC 7541, C.3 and, with Huffman's code, C.4.
    #[test]
    fn the_examples_of_requests_are_read() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let coded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a849 e95b a97d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::default();
            let mut next = |at: usize| read(&mut decoder, &hex(blocks[at])).unwrap();

            assert_eq!(next(0), [GET, ":scheme: http", ":path: /", SITE]);
            assert_eq!(
                next(1),
                [
                    GET,
                    ":scheme: http",
                    ":path: /",
                    SITE,
                    "cache-control: no-cache"
                ]
            );
            assert_eq!(
                next(2),
                [
                    GET,
                    ":scheme: https",
                    ":path: /index.html",
                    SITE,
                    "custom-key: custom-value"
                ]
            );
            assert_eq!(decoder.size, 164);
        }
    }

    /// RFC 7541, C.6: a table of 256 bytes, from which entries are dropped.
    #[test]
    fn the_examples_of_answers_are_read() {
        let mut decoder = Decoder {
            limit: Limit(256),
            ..Decoder::default()
        };
        let mut next = |block: &str| read(&mut decoder, &hex(block)).unwrap();

        let first = next(
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
             2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        );
        assert_eq!(first[0], ":status: 302");
        assert_eq!(first[3], "location: https://www.example.com");
        let second = next("4883 640e ffc1 c0bf");
        assert_eq!(second[0], ":status: 307");
        assert_eq!(second[1..], first[1..]);
        let third = next(
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
             77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
             9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        );
        assert_eq!(third[4], "content-encoding: gzip");
        assert_eq!(decoder.size, 215);
        assert_eq!(decoder.entries.len(), 3);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for block in [
            &[0x80][..],
            &[0xbe],
            &[0x7f, 0x80, 0x01, 1, b'a'],
            // A table that is larger than offered, and one that is resized late.
            &[0x3f, 0xe2, 0x1f],
            &[0x82, 0x20],
            &[0x00, 5, b'a'],
            &[0x40],
            &[0x00, 1, b'a', 0x82, 0x1f, 0xff],
        ] {
            assert_eq!(
                read(&mut Decoder::default(), block),
                Err(Unreadable),
                "{block:?}"
            );
        }
    }

    #[test]
    fn what_no_table_may_have_is_marked_and_nothing_else_is() {
        let is_sensitive = |first: u8| {
            let mut sensitive = None;
            let block = [first, 1, b'a', 1, b'b'];
            let read = Decoder::default().read(&block, |field, _| {
                if let Field::Plain(_, value) = field {
                    sensitive = Some(value.is_sensitive());
                }
            });
            read.map(|()| sensitive)
        };
        assert_eq!(is_sensitive(0x10), Ok(Some(true)));
        assert_eq!(is_sensitive(0), Ok(Some(false)));
        assert_eq!(is_sensitive(0x40), Ok(Some(false)));
    }

    #[test]
    fn a_field_larger_than_the_table_empties_it() {
        let mut decoder = Decoder::default();
        read(&mut decoder, &[0x40, 1, b'a', 1, b'b']).unwrap();
        assert_eq!(read(&mut decoder, &[0xbe]).unwrap(), ["a: b"]);
        let mut large = bytes::BytesMut::from(&[0x40, 1, b'a'][..]);
        number::write(&mut large, 0, 7, TABLE_SIZE);
        large.extend_from_slice(&[b'x'; TABLE_SIZE]);
        read(&mut decoder, &large).unwrap();

        assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
    }

    #[test]
    fn nothing_is_kept_of_what_a_large_field_took() {
        let mut decoder = Decoder::default();
        // In Huffman's code each byte of ones and zeros is a letter and more.
        let mut large = bytes::BytesMut::from(&[0, 1, b'a'][..]);
        number::write(&mut large, 0x80, 7, 5 * 4_000);
        large.extend_from_slice(
            &[
                0b0001_1000,
                0b1100_0110,
                0b0011_0001,
                0b1000_1100,
                0b0110_0011,
            ]
            .repeat(4_000),
        );
        let mut length = 0;
        let read = decoder.read(&large, |field, _| {
            if let Field::Plain(_, value) = field {
                length = value.len();
            }
        });
        read.expect("it is a field");

        assert_eq!(length, 5 * 4_000 * 8 / 5);
        assert!(decoder.value.capacity() <= KEPT);
    }
}
