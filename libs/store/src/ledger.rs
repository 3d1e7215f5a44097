//! The state of a store in memory: entries, revision and a bounded history. Pure.
//!
//! A store may have a million keys, and its history most of them again: each is in memory once, in one piece with its
//! value, shared by both, and made into what callers get when they ask for it.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Bound,
};

use crate::{Batch, Change, Entry, Error, Listing, Revision, Txn, Write, row::Row};

/// What a watcher is told next.
pub(crate) enum Next {
    /// The first commit after its position that touches its prefix.
    Batch(Batch),
    /// Nothing up to this revision.
    Nothing(Revision),
    /// Its position is forgotten.
    Forgotten(Revision),
}

/// A commit of before.
#[derive(Debug)]
struct Past {
    revision: Revision,
    rows: Box<[Row]>,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    /// None of them a deletion.
    entries: BTreeSet<Row>,
    revision: Revision,
    history: VecDeque<Past>,
    /// How many batches are remembered.
    limit: usize,
    /// The oldest revision one can watch after: everything later is in `history`.
    oldest: Revision,
}

impl Ledger {
    pub(crate) fn new(
        entries: impl IntoIterator<Item = Entry>,
        revision: Revision,
        limit: usize,
    ) -> Self {
        let row = |entry: Entry| Row::new(entry.mod_revision, &entry.key, Some(&entry.value));
        Self {
            entries: entries.into_iter().map(row).collect(),
            revision,
            history: VecDeque::new(),
            limit,
            oldest: revision,
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        self.entries.get(key.as_bytes()).and_then(Row::entry)
    }

    pub(crate) fn list(&self, prefix: &str) -> Listing {
        let from = (Bound::Included(prefix.as_bytes()), Bound::Unbounded);
        let entries = self
            .entries
            .range::<[u8], _>(from)
            .take_while(|row| row.is_under(prefix))
            .filter_map(Row::entry)
            .collect();
        Listing {
            entries,
            revision: self.revision,
        }
    }

    /// Says what `txn` would change, without changing it; `None` when that is nothing.
    pub(crate) fn plan(&self, txn: Txn) -> Result<Option<Batch>, Error> {
        txn.check()?;
        for guard in &txn.guards {
            let current = self.entries.get(guard.key.as_bytes());
            if !guard.expect.holds(current.map(Row::revision)) {
                return Err(Error::Conflict {
                    key: guard.key.clone(),
                });
            }
        }
        let mut changes: Vec<Change> = txn
            .writes
            .into_iter()
            .filter_map(|write| match write {
                Write::Put { key, value } => Some(Change {
                    key,
                    value: Some(value),
                }),
                Write::Delete { key } => self
                    .entries
                    .contains(key.as_bytes())
                    .then_some(Change { key, value: None }),
            })
            .collect();
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        Ok((!changes.is_empty()).then(|| Batch {
            revision: self.revision + 1,
            changes,
        }))
    }

    /// Makes a planned batch true.
    pub(crate) fn apply(&mut self, batch: Batch) {
        self.revision = batch.revision;
        let mut rows = Vec::with_capacity(batch.changes.len());
        for change in batch.changes {
            let row = Row::new(batch.revision, &change.key, change.value.as_deref());
            if change.value.is_some() {
                self.entries.replace(row.clone());
            } else {
                self.entries.remove(&row);
            }
            rows.push(row);
        }
        let past = Past {
            revision: batch.revision,
            rows: rows.into(),
        };
        self.history.push_back(past);
        while self.history.len() > self.limit {
            if let Some(forgotten) = self.history.pop_front() {
                self.oldest = forgotten.revision;
            }
        }
    }

    /// What a watcher of `prefix` that knows everything up to `after` is told next.
    pub(crate) fn next(&self, prefix: &str, after: Revision) -> Next {
        // A revision from the future was handed out by another life of this store.
        if after < self.oldest || after > self.revision {
            return Next::Forgotten(self.oldest);
        }
        let start = self.history.partition_point(|b| b.revision <= after);
        self.history
            .range(start..)
            .find_map(|batch| under(batch, prefix))
            .map_or(Next::Nothing(self.revision), Next::Batch)
    }
}

/// The part of `batch` that concerns keys starting with `prefix`.
fn under(batch: &Past, prefix: &str) -> Option<Batch> {
    let rows = batch.rows.iter().filter(|row| row.is_under(prefix));
    let changes: Vec<_> = rows.map(Row::change).collect();
    (!changes.is_empty()).then_some(Batch {
        revision: batch.revision,
        changes,
    })
}
