//! Entries with the commit that brought each key into being: for readers of what others keep in etcd, where a key
//! that was deleted and written again is somebody else's.

use etcd_client::{GetOptions, KeyValue};
use futures::stream::BoxStream;
use tokio::time::Instant;

use super::{EtcdStore, kv, members::CALL, revision, watch};
use crate::{Change, Entry, Error, Revision};

/// Every entry under a prefix at one moment, up to a limit.
#[derive(Debug, Clone)]
pub struct DatedListing {
    /// The entries, sorted by key, each with the commit that made its key: the same until it is deleted.
    pub entries: Vec<(Entry, Revision)>,
    /// The moment: watch after this revision to hear of everything later.
    pub revision: Revision,
}

/// What one commit changed.
#[derive(Debug, Clone)]
pub struct DatedBatch {
    /// The commit.
    pub revision: Revision,
    /// Its changes, sorted by key, each with the commit that made its key; 0 where it is deleted.
    pub changes: Vec<(Change, Revision)>,
}

impl EtcdStore {
    /// Reads keys that start with `prefix`, as [`crate::Store::list`] does, and no more than `limit` of them in an
    /// answer of at most `bytes`: both are for prefixes that somebody else fills.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when etcd cannot be reached, and when there is more than `bytes` of it.
    pub async fn list_dated(
        &self,
        prefix: &str,
        limit: usize,
        bytes: usize,
    ) -> Result<DatedListing, Error> {
        let key = self.key(prefix);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let options = GetOptions::new().with_prefix().with_limit(limit);
        let answer = self
            .members
            .call(Instant::now() + CALL, |client| {
                let (key, options) = (key.clone(), options.clone());
                let mut kv = kv(&client).max_decoding_message_size(bytes);
                async move { kv.get(key, Some(options)).await }
            })
            .await?;
        let entries = answer.kvs().iter().filter_map(|kv| self.dated(kv));
        Ok(DatedListing {
            entries: entries.collect(),
            revision: revision(answer.header().map_or(0, |header| header.revision())),
        })
    }

    /// Follows every commit after revision `after`, as [`crate::Store::watch`] does.
    pub fn watch_dated(
        &self,
        prefix: &str,
        after: Revision,
    ) -> BoxStream<'static, Result<DatedBatch, Error>> {
        watch::follow(self.clone(), prefix, after)
    }

    pub(super) fn dated(&self, kv: &KeyValue) -> Option<(Entry, Revision)> {
        Some((self.entry(kv)?, revision(kv.create_revision())))
    }
}
