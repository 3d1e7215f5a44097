//! The state of a store in memory: entries, revision and a bounded history. Pure.

use std::collections::{BTreeMap, VecDeque};

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

#[derive(Debug)]
pub(crate) struct Ledger {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    history: VecDeque<Batch>,
    /// How many batches are remembered.
    limit: usize,
    /// The oldest revision one can watch after: everything later is in `history`.
    oldest: Revision,
}

impl Ledger {
    pub(crate) fn new(entries: BTreeMap<String, Entry>, revision: Revision, limit: usize) -> Self {
        Self {
            entries,
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
        self.entries.get(key).cloned()
    }

    pub(crate) fn list(&self, prefix: &str) -> Listing {
        let entries = self
            .entries
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
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
            let current = self.entries.get(&guard.key);
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
                    .contains_key(&key)
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
        for change in &batch.changes {
            match &change.value {
                None => drop(self.entries.remove(&change.key)),
                Some(value) => {
                    let entry = Entry {
                        key: change.key.clone(),
                        value: value.clone(),
                        mod_revision: batch.revision,
                    };
                    self.entries.insert(change.key.clone(), entry);
                }
            }
        }
        self.history.push_back(batch);
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
fn under(batch: &Batch, prefix: &str) -> Option<Batch> {
    let changes: Vec<Change> = batch
        .changes
        .iter()
        .filter(|change| change.key.starts_with(prefix))
        .cloned()
        .collect();
    (!changes.is_empty()).then_some(Batch {
        revision: batch.revision,
        changes,
    })
}
