//! What both forms of the protocol have in common.

use crate::{Catalog, Kind, wanted::TooManyNames};

/// What was heard in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Nothing to speak of.
    Fine,
    /// The client does not take what it was told last of this kind, and goes on with what it had.
    Refused {
        /// What it was told of.
        kind: Kind,
        /// What it says is wrong.
        why: String,
    },
    /// It wants a kind of resource that there is none of; it is not answered.
    Unknown {
        /// The name of that kind.
        type_url: String,
    },
}

/// One stream of a client: what it wants, and what it was told.
pub trait Stream {
    /// What the client says.
    type Request;
    /// What it is told.
    type Response;

    /// Takes in a request.
    ///
    /// # Errors
    /// When more is wanted than a stream keeps (X6).
    fn on_request(&mut self, request: Self::Request) -> Result<Heard, TooManyNames>;

    /// What the client is to be told next; nothing when it knows all it wants, or has to answer first.
    fn next(&mut self, catalog: &Catalog) -> Option<Self::Response>;
}

/// Which kind a request is about: what it says, or what the service is for.
pub(crate) fn kind_of(only: Option<Kind>, type_url: &str) -> Option<Kind> {
    match only {
        Some(only) if type_url.is_empty() => Some(only),
        Some(only) => Kind::of(type_url).filter(|kind| *kind == only),
        None => Kind::of(type_url),
    }
}

/// Names responses; those of one stream differ.
#[derive(Debug, Default)]
pub(crate) struct Nonces(u64);

impl Nonces {
    pub(crate) fn next(&mut self) -> String {
        self.0 += 1;
        self.0.to_string()
    }
}
