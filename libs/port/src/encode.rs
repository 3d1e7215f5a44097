//! From terms to bytes.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::{ATOMS, FRAME_MAX, Term, tags};

/// The frame of a term: its size and its bytes. None where it would be larger than a frame may be.
pub fn frame(term: &Term) -> Option<Bytes> {
    let size = 1 + size(term);
    if size > FRAME_MAX {
        return None;
    }
    let mut out = BytesMut::with_capacity(4 + size);
    out.put_u32(u32::try_from(size).ok()?);
    out.put_u8(tags::VERSION);
    put(term, &mut out);
    debug_assert_eq!(out.len(), 4 + size, "sizes are known before");
    Some(out.freeze())
}

/// How many bytes a term takes.
fn size(term: &Term) -> usize {
    match term {
        Term::Atom(text) => 2 + text.len(),
        Term::Name(text) => 5 + text.len(),
        Term::Int(value) => match small(*value) {
            Small::Byte(_) => 2,
            Small::Word(_) => 5,
            Small::Big(_) => 11,
        },
        Term::Float(_) => 9,
        Term::Binary(bytes) => 5 + bytes.len(),
        Term::List(items) if items.is_empty() => 1,
        Term::List(items) => 6 + items.iter().map(size).sum::<usize>(),
        Term::Tuple(items) => {
            let head = if items.len() < 256 { 2 } else { 5 };
            head + items.iter().map(size).sum::<usize>()
        }
        Term::Map(entries) => {
            let sizes = entries.iter().map(|(key, value)| size(key) + size(value));
            5 + sizes.sum::<usize>()
        }
    }
}

/// How an integer is written.
enum Small {
    Byte(u8),
    Word(i32),
    Big(i128),
}

fn small(value: i128) -> Small {
    match (u8::try_from(value), i32::try_from(value)) {
        (Ok(byte), _) => Small::Byte(byte),
        (_, Ok(word)) => Small::Word(word),
        _ => Small::Big(value),
    }
}

/// The number of items in a term, whose size is below that of a frame.
fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}

fn put(term: &Term, out: &mut BytesMut) {
    match term {
        Term::Atom(text) => {
            debug_assert!(ATOMS.contains(text), "the BEAM does not know `{text}`");
            out.put_u8(tags::SMALL_ATOM_UTF8);
            out.put_u8(u8::try_from(text.len()).unwrap_or(u8::MAX));
            out.put_slice(text.as_bytes());
        }
        Term::Name(text) => binary(text.as_bytes(), out),
        Term::Binary(bytes) => binary(bytes, out),
        Term::Int(value) => match small(*value) {
            Small::Byte(byte) => out.put_slice(&[tags::SMALL_INTEGER, byte]),
            Small::Word(word) => {
                out.put_u8(tags::INTEGER);
                out.put_i32(word);
            }
            Small::Big(big) => {
                out.put_slice(&[tags::SMALL_BIG, 8, u8::from(big < 0)]);
                let digits = u64::try_from(big.unsigned_abs()).unwrap_or(u64::MAX);
                out.put_u64_le(digits);
            }
        },
        Term::Float(value) => {
            out.put_u8(tags::NEW_FLOAT);
            out.put_f64(*value);
        }
        Term::List(items) => {
            if !items.is_empty() {
                out.put_u8(tags::LIST);
                out.put_u32(count(items.len()));
                items.iter().for_each(|item| put(item, out));
            }
            out.put_u8(tags::NIL);
        }
        Term::Tuple(items) => {
            match u8::try_from(items.len()) {
                Ok(few) => out.put_slice(&[tags::SMALL_TUPLE, few]),
                Err(_) => {
                    out.put_u8(tags::LARGE_TUPLE);
                    out.put_u32(count(items.len()));
                }
            }
            items.iter().for_each(|item| put(item, out));
        }
        Term::Map(entries) => {
            out.put_u8(tags::MAP);
            out.put_u32(count(entries.len()));
            for (key, value) in entries {
                put(key, out);
                put(value, out);
            }
        }
    }
}

fn binary(bytes: &[u8], out: &mut BytesMut) {
    out.put_u8(tags::BINARY);
    out.put_u32(count(bytes.len()));
    out.put_slice(bytes);
}
