//! Writing header blocks.
//!
//! Many clients share a connection to a worker, so what one of them says must not crowd out what the others say with
//! every call: a field gets a place in the table when it is seen again, and not when it is new. One that is large, that
//! differs by its nature, or that nobody else should be able to guess, never does.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{ENTRY_OVERHEAD, TABLE_SIZE, number, table};

/// A field that takes more of the table than this has no place in it.
const LARGEST: usize = TABLE_SIZE / 8;

/// How many fields are remembered: those in the table, and those that may get there. A power of two.
const SLOTS: usize = 256;

/// Fields of which the next value is another, and those that are secrets, which a table would let somebody find out by
/// trying (RFC 7541, 7.1).
const NEVER: [&str; 14] = [
    "authorization",
    "baggage",
    "content-length",
    "cookie",
    "date",
    "grpc-message",
    "grpc-status-details-bin",
    "grpc-timeout",
    "grpc-trace-bin",
    "proxy-authorization",
    "set-cookie",
    "traceparent",
    "tracestate",
    "x-request-id",
];

/// Writes the header blocks of one connection.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// The last that came is the first.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
    /// Sizes to be told at the beginning of the next block: the smallest there was in between, and the last.
    resized: Option<(usize, usize)>,
    /// How many entries there have been in all.
    count: u64,
    /// By a field's hash: which of all entries it is.
    places: Box<[u64; SLOTS]>,
    /// By a field's hash: the hash of the last that was seen.
    seen: Box<[u32; SLOTS]>,
}

#[derive(Debug)]
struct Entry {
    name: Bytes,
    value: Bytes,
}

impl Entry {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            limit: TABLE_SIZE,
            resized: None,
            count: 0,
            places: Box::new([u64::MAX; SLOTS]),
            seen: Box::new([0; SLOTS]),
        }
    }
}

impl Encoder {
    /// The other side keeps a table of up to this size.
    pub(crate) fn resize(&mut self, offered: usize) {
        let limit = offered.min(TABLE_SIZE);
        if limit == self.limit && self.resized.is_none() {
            return;
        }
        let smallest = self
            .resized
            .map_or(limit, |(smallest, _)| smallest.min(limit));
        self.resized = Some((smallest, limit));
        self.limit = smallest;
        self.evict(0);
        self.limit = limit;
    }

    /// Begins a block.
    pub(crate) fn begin(&mut self, to: &mut BytesMut) {
        if let Some((smallest, last)) = self.resized.take() {
            if smallest < last {
                number::write(to, 0x20, 5, smallest);
            }
            number::write(to, 0x20, 5, last);
        }
    }

    /// Writes a field of the table that the standard lays down.
    pub(crate) fn known(to: &mut BytesMut, number: u8) {
        to.put_u8(0x80 | number);
    }

    /// Writes a field. One that is `sensitive` is kept out of tables, by whoever passes it on too.
    pub(crate) fn field(&mut self, to: &mut BytesMut, name: &str, value: &[u8], sensitive: bool) {
        if sensitive {
            return Self::spell(to, 0x10, 4, name, value);
        }
        let hash = hash(name, value);
        let slot = hash as usize % SLOTS;
        if let Some(at) = self.find(slot, name, value) {
            return number::write(to, 0x80, 7, at);
        }
        let seen = std::mem::replace(&mut self.seen[slot], hash) == hash;
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        if !seen || size > LARGEST.min(self.limit) || NEVER.contains(&name) {
            return Self::spell(to, 0, 4, name, value);
        }
        Self::spell(to, 0x40, 6, name, value);
        self.evict(size);
        self.size += size;
        self.places[slot] = self.count;
        self.count += 1;
        self.entries.push_front(Entry {
            name: Bytes::copy_from_slice(name.as_bytes()),
            value: Bytes::copy_from_slice(value),
        });
    }

    /// The number of a field in the table.
    fn find(&self, slot: usize, name: &str, value: &[u8]) -> Option<usize> {
        let age = self.count.checked_sub(self.places[slot])?.checked_sub(1)?;
        let at = usize::try_from(age).ok()?;
        let entry = self.entries.get(at)?;
        (entry.name == name.as_bytes() && entry.value == value).then_some(table::COUNT + 1 + at)
    }

    fn spell(to: &mut BytesMut, first: u8, bits: u32, name: &str, value: &[u8]) {
        let at = table::find(name);
        number::write(to, first, bits, at);
        if at == 0 {
            string(to, name.as_bytes());
        }
        string(to, value);
    }

    /// Makes room for so much more.
    fn evict(&mut self, more: usize) {
        while self.size + more > self.limit {
            let Some(entry) = self.entries.pop_back() else {
                return;
            };
            self.size -= entry.size();
        }
    }
}

fn string(to: &mut BytesMut, bytes: &[u8]) {
    number::write(to, 0, 7, bytes.len());
    to.extend_from_slice(bytes);
}

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Never 0. Whoever finds two fields with one hash has gained nothing but that one of them is spelled out.
fn hash(name: &str, value: &[u8]) -> u32 {
    let lengths = (name.len() as u64) << 32 | value.len() as u64;
    let hash = add(add(lengths, name.as_bytes()), value);
    // The upper half depends on all of it.
    (hash.wrapping_mul(FACTOR) >> 32) as u32 | 1 << 31
}

/// A hash with these bytes in it, whose number is in it already.
fn add(hash: u64, bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(FACTOR).rotate_left(29);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words
        .iter()
        .fold(hash, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    // The last bytes with some of those before them: to copy a few costs more than to mix them twice.
    let last = match (bytes.last_chunk::<8>(), rest) {
        (_, []) => return hash,
        (Some(last), _) => u64::from_le_bytes(*last),
        (None, rest) => rest
            .iter()
            .fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    mix(hash, last)
}

#[cfg(test)]
mod tests {
    use super::{super::Decoder, *};

    #[derive(Default)]
    struct Pair {
        encoder: Encoder,
        decoder: Decoder,
    }

    impl Pair {
        /// Writes a block and reads it; answers with its length.
        fn pass(&mut self, fields: &[(&str, &str)]) -> usize {
            let mut block = BytesMut::new();
            self.encoder.begin(&mut block);
            for (name, value) in fields {
                self.encoder
                    .field(&mut block, name, value.as_bytes(), false);
            }
            let mut read = Vec::new();
            let each = |field, _| read.push(field);
            self.decoder.read(&block, each).expect("it can be read");
            let parse = |(name, value): &(&str, &str)| {
                super::super::Field::parse(name.as_bytes(), value.as_bytes())
            };
            assert_eq!(read, fields.iter().map(parse).collect::<Vec<_>>());
            block.len()
        }
    }

    const CALL: &[(&str, &str)] = &[
        (":path", "/a.B/Echo"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("tether-pool", "digits"),
    ];

    #[test]
    fn fields_that_differ_anywhere_have_different_hashes() {
        let mut seen = std::collections::HashSet::new();
        for length in 0..40 {
            let value = vec![b'a'; length];
            assert!(seen.insert(hash("x-a", &value)));
            for at in 0..length {
                let mut other = value.clone();
                other[at] = b'b';
                assert!(seen.insert(hash("x-a", &other)), "{length}, {at}");
            }
        }
        assert_ne!(hash("ab", b"c"), hash("a", b"bc"));
    }

    #[test]
    fn what_is_said_again_and_again_takes_a_byte() {
        let mut pair = Pair::default();
        assert!(pair.pass(CALL) > 60);
        assert!(pair.pass(CALL) > 60);
        assert_eq!(pair.pass(CALL), CALL.len());
    }

    #[test]
    fn what_is_new_each_time_leaves_the_others_where_they_are() {
        let mut pair = Pair::default();
        for _ in 0..2 {
            pair.pass(CALL);
        }
        for at in 0..10_000 {
            pair.pass(&[("x-trace", &format!("{at}-{at}-{at}"))]);
            pair.pass(&[("authorization", "the same")]);
        }
        assert_eq!(pair.pass(CALL), CALL.len());
    }

    #[test]
    fn what_is_sensitive_is_told_so_and_stays_outside() {
        let mut encoder = Encoder::default();
        let mut block = BytesMut::new();
        for _ in 0..3 {
            encoder.field(&mut block, "grpc-encoding", b"snappy", true);
        }
        assert_eq!((block[0], encoder.entries.len()), (0x10, 0));
    }

    #[test]
    fn a_smaller_table_is_told_and_kept_to() {
        let mut pair = Pair::default();
        for _ in 0..3 {
            pair.pass(CALL);
        }
        pair.encoder.resize(0);
        pair.encoder.resize(100);
        assert_eq!(pair.encoder.entries.len(), 0);
        for _ in 0..3 {
            pair.pass(CALL);
            assert!(pair.encoder.size <= 100, "{}", pair.encoder.size);
        }
        pair.encoder.resize(1 << 20);
        for _ in 0..3 {
            pair.pass(CALL);
        }
        assert_eq!(pair.pass(CALL), CALL.len());
    }
}
