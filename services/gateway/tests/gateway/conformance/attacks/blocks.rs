//! What HPACK forbids, and too much of what it allows.

use super::*;

pub(super) fn all() -> Vec<Attack> {
    let table = [&[0x3f, 0xe2, 0x1f], &block(CALL)[..]].concat();
    let resized = [&block(CALL)[..], &[0x20]].concat();
    vec![
        unreadable("the field of index 0", ending(&[0x80])),
        unreadable("a field that no table has", ending(&[0xff, 0x80, 0x01])),
        unreadable(
            "a name that no table has",
            ending(&[0x7f, 0x80, 0x01, 1, b'a']),
        ),
        unreadable(
            "a table larger than allowed",
            headers(1, END_HEADERS, table),
        ),
        unreadable(
            "a table resized after a field",
            headers(1, END_HEADERS, resized),
        ),
        unreadable("a literal that is cut off", ending(&[0x00, 5, b'a'])),
        unreadable("a number without end", ending(&[0xff; 12])),
        unreadable(
            "Huffman code with too much padding",
            value(&[0x82, 0x1f, 0xff]),
        ),
        unreadable("Huffman code padded with zeros", value(&[0x81, 0x18])),
        unreadable(
            "the end of Huffman code in a string",
            value(&[0x84, 0xff, 0xff, 0xff, 0xff]),
        ),
        (
            "64 KiB of headers and more",
            too_many(),
            Ends::Answered("431"),
        ),
    ]
}

/// A call whose header block ends with these bytes.
fn ending(bytes: &[u8]) -> Vec<u8> {
    headers(1, END_HEADERS, [&block(CALL)[..], bytes].concat())
}

/// A call with a field of this value.
fn value(bytes: &[u8]) -> Vec<u8> {
    ending(&[&[0x00, 1, b'a'], bytes].concat())
}

fn too_many() -> Vec<u8> {
    let large = "v".repeat(8_000);
    let fields = vec![("x-large", large.as_str()); 9];
    let block = block(&[CALL, &fields].concat());
    let mut pieces = block.chunks(16_384).peekable();
    let mut bytes = headers(1, 0, pieces.next().unwrap_or_default().to_vec());
    while let Some(piece) = pieces.next() {
        let last = pieces.peek().is_none();
        let flags = if last { END_HEADERS } else { 0 };
        bytes.extend(frame(CONTINUATION, flags, 1, piece));
    }
    bytes
}
