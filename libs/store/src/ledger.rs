//! The state of a store in memory: entries, revision and a bounded history. Pure.
//!
//! A store may have a million keys, and its history most of them again: each key and each value is in memory
//! once, shared by both, and made into what callers get when they ask for it.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;

use crate::{Batch, Change, Entry, Error, Listing, Revision, Txn, Write};

/// What a watcher is told next.
pub(crate) enum Next {
    /// The first commit after its position that touches its prefix.
    Batch(Batch),
    /// Nothing up to this revision.
    Nothing(Revision),
    /// Its position is forgotten.
    Forgotten(Revision),
}

/// What is at a key.
#[derive(Debug)]
struct Kept {
    value: Arc<[u8]>,
    mod_revision: Revision,
}

impl Kept {
    fn entry(&self, key: &str) -> Entry {
        Entry {
            key: key.to_owned(),
            value: Bytes::copy_from_slice(&self.value),
            mod_revision: self.mod_revision,
        }
    }
}

/// A commit of before: its keys, and what was put there.
#[derive(Debug)]
struct Past {
    revision: Revision,
    changes: Box<[Changed]>,
}

/// A key, and its value then; none where it was deleted.
type Changed = (Arc<str>, Option<Arc<[u8]>>);

#[derive(Debug)]
pub(crate) struct Ledger {
    entries: BTreeMap<Arc<str>, Kept>,
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
        let kept = |entry: Entry| {
            let kept = Kept {
                value: Arc::from(&*entry.value),
                mod_revision: entry.mod_revision,
            };
            (Arc::from(entry.key), kept)
        };
        Self {
            entries: entries.into_iter().map(kept).collect(),
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
        self.entries.get(key).map(|kept| kept.entry(key))
    }

    pub(crate) fn list(&self, prefix: &str) -> Listing {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let entries = self
            .entries
            .range::<str, _>(from)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, kept)| kept.entry(key))
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
            let current = self.entries.get(&*guard.key);
            if !guard.expect.holds(current.map(|entry| entry.mod_revision)) {
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
                    .contains_key(&*key)
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
        let revision = batch.revision;
        let changes = batch.changes.into_iter();
        let changes = changes.map(|change| match change.value {
            None => match self.entries.remove_entry(&*change.key) {
                Some((key, _)) => (key, None),
                None => (Arc::from(change.key), None),
            },
            Some(value) => {
                let value: Arc<[u8]> = Arc::from(&*value);
                let kept = Kept {
                    value: Arc::clone(&value),
                    mod_revision: revision,
                };
                let known = self.entries.get_key_value(&*change.key);
                let key = known.map(|(key, _)| Arc::clone(key));
                let key = key.unwrap_or_else(|| Arc::from(change.key));
                self.entries.insert(Arc::clone(&key), kept);
                (key, Some(value))
            }
        });
        let past = Past {
            revision,
            changes: changes.collect(),
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
    let changes = batch.changes.iter();
    let changes: Vec<Change> = changes
        .filter(|(key, _)| key.starts_with(prefix))
        .map(|(key, value)| Change {
            key: key.to_string(),
            value: value.as_deref().map(Bytes::copy_from_slice),
        })
        .collect();
    (!changes.is_empty()).then_some(Batch {
        revision: batch.revision,
        changes,
    })
}
