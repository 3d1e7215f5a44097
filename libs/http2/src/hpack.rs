//! Header compression (RFC 7541), for fields that are parsed once and then go by their number.

mod decoder;
mod encoder;
mod field;
mod huffman;
mod number;
mod table;

pub(crate) use decoder::Decoder;
pub(crate) use encoder::Encoder;
pub(crate) use field::Field;

/// The size of a table on either side, in bytes, as RFC 7541 counts them: what both begin with.
pub(crate) const TABLE_SIZE: usize = 4096;

/// What an entry of a table takes besides its bytes (RFC 7541, 4.1).
pub(crate) const ENTRY_OVERHEAD: usize = 32;

/// A header block that cannot be read: both sides' tables differ from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;
