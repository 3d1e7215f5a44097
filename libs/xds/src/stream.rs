//! A stream of either form: a part for each kind of resource, and the order in which they speak.

use crate::{
    Catalog, Kind,
    flow::{Answer, short},
    wanted::TooManyNames,
};

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

/// What concerns one kind, in one form of the protocol.
pub trait Part: Default {
    /// What a client says.
    type Request;
    /// What it is told.
    type Response;

    /// The name of the kind that a request is about.
    fn type_url(request: &Self::Request) -> &str;

    /// Takes in a request for this kind.
    ///
    /// # Errors
    /// When more is wanted than a stream keeps (X6).
    fn on_request(&mut self, kind: Kind, request: &Self::Request) -> Result<Answer, TooManyNames>;

    /// Whether the last response was answered.
    fn is_free(&self) -> bool;

    /// What the client is to be told next, by the name of that response; and what of it is new to the client.
    fn next(
        &mut self,
        kind: Kind,
        catalog: &Catalog,
        nonce: u64,
    ) -> Option<(Self::Response, Vec<String>)>;

    /// These are to be told anew, where they are wanted.
    fn forget(&mut self, names: &[String]);
}

/// One stream of a client: what it wants, and what it was told.
#[derive(Debug)]
pub struct Stream<P> {
    only: Option<Kind>,
    parts: [P; Kind::ALL.len()],
    /// Names the last response.
    nonce: u64,
}

impl<P: Part> Stream<P> {
    /// A stream of one kind, or of all.
    pub fn new(only: Option<Kind>) -> Self {
        Self {
            only,
            parts: Default::default(),
            nonce: 0,
        }
    }

    /// Takes in a request.
    ///
    /// # Errors
    /// When more is wanted than a stream keeps (X6).
    pub fn on_request(&mut self, request: &P::Request) -> Result<Heard, TooManyNames> {
        let type_url = P::type_url(request);
        let Some(kind) = self.kind_of(type_url) else {
            let type_url = short(type_url);
            return Ok(Heard::Unknown { type_url });
        };
        Ok(match self.part(kind).on_request(kind, request)? {
            Answer::Refused(why) => Heard::Refused { kind, why },
            Answer::None | Answer::Taken | Answer::Late => Heard::Fine,
        })
    }

    /// What the client is to be told next; nothing when it knows all it wants, or has to answer first.
    pub fn next(&mut self, catalog: &Catalog) -> Option<P::Response> {
        Kind::ALL
            .into_iter()
            .find_map(|kind| self.next_of(kind, catalog))
    }

    fn next_of(&mut self, kind: Kind, catalog: &Catalog) -> Option<P::Response> {
        if kind == Kind::Endpoints && !self.part(Kind::Cluster).is_free() {
            // Its clusters may be about to change (X4).
            return None;
        }
        let nonce = self.nonce + 1;
        let (response, new) = self.part(kind).next(kind, catalog, nonce)?;
        self.nonce = nonce;
        if kind == Kind::Cluster {
            self.part(Kind::Endpoints).forget(&new);
        }
        Some(response)
    }

    fn part(&mut self, kind: Kind) -> &mut P {
        &mut self.parts[kind.index()]
    }

    /// Which kind a request is about: what it says, or what the service is for.
    fn kind_of(&self, type_url: &str) -> Option<Kind> {
        match self.only {
            Some(only) if type_url.is_empty() => Some(only),
            Some(only) => Kind::of(type_url).filter(|kind| *kind == only),
            None => Kind::of(type_url),
        }
    }
}
