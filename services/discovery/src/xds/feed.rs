//! The catalog where all streams can read it, and what keeps it up to date.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tether_types::PoolName;
use tether_xds::{Balance, Catalog};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::board::{Board, Watcher};

/// What streams read; a copy is the same one.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    catalog: Arc<Mutex<Catalog>>,
    /// Its revision; 0 until the table was read.
    news: watch::Sender<u64>,
    ended: CancellationToken,
}

impl Feed {
    /// Of `unheard` pools nobody knows yet who serves them.
    pub(crate) fn new(
        balance: Balance,
        unheard: impl Iterator<Item = String>,
        ended: CancellationToken,
    ) -> Self {
        Self {
            catalog: Arc::new(Mutex::new(Catalog::new(balance, unheard))),
            news: watch::Sender::new(0),
            ended,
        }
    }

    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Follows the table until the service ends; `believed_empty` tells of pools that nobody serves, as their sources
    /// say.
    pub(crate) async fn follow(
        self,
        board: Arc<Board>,
        mut believed_empty: mpsc::UnboundedReceiver<PoolName>,
    ) {
        let mut watcher = Watcher::new(board, None, ("", 0));
        loop {
            tokio::select! {
                message = watcher.next() => match message {
                    Some(Ok(message)) => self.change(|catalog| catalog.take(message)),
                    // The store was never read yet, which is an answer for those who wait for one. Clients of xDS wait.
                    Some(Err(_)) => {}
                    None => return,
                },
                Some(pool) = believed_empty.recv() => {
                    self.change(|catalog| catalog.believe_empty(pool.as_str()));
                }
            }
        }
    }

    /// Changes the catalog, and wakes the streams if that is news.
    fn change(&self, change: impl FnOnce(&mut Catalog) -> bool) {
        let mut catalog = self.catalog();
        let news = change(&mut catalog);
        let revision = catalog.revision();
        drop(catalog);
        if news {
            self.news.send_replace(revision);
        }
    }
}
