//! The key of a call that is in one field of its first message: found in the bytes as they come, without decoding them.
//!
//! A message of gRPC is a flag, a length and then, by protocol buffers, fields: each a tag, which is its number and the
//! kind of its value, and the value. Fields before the wanted one are skipped; nothing is looked at beyond the first
//! [`FAR`] bytes, so that a caller never waits for more of a message than that.

/// How far into a message is looked.
pub const FAR: usize = 16 << 10;

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peeked {
    /// Nothing yet: it may be in what is still to come.
    Wants,
    /// This one: the bytes of a text or of bytes, the digits of a whole number.
    Key(Vec<u8>),
    /// There is none: the field is not there, is empty or zero or of another kind, or is too far behind; or the message is
    /// compressed, or no protocol buffer.
    Nothing,
}

/// A look at the first message of a request.
#[derive(Debug)]
pub struct Peek {
    field: u32,
    at: At,
    /// Bytes of the message that may still be looked at.
    left: usize,
}

/// Which part comes next.
#[derive(Debug)]
enum At {
    Prefix { read: [u8; 5], count: usize },
    Tag(Varint),
    Number { wanted: bool, number: Varint },
    Length { wanted: bool, length: Varint },
    Skip(usize),
    Key { key: Vec<u8>, length: usize },
    Over,
}

#[derive(Debug, Default)]
struct Varint {
    value: u64,
    bits: u32,
}

impl Varint {
    /// One more byte; answers the number with its last, or that it is none.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, ()> {
        if self.bits >= u64::BITS {
            return Err(());
        }
        self.value |= u64::from(byte & 0x7f) << self.bits;
        self.bits += 7;
        Ok((byte < 0x80).then_some(self.value))
    }
}

impl Peek {
    /// For the field of this number.
    pub fn new(field: u32) -> Self {
        Self {
            field,
            at: At::Prefix {
                read: [0; 5],
                count: 0,
            },
            left: 0,
        }
    }

    /// Looks at the next bytes of the request, until it wants no more.
    pub fn feed(&mut self, mut data: &[u8]) -> Peeked {
        while !data.is_empty() {
            match self.step(&mut data) {
                Ok(None) => {}
                Ok(Some(key)) => {
                    self.at = At::Over;
                    return Peeked::Key(key);
                }
                Err(Nothing) => {
                    self.at = At::Over;
                    return Peeked::Nothing;
                }
            }
        }
        match self.at {
            At::Over => Peeked::Nothing,
            _ => Peeked::Wants,
        }
    }

    /// Takes one part of `data`, which is not empty.
    fn step(&mut self, data: &mut &[u8]) -> Result<Option<Vec<u8>>, Nothing> {
        match &mut self.at {
            At::Over => return Err(Nothing),
            At::Prefix { read, count } => {
                read[*count] = take(data, 1)[0];
                *count += 1;
                if *count == read.len() {
                    let [flag, length @ ..] = *read;
                    self.left = FAR.min(u32::from_be_bytes(length) as usize);
                    if flag != 0 || self.left == 0 {
                        return Err(Nothing);
                    }
                    self.at = At::Tag(Varint::default());
                }
                return Ok(None);
            }
            At::Tag(tag) => {
                let tag = tag.push(take(data, 1)[0]).map_err(|()| Nothing)?;
                self.left -= 1;
                if let Some(tag) = tag {
                    self.at = self.after_tag(tag)?;
                }
            }
            At::Number { wanted, number } => {
                let (wanted, number) = (*wanted, number.push(take(data, 1)[0]));
                self.left -= 1;
                match number.map_err(|()| Nothing)? {
                    None => {}
                    Some(0) if wanted => return Err(Nothing),
                    Some(number) if wanted => return Ok(Some(number.to_string().into())),
                    Some(_) => self.at = At::Tag(Varint::default()),
                }
            }
            At::Length { wanted, length } => {
                let (wanted, length) = (*wanted, length.push(take(data, 1)[0]));
                self.left -= 1;
                if let Some(length) = length.map_err(|()| Nothing)? {
                    self.at = self.after_length(wanted, length)?;
                }
            }
            At::Skip(rest) => {
                let skipped = take(data, *rest).len();
                self.left -= skipped;
                *rest -= skipped;
                if *rest == 0 {
                    self.at = At::Tag(Varint::default());
                }
            }
            At::Key { key, length } => {
                let part = take(data, *length - key.len());
                key.extend_from_slice(part);
                self.left -= part.len();
                if key.len() == *length {
                    return Ok(Some(std::mem::take(key)));
                }
            }
        }
        match self.left {
            0 => Err(Nothing),
            _ => Ok(None),
        }
    }

    fn after_tag(&self, tag: u64) -> Result<At, Nothing> {
        let field = u32::try_from(tag >> 3).map_err(|_| Nothing)?;
        let wanted = field == self.field;
        match tag & 7 {
            _ if field == 0 => Err(Nothing),
            0 => Ok(At::Number {
                wanted,
                number: Varint::default(),
            }),
            2 => Ok(At::Length {
                wanted,
                length: Varint::default(),
            }),
            // Of all other kinds none is a key.
            _ if wanted => Err(Nothing),
            1 => self.skip(8),
            5 => self.skip(4),
            _ => Err(Nothing),
        }
    }

    fn after_length(&self, wanted: bool, length: u64) -> Result<At, Nothing> {
        let length = usize::try_from(length).map_err(|_| Nothing)?;
        match (wanted, length) {
            (true, 0) => Err(Nothing),
            (true, _) if length > self.left => Err(Nothing),
            (true, _) => Ok(At::Key {
                key: Vec::new(),
                length,
            }),
            (false, 0) => Ok(At::Tag(Varint::default())),
            (false, _) => self.skip(length),
        }
    }

    /// Goes on behind so many bytes, where there may still be anything.
    fn skip(&self, bytes: usize) -> Result<At, Nothing> {
        match bytes < self.left {
            true => Ok(At::Skip(bytes)),
            false => Err(Nothing),
        }
    }
}

/// No key is there, or will be.
struct Nothing;

/// The first bytes of `data`, at most so many, which it then has no more.
fn take<'a>(data: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = data.split_at(most.min(data.len()));
    *data = rest;
    taken
}
