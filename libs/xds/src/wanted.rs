//! What a client wants of one kind.

use std::collections::BTreeSet;

use crate::{Catalog, Kind, resource::Resource};

/// How many names of one kind a stream may want.
pub const NAMES_MAX: usize = 16_384;
/// The name that stands for all.
pub(crate) const WILDCARD: &str = "*";

/// A client wants more names than a stream keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the stream asks for more than {NAMES_MAX} names of one kind; ask for all of them with `*`, or on several streams"
)]
pub struct TooManyNames;

/// What is wanted of one kind.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    all: bool,
    names: BTreeSet<String>,
}

impl Wanted {
    pub(crate) fn add(&mut self, name: &str) -> Result<(), TooManyNames> {
        if name == WILDCARD {
            self.all = true;
        } else if self.names.insert(name.to_owned()) && self.names.len() > NAMES_MAX {
            return Err(TooManyNames);
        }
        Ok(())
    }

    pub(crate) fn drop(&mut self, name: &str) {
        if name == WILDCARD {
            self.all = false;
        } else {
            self.names.remove(name);
        }
    }

    /// Whether all are wanted.
    pub(crate) fn is_all(&self) -> bool {
        self.all
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Whether it covers this name.
    pub(crate) fn has(&self, kind: Kind, name: &str) -> bool {
        self.all && kind.is_for_all() || self.is_named(name)
    }

    /// What there is of it.
    pub(crate) fn of<'a>(
        &'a self,
        kind: Kind,
        catalog: &'a Catalog,
    ) -> Box<dyn Iterator<Item = (&'a str, &'a Resource)> + 'a> {
        let known = move |name: &'a str| Some((name, catalog.get(kind, name)?));
        match self.all && kind.is_for_all() {
            true => Box::new(catalog.pools().filter_map(known)),
            false => Box::new(self.names().filter_map(known)),
        }
    }
}
