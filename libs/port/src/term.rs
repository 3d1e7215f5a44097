//! Terms of Erlang, as far as they are said here.

use bytes::Bytes;

/// One term. What comes in has names in the place of atoms, so that none of them can go out again as one.
#[derive(Debug, Clone, PartialEq)]
pub enum Term {
    /// An atom that this program says: one of [`ATOMS`](crate::ATOMS).
    Atom(&'static str),
    /// An atom that the BEAM said. Goes out as a binary.
    Name(String),
    /// An integer of at most 64 bits and a sign.
    Int(i128),
    /// A float.
    Float(f64),
    /// Bytes, or a text in UTF-8.
    Binary(Bytes),
    /// A list.
    List(Vec<Term>),
    /// A tuple.
    Tuple(Vec<Term>),
    /// A map.
    Map(Vec<(Term, Term)>),
}

/// The atom for nothing.
pub const NIL: Term = Term::Atom("nil");

impl Term {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Binary(Bytes::from(text.into()))
    }

    /// A map whose keys are atoms.
    pub fn map<const N: usize>(entries: [(&'static str, Term); N]) -> Self {
        let entries = entries.into_iter();
        Self::Map(
            entries
                .map(|(key, value)| (Self::Atom(key), value))
                .collect(),
        )
    }

    /// A tuple that begins with an atom.
    pub fn tagged<const N: usize>(tag: &'static str, rest: [Term; N]) -> Self {
        Self::Tuple(std::iter::once(Self::Atom(tag)).chain(rest).collect())
    }

    /// A value, or nil.
    pub fn maybe(value: Option<impl Into<Term>>) -> Self {
        value.map_or(NIL, Into::into)
    }

    /// The text of an atom or a binary.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Atom(text) => Some(text),
            Self::Name(text) => Some(text),
            Self::Binary(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Whether it is the atom nil, and no binary of these letters.
    pub fn is_nil(&self) -> bool {
        matches!(self, Self::Atom("nil")) || matches!(self, Self::Name(name) if name == "nil")
    }

    /// What it is, for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Atom(_) | Self::Name(_) => "an atom",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Binary(_) => "a binary",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Map(_) => "a map",
        }
    }
}

impl From<bool> for Term {
    fn from(value: bool) -> Self {
        Self::Atom(if value { "true" } else { "false" })
    }
}

impl From<u64> for Term {
    fn from(value: u64) -> Self {
        Self::Int(value.into())
    }
}

impl From<i64> for Term {
    fn from(value: i64) -> Self {
        Self::Int(value.into())
    }
}

impl From<u32> for Term {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl From<i32> for Term {
    fn from(value: i32) -> Self {
        Self::Int(value.into())
    }
}

impl From<Bytes> for Term {
    fn from(bytes: Bytes) -> Self {
        Self::Binary(bytes)
    }
}

impl From<&str> for Term {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Term {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}
