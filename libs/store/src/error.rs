//! What can go wrong with a store.

use std::error::Error as StdError;

use crate::{Revision, scheme};

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL has a scheme no store understands.
    #[error(
        "no store understands `{given}`, expected one of: {}",
        scheme::usages()
    )]
    UnknownScheme {
        /// The URL as given.
        given: String,
    },
    /// The URL has a known scheme and something else is wrong with it.
    #[error("`{given}` is not a store: {why}")]
    Url {
        /// The URL as given.
        given: String,
        /// What is wrong and what is expected.
        why: String,
    },
    /// The store could not be opened.
    #[error("cannot open the store `{what}`: {hint}")]
    Open {
        /// Which one.
        what: String,
        /// The cause in words, and what to do.
        hint: &'static str,
        /// What the layer below said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A member of the cluster is too old to be relied upon.
    #[error(
        "the member `{member}` runs etcd {found}, and nothing below {floor} will do: older ones may lose events or acknowledge what is lost (docs/how-to/etcd.md); update it, or add `allow_old=true` to the URL to use it all the same"
    )]
    TooOld {
        /// Which one.
        member: String,
        /// What it runs.
        found: String,
        /// The oldest that will do.
        floor: String,
    },
    /// A guard did not hold; nothing was changed.
    #[error("`{key}` was changed by somebody else in between")]
    Conflict {
        /// The first key whose guard failed.
        key: String,
    },
    /// The revision to watch from is no longer known.
    #[error("revisions before {oldest} are forgotten, list again")]
    Compacted {
        /// The oldest revision one can still watch after.
        oldest: Revision,
    },
    /// A transaction that no store takes.
    #[error("a transaction writes `{key}` {why}")]
    Invalid {
        /// The key at fault.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The store did not answer, or not in time.
    #[error("the store `{what}` is not available")]
    Unavailable {
        /// Which one.
        what: String,
        /// What the layer below said.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// The error with its causes, in one line.
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    pub(crate) fn unavailable(
        what: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::Unavailable {
            what: what.into(),
            source: source.into(),
        }
    }
}
