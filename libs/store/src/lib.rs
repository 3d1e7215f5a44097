//! A small revisioned key-value store behind one trait: a file or memory on one machine, etcd on many.
//!
//! Every commit is all or nothing and gets one [`Revision`]. Whoever lists at revision *r* and then
//! watches after *r* sees every later commit, each once, whole and in order; that is all the services
//! need to keep a copy of what they are interested in.
//!
//! ```text
//! list("serve/") -> entries at revision 7      watch("serve/", 7) -> 8, 9, 11, ...
//! ```
//!
//! # Invariants
//!
//! - **S1** A commit whose guard fails changes nothing.
//! - **S2** A listing plus the batches watched after it is what a later listing says.
//! - **S3** A commit that was acknowledged by a store on disk is there after a `kill -9`.
//! - **S4** A watcher that can no longer be told everything is told so ([`Error::Compacted`]).
//!
//! There are no leases in this trait. The arbiter holds every lease in memory: a renewal must not cost
//! a disk write, a restarted arbiter waits out one full lease time anyway, and etcd may acknowledge
//! the renewal of a lease it has already given away. What the arbiter needs of a store is to win a
//! guarded commit, which is the one thing etcd never acknowledges wrongly.

mod error;
#[cfg(feature = "etcd")]
mod etcd;
mod file;
pub mod keys;
mod ledger;
mod live;
mod memory;
mod row;
mod scheme;
mod txn;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use error::Error;
#[cfg(feature = "etcd")]
pub use etcd::{DatedBatch, DatedListing, EtcdStore};
pub use file::FileStore;
pub use memory::MemoryStore;
pub use scheme::{ALL, Scheme, check, open};
pub use txn::{Expect, Guard, Txn, Write};

/// Counts commits; every commit that changes something has a higher one than all before it.
pub type Revision = u64;

/// Batches of changes, one per commit. An error is the last item: list again, or watch again from the
/// last revision seen. A connection or a member of a cluster that is lost is no error while there is another.
pub type Changes = BoxStream<'static, Result<Batch, Error>>;

/// How many revisions a store in memory remembers for watchers that come late.
pub const HISTORY: usize = 8192;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// The commit that wrote it last.
    pub mod_revision: Revision,
}

/// Every entry under a prefix at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The entries, sorted by key.
    pub entries: Vec<Entry>,
    /// The moment: watch after this revision to hear of everything later.
    pub revision: Revision,
}

/// What one commit changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The commit.
    pub revision: Revision,
    /// Its changes under the watched prefix, sorted by key; never empty.
    pub changes: Vec<Change>,
}

/// What a commit did to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its new value; `None` when it was deleted.
    pub value: Option<Bytes>,
}

/// A place where services keep what must be known to others or after a restart.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Reads one key.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the store cannot be reached.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// Reads every key that starts with `prefix`, all at one revision.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the store cannot be reached.
    async fn list(&self, prefix: &str) -> Result<Listing, Error>;

    /// Writes all of `txn` or nothing, and answers with the revision after it. A transaction that
    /// changes nothing (no writes, or deletes of what is not there) has no revision of its own.
    ///
    /// # Errors
    /// [`Error::Conflict`] when a guard does not hold: nothing was done, and will not be. [`Error::Invalid`] for a
    /// transaction no store takes. After [`Error::Unavailable`] it may have been done, and in etcd may even be
    /// done later, until a later commit of this store that writes something is answered: commit, then read.
    async fn commit(&self, txn: Txn) -> Result<Revision, Error>;

    /// Follows every commit after revision `after` that touches a key starting with `prefix`.
    ///
    /// [`Error::Compacted`] ends the stream when `after` is no longer known, because it is too old or
    /// because the watcher reads too slowly; nothing is buffered for a slow watcher.
    fn watch(&self, prefix: &str, after: Revision) -> Changes;
}
