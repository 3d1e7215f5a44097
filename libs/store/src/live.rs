//! A [`Ledger`] that several tasks read and that wakes its watchers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{StreamExt as _, stream};
use tokio::sync::watch;

use crate::{
    Batch, Changes, Error, Revision,
    ledger::{Ledger, Next},
};

/// Shared by the store and its commits; watchers hold only the ledger, so that they end with the store.
#[derive(Debug)]
pub(crate) struct Live {
    ledger: Arc<Mutex<Ledger>>,
    moved: watch::Sender<Revision>,
}

impl Live {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self {
            moved: watch::Sender::new(ledger.revision()),
            ledger: Arc::new(Mutex::new(ledger)),
        }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Makes `batch` true and wakes the watchers.
    pub(crate) fn apply(&self, mut ledger: MutexGuard<'_, Ledger>, batch: Batch) -> Revision {
        let revision = batch.revision;
        ledger.apply(batch);
        drop(ledger);
        self.moved.send_replace(revision);
        revision
    }

    /// A watcher keeps a position and no queue: it reads the history when it is asked for more, so a
    /// slow one costs nothing and finds out when it fell behind (S4).
    pub(crate) fn watch(&self, prefix: &str, after: Revision) -> Changes {
        let watcher = Watcher {
            ledger: Arc::clone(&self.ledger),
            moved: self.moved.subscribe(),
            prefix: prefix.to_owned(),
            after,
        };
        stream::unfold(Some(watcher), |watcher| async {
            let mut watcher = watcher?;
            let item = watcher.next().await;
            let more = item.is_ok().then_some(watcher);
            Some((item, more))
        })
        .boxed()
    }
}

struct Watcher {
    ledger: Arc<Mutex<Ledger>>,
    moved: watch::Receiver<Revision>,
    prefix: String,
    after: Revision,
}

impl Watcher {
    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            // Marked as seen before the ledger is read, so a commit in between wakes us again.
            self.moved.borrow_and_update();
            let next = lock(&self.ledger).next(&self.prefix, self.after);
            match next {
                Next::Batch(batch) => {
                    self.after = batch.revision;
                    return Ok(batch);
                }
                Next::Forgotten(oldest) => return Err(Error::Compacted { oldest }),
                Next::Nothing(revision) => self.after = revision,
            }
            if self.moved.changed().await.is_err() {
                return Err(Error::unavailable("memory", "it was closed"));
            }
        }
    }
}

/// A ledger is changed by one call that does not panic half-way, so a poisoned lock still guards a
/// whole one.
fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}
