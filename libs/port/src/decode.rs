//! From bytes to terms. Whatever the bytes are, it costs no more than a small multiple of them, and no more depth
//! than is allowed: a size that is claimed is believed only as far as there are bytes.

use bytes::{Buf as _, Bytes};

use crate::{Id, Term, tags};

/// How deep terms may lie in each other.
pub const DEPTH_MAX: usize = 32;

/// How many terms may be in one.
pub const TERMS_MAX: usize = 1 << 16;

/// Why bytes are not a term that is taken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends before it is whole.
    #[error("it ends in the middle of a term")]
    Short,
    /// There is more after its end.
    #[error("there are bytes after the term")]
    Rest,
    /// It is not the format.
    #[error("it does not begin with 131, as `:erlang.term_to_binary/1` does")]
    Version,
    /// A kind of term that nothing here is made of.
    #[error(
        "a term of the kind {0} is not taken: integers of 64 bits, floats, atoms, binaries, lists, tuples and maps are"
    )]
    Kind(u8),
    /// Terms lie too deep.
    #[error("terms lie deeper in each other than {DEPTH_MAX}")]
    Deep,
    /// There are too many terms.
    #[error("there are more than {TERMS_MAX} terms in it")]
    Many,
    /// An atom that is not text.
    #[error("an atom is not UTF-8")]
    Atom,
    /// A list with a tail.
    #[error("a list does not end with the empty list")]
    Improper,
}

/// Reads one term. Binaries in it share the bytes.
///
/// # Errors
/// When it is not one, or one that is not taken.
pub fn decode(mut bytes: Bytes) -> Result<Term, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Short);
    }
    if bytes.get_u8() != tags::VERSION {
        return Err(DecodeError::Version);
    }
    let mut reader = Reader {
        bytes,
        left: TERMS_MAX,
    };
    let term = reader.term(DEPTH_MAX)?;
    match reader.bytes.is_empty() {
        true => Ok(term),
        false => Err(DecodeError::Rest),
    }
}

/// The id of what is asked for by a tuple, though the rest of it is not taken: whoever asked can be told.
pub fn id_of(bytes: &Bytes) -> Option<Id> {
    let [tags::VERSION, tags::SMALL_TUPLE, _, ..] = bytes[..] else {
        return None;
    };
    let mut reader = Reader {
        bytes: bytes.slice(3..),
        left: 2,
    };
    let (tag, id) = (reader.term(1).ok()?, reader.term(1).ok()?);
    match id {
        Term::Int(id) if tag.as_text()? != "beat" => Id::try_from(id).ok().filter(|&id| id > 0),
        _ => None,
    }
}

struct Reader {
    bytes: Bytes,
    /// Terms that may still come.
    left: usize,
}

impl Reader {
    fn term(&mut self, depth: usize) -> Result<Term, DecodeError> {
        self.spend(1)?;
        let below = depth.checked_sub(1).ok_or(DecodeError::Deep)?;
        Ok(match self.u8()? {
            tags::SMALL_INTEGER => Term::Int(self.u8()?.into()),
            tags::INTEGER => Term::Int(i32::from_be_bytes(self.array()?).into()),
            tags::SMALL_BIG => self.big()?,
            tags::NEW_FLOAT => Term::Float(f64::from_be_bytes(self.array()?)),
            tags::SMALL_ATOM | tags::SMALL_ATOM_UTF8 => {
                let size = self.u8()?;
                self.atom(size.into())?
            }
            tags::ATOM | tags::ATOM_UTF8 => {
                let size = self.u16()?;
                self.atom(size.into())?
            }
            tags::BINARY => {
                let size = self.size()?;
                Term::Binary(self.take(size)?)
            }
            tags::NIL => Term::List(Vec::new()),
            tags::STRING => {
                let size = self.u16()?.into();
                self.spend(size)?;
                let bytes = self.take(size)?;
                Term::List(bytes.iter().map(|&byte| Term::Int(byte.into())).collect())
            }
            tags::LIST => {
                let size = self.size()?;
                let items = self.terms(size, below)?;
                match self.term(below)? {
                    Term::List(rest) if rest.is_empty() => Term::List(items),
                    _ => return Err(DecodeError::Improper),
                }
            }
            tags::SMALL_TUPLE => {
                let size = self.u8()?;
                Term::Tuple(self.terms(size.into(), below)?)
            }
            tags::LARGE_TUPLE => {
                let size = self.size()?;
                Term::Tuple(self.terms(size, below)?)
            }
            tags::MAP => {
                let size = self.size()?;
                self.can_be(size.saturating_mul(2))?;
                let mut entries = Vec::with_capacity(size);
                for _ in 0..size {
                    entries.push((self.term(below)?, self.term(below)?));
                }
                Term::Map(entries)
            }
            other => return Err(DecodeError::Kind(other)),
        })
    }

    fn terms(&mut self, size: usize, depth: usize) -> Result<Vec<Term>, DecodeError> {
        self.can_be(size)?;
        let mut terms = Vec::with_capacity(size);
        for _ in 0..size {
            terms.push(self.term(depth)?);
        }
        Ok(terms)
    }

    /// Whether there can be so many terms: each takes a byte at least.
    fn can_be(&self, terms: usize) -> Result<(), DecodeError> {
        match (terms <= self.left, terms <= self.bytes.len()) {
            (false, _) => Err(DecodeError::Many),
            (_, false) => Err(DecodeError::Short),
            _ => Ok(()),
        }
    }

    fn spend(&mut self, terms: usize) -> Result<(), DecodeError> {
        self.left = self.left.checked_sub(terms).ok_or(DecodeError::Many)?;
        Ok(())
    }

    fn big(&mut self) -> Result<Term, DecodeError> {
        let (size, sign) = (usize::from(self.u8()?), self.u8()?);
        if size > size_of::<u64>() {
            return Err(DecodeError::Kind(tags::SMALL_BIG));
        }
        let mut digits = [0; size_of::<u64>()];
        digits[..size].copy_from_slice(&self.take(size)?);
        let value = i128::from(u64::from_le_bytes(digits));
        Ok(Term::Int(if sign == 0 { value } else { -value }))
    }

    fn atom(&mut self, size: usize) -> Result<Term, DecodeError> {
        let bytes = self.take(size)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| DecodeError::Atom)?;
        Ok(Term::Name(text.to_owned()))
    }

    fn size(&mut self) -> Result<usize, DecodeError> {
        let size = u32::from_be_bytes(self.array()?);
        usize::try_from(size).map_err(|_| DecodeError::Short)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(&self.take(N)?);
        Ok(array)
    }

    fn take(&mut self, size: usize) -> Result<Bytes, DecodeError> {
        match size <= self.bytes.len() {
            true => Ok(self.bytes.split_to(size)),
            false => Err(DecodeError::Short),
        }
    }
}
