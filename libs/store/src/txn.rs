//! Transactions: guards that must all hold, and writes that all happen or none.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{Error, Revision};

/// What a guard expects of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key was last written by this commit; 0 is the same as absent.
    Revision(Revision),
}

impl Expect {
    /// Whether it holds for a key last written by the commit `current`.
    pub(crate) fn holds(self, current: Option<Revision>) -> bool {
        let wanted = match self {
            Self::Absent => 0,
            Self::Revision(revision) => revision,
        };
        current.unwrap_or(0) == wanted
    }
}

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The key.
    pub key: String,
    /// What must be true of it.
    pub expect: Expect,
}

/// A change to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets the key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
    },
    /// Removes the key, if it is there.
    Delete {
        /// The key.
        key: String,
    },
}

impl Write {
    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Writes that happen together if every guard holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// All of these must hold.
    pub guards: Vec<Guard>,
    /// Each key at most once. etcd takes 128 of them unless told otherwise (`--max-txn-ops`).
    pub writes: Vec<Write>,
}

impl Txn {
    /// A transaction without guards or writes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requires that `key` does not exist.
    #[must_use]
    pub fn absent(self, key: impl Into<String>) -> Self {
        self.expect(key.into(), Expect::Absent)
    }

    /// Requires that `key` was last written by the commit `revision`.
    #[must_use]
    pub fn unchanged(self, key: impl Into<String>, revision: Revision) -> Self {
        self.expect(key.into(), Expect::Revision(revision))
    }

    fn expect(mut self, key: String, expect: Expect) -> Self {
        self.guards.push(Guard { key, expect });
        self
    }

    /// Sets `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.writes.push(Write::Put {
            key: key.into(),
            value: value.into(),
        });
        self
    }

    /// Removes `key`.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    /// Refuses what etcd would refuse, so that code tried on a file also runs on etcd.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        for write in &self.writes {
            let key = write.key();
            let why = match () {
                () if key.is_empty() => "with an empty key",
                () if !seen.insert(key) => "twice",
                () => continue,
            };
            return Err(Error::Invalid {
                key: key.to_owned(),
                why,
            });
        }
        Ok(())
    }
}
