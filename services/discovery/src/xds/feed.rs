//! The catalog where all streams can read it, and what keeps it up to date.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tether_xds::{Balance, Catalog};
use tokio::sync::watch;
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
    pub(crate) fn new(balance: Balance, ended: CancellationToken) -> Self {
        Self {
            catalog: Arc::new(Mutex::new(Catalog::new(balance))),
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

    /// Follows the table until the service ends.
    pub(crate) async fn follow(self, board: Arc<Board>) {
        let mut watcher = Watcher::new(board, None, ("", 0));
        while let Some(message) = watcher.next().await {
            // An error says that the store was never read yet, to those who wait for an answer. Clients of xDS wait.
            if let Ok(message) = message {
                self.change(|catalog| catalog.take(message));
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
