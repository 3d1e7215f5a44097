//! Follows the store: one listing, then every commit, over every interruption.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::StreamExt as _;
use tether_store::{Error, Revision, Store, keys};

use crate::board::Board;

/// Never ends: it tries for as long as the store is away.
pub(crate) async fn follow(board: Arc<Board>, store: Arc<dyn Store>) {
    let backoff = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times();
    let mut delays = backoff.build();
    let mut seen = None;
    loop {
        let before = seen;
        match session(&board, store.as_ref(), &mut seen).await {
            // A new listing brings everything up to date.
            Error::Compacted { .. } => seen = None,
            error => {
                if board.away() {
                    tracing::warn!(error = error.in_full(), "The store is away");
                }
            }
        }
        if seen != before && seen.is_some() {
            delays = backoff.build();
        }
        tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(2))).await;
    }
}

/// Follows until something goes wrong. `seen` is the last revision the table knows.
async fn session(board: &Board, store: &dyn Store, seen: &mut Option<Revision>) -> Error {
    let after = match *seen {
        // A watch alone does not tell whether the store is there.
        Some(revision) => store.get(keys::SERVE).await.map(|_| revision),
        None => store.list(keys::SERVE).await.map(|listing| {
            board.change(|table| table.reload(listing.entries));
            listing.revision
        }),
    };
    let after = match after {
        Ok(revision) => *seen.insert(revision),
        Err(error) => return error,
    };
    board.here();

    let mut watch = store.watch(keys::SERVE, after);
    while let Some(batch) = watch.next().await {
        match batch {
            Ok(batch) => {
                *seen = Some(batch.revision);
                board.change(|table| table.commit(batch.changes));
            }
            Err(error) => return error,
        }
    }
    Error::Unavailable {
        what: "watch".to_owned(),
        source: "it ended without a reason".into(),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tether_proto::common::{Endpoint, WorkerRef};
    use tether_store::{MemoryStore, Txn};
    use tether_types::PoolName;

    use super::*;
    use crate::{Config, board::Watcher};

    #[tokio::test]
    async fn what_happened_while_the_store_was_away_is_told_commit_by_commit() {
        let config = Config::default();
        let board = Arc::new(Board::new("i".to_owned(), Default::default(), &config));
        let store = MemoryStore::new();
        let key = keys::endpoint(&PoolName::new("p").unwrap(), 0);
        let serves = |incarnation| {
            let worker = WorkerRef {
                pool: "p".to_owned(),
                slot: 0,
                incarnation,
            };
            let endpoint = Endpoint {
                worker: Some(worker),
                ..Endpoint::default()
            };
            Txn::new().put(&key, endpoint.encode_to_vec())
        };
        let mut watcher = Watcher::new(Arc::clone(&board), None, ("", 0));
        let mut seen = None;
        tokio::select! {
            error = session(&board, &store, &mut seen) => panic!("{error}"),
            first = watcher.next() => assert!(first.unwrap().unwrap().snapshot),
        }

        for incarnation in 1..=2 {
            store.commit(serves(incarnation)).await.unwrap();
            store.commit(Txn::new().delete(&key)).await.unwrap();
        }

        let told = async {
            for incarnation in 1..=2 {
                let starts = watcher.next().await.unwrap().unwrap();
                let ends = watcher.next().await.unwrap().unwrap();
                let started = starts.upserts[0].worker.as_ref().unwrap();
                assert_eq!(started.incarnation, incarnation);
                assert_eq!(ends.removals[0].worker.as_ref(), Some(started));
            }
        };
        tokio::select! {
            error = session(&board, &store, &mut seen) => panic!("{error}"),
            told = tokio::time::timeout(Duration::from_secs(5), told) => {
                told.expect("every commit is told (D4)");
            }
        }
    }
}
