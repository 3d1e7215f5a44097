//! What is wrong, as it is told.

use std::{io, sync::Arc};

use crate::objects::explain;

/// Why bytes cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was written is not what was announced.
    #[error("the bytes are not those that were announced: {0}")]
    Torn(&'static str),
    /// An address of somebody else's.
    #[error(
        "`{uri}` is not in `{store}`, where this node keeps checkpoints: set `agent.checkpoints.store` of all nodes to one place that they share"
    )]
    Elsewhere {
        /// The address.
        uri: String,
        /// What there is.
        store: String,
    },
    /// Nothing is there any more, or not here.
    #[error(
        "there is nothing at `{0}` as this node sees it: what another node keeps in a directory of its own, or at another `s3_endpoint`, is not seen here; set `agent.checkpoints` of all nodes to one place that they share"
    )]
    Missing(String),
    /// The store cannot be used.
    #[error("cannot use `{0}` for checkpoints")]
    Unusable(String, #[source] io::Error),
    /// A bucket does not do what it is asked, or nobody answers.
    #[error("`{store}` cannot be used: {cause}; {fix}")]
    Bucket {
        /// Its address.
        store: Arc<str>,
        /// What is wrong, as S3 calls it where it has said anything.
        cause: String,
        /// What can be done about it.
        fix: &'static str,
    },
    /// A directory says so.
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

/// A store, as its errors call it.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    /// Without a slash at its end.
    pub(crate) store: Arc<str>,
    pub(crate) is_bucket: bool,
}

impl Address {
    /// What a store says is wrong.
    pub(crate) fn tell(&self, error: object_store::Error) -> Error {
        if !self.is_bucket {
            return Error::Store(error);
        }
        let (cause, fix) = explain(&error);
        Error::Bucket {
            store: Arc::clone(&self.store),
            cause,
            fix,
        }
    }
}
