//! `memory:`, a store that ends with its process.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;

use crate::{
    Changes, Entry, Error, HISTORY, Listing, Revision, Scheme, Store, Txn, ledger::Ledger,
    live::Live,
};

/// A store in memory, for tests and for a machine that may forget.
#[derive(Debug)]
pub struct MemoryStore(Live);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::with_history(HISTORY)
    }

    /// An empty store that remembers this many commits for watchers.
    pub fn with_history(limit: usize) -> Self {
        Self(Live::new(Ledger::new([], 0, limit)))
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        Ok(self.0.ledger().get(key))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        Ok(self.0.ledger().list(prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, Error> {
        let ledger = self.0.ledger();
        match ledger.plan(txn)? {
            Some(batch) => Ok(self.0.apply(ledger, batch)),
            None => Ok(ledger.revision()),
        }
    }

    fn watch(&self, prefix: &str, after: Revision) -> Changes {
        self.0.watch(prefix, after)
    }
}

#[derive(Debug)]
pub(crate) struct Memory;

impl Scheme for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn usage(&self) -> &'static str {
        "memory:"
    }

    fn check(&self, rest: &str) -> Result<(), Error> {
        if rest.is_empty() {
            return Ok(());
        }
        Err(Error::Url {
            given: format!("memory:{rest}"),
            why: "nothing follows `memory:`".to_owned(),
        })
    }

    fn open<'a>(&self, rest: &'a str) -> BoxFuture<'a, Result<Arc<dyn Store>, Error>> {
        Box::pin(async move {
            Self.check(rest)?;
            Ok(Arc::new(MemoryStore::new()) as Arc<dyn Store>)
        })
    }
}
