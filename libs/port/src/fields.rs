//! Reading maps that the BEAM said: each key that is known is taken out, and what is left over is refused by name.

use std::time::Duration;

use bytes::Bytes;

use crate::Term;

/// What was said means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Meaningless(pub String);

/// The entries of a map that nobody has asked for yet.
#[derive(Debug)]
pub struct Fields {
    /// Whose they are, for people.
    of: &'static str,
    left: Vec<(String, Term)>,
}

impl Fields {
    /// Of a map whose keys are atoms or texts.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(of: &'static str, term: Term) -> Result<Self, Meaningless> {
        let Term::Map(entries) = term else {
            let text = format!("{of} is {}, where a map is expected", term.kind());
            return Err(Meaningless(text));
        };
        let mut left = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            match key.as_text() {
                Some(key) => left.push((key.to_owned(), value)),
                None => {
                    let text =
                        format!("a key of {of} is {}, where an atom is expected", key.kind());
                    return Err(Meaningless(text));
                }
            }
        }
        Ok(Self { of, left })
    }

    /// The value of a key, none where it is absent or nil.
    pub fn take(&mut self, key: &str) -> Option<Term> {
        let at = self.left.iter().position(|(known, _)| known == key)?;
        let (_, value) = self.left.swap_remove(at);
        (!value.is_nil()).then_some(value)
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// When it is not, or not of this kind.
    pub fn need<T: FromTerm>(&mut self, key: &'static str) -> Result<T, Meaningless> {
        match self.get(key)? {
            Some(value) => Ok(value),
            None => Err(Meaningless(format!("{} has no `{key}`", self.of))),
        }
    }

    /// A value that may be there.
    ///
    /// # Errors
    /// When it is not of this kind.
    pub fn get<T: FromTerm>(&mut self, key: &'static str) -> Result<Option<T>, Meaningless> {
        let Some(term) = self.take(key) else {
            return Ok(None);
        };
        let kind = term.kind();
        match T::from_term(term) {
            Some(value) => Ok(Some(value)),
            None => Err(Meaningless(format!(
                "`{key}` of {} is {kind}, where {} is expected",
                self.of,
                T::KIND
            ))),
        }
    }

    /// What nobody has asked for is refused.
    ///
    /// # Errors
    /// When something is left.
    pub fn end(self) -> Result<(), Meaningless> {
        match self.left.first() {
            None => Ok(()),
            Some((key, _)) => Err(Meaningless(format!("{} has no use for `{key}`", self.of))),
        }
    }

    /// All that is left, by key.
    pub fn rest(self) -> Vec<(String, Term)> {
        self.left
    }
}

/// What a term can be read as.
pub trait FromTerm: Sized {
    /// What is expected, for people.
    const KIND: &'static str;

    /// Reads it.
    fn from_term(term: Term) -> Option<Self>;
}

impl FromTerm for Term {
    const KIND: &'static str = "a term";

    fn from_term(term: Term) -> Option<Self> {
        Some(term)
    }
}

impl FromTerm for String {
    const KIND: &'static str = "a text";

    fn from_term(term: Term) -> Option<Self> {
        term.as_text().map(str::to_owned)
    }
}

impl FromTerm for Bytes {
    const KIND: &'static str = "a binary";

    fn from_term(term: Term) -> Option<Self> {
        match term {
            Term::Binary(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl FromTerm for u64 {
    const KIND: &'static str = "a whole number that is not below 0";

    fn from_term(term: Term) -> Option<Self> {
        match term {
            Term::Int(value) => value.try_into().ok(),
            _ => None,
        }
    }
}

impl FromTerm for u32 {
    const KIND: &'static str = "a whole number of 32 bits that is not below 0";

    fn from_term(term: Term) -> Option<Self> {
        u64::from_term(term)?.try_into().ok()
    }
}

impl FromTerm for Duration {
    const KIND: &'static str = "a number of milliseconds";

    fn from_term(term: Term) -> Option<Self> {
        u64::from_term(term).map(Self::from_millis)
    }
}

impl FromTerm for bool {
    const KIND: &'static str = "true or false";

    fn from_term(term: Term) -> Option<Self> {
        match term.as_text()? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }
}

impl<T: FromTerm> FromTerm for Vec<T> {
    const KIND: &'static str = "a list of what belongs there";

    fn from_term(term: Term) -> Option<Self> {
        match term {
            Term::List(items) => items.into_iter().map(T::from_term).collect(),
            _ => None,
        }
    }
}

impl<A: FromTerm, B: FromTerm> FromTerm for (A, B) {
    const KIND: &'static str = "a pair";

    fn from_term(term: Term) -> Option<Self> {
        let Term::Tuple(items) = term else {
            return None;
        };
        let [first, second] = <[Term; 2]>::try_from(items).ok()?;
        Some((A::from_term(first)?, B::from_term(second)?))
    }
}

/// `{pool, slot, incarnation}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its pool.
    pub pool: String,
    /// Its slot.
    pub slot: u32,
    /// Its incarnation; 0 for whichever there is.
    pub incarnation: u64,
}

impl Worker {
    /// Reads `POOL/SLOT.INCARNATION`, as gateways write it.
    pub fn from_text(text: &str) -> Option<Self> {
        let (pool, rest) = text.split_once('/')?;
        let (slot, incarnation) = rest.split_once('.').unwrap_or((rest, "0"));
        Some(Self {
            pool: pool.to_owned(),
            slot: slot.parse().ok()?,
            incarnation: incarnation.parse().ok()?,
        })
    }
}

impl std::fmt::Display for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.incarnation {
            0 => write!(f, "{}/{}", self.pool, self.slot),
            incarnation => write!(f, "{}/{}.{incarnation}", self.pool, self.slot),
        }
    }
}

impl FromTerm for Worker {
    const KIND: &'static str = "a worker, `{pool, slot, incarnation}`";

    fn from_term(term: Term) -> Option<Self> {
        let Term::Tuple(items) = term else {
            return None;
        };
        let [pool, slot, incarnation] = <[Term; 3]>::try_from(items).ok()?;
        Some(Self {
            pool: String::from_term(pool)?,
            slot: u32::from_term(slot)?,
            incarnation: u64::from_term(incarnation)?,
        })
    }
}

impl From<Worker> for Term {
    fn from(worker: Worker) -> Self {
        Self::Tuple(vec![
            Self::text(worker.pool),
            worker.slot.into(),
            worker.incarnation.into(),
        ])
    }
}
