//! S2 and S1 under random transactions, and S4 for a watcher that fell behind.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use proptest::{collection::vec, prelude::*};
use tether_store::{Error, FileStore, Listing, MemoryStore, Revision, Store, Txn};

/// A few keys, so that random transactions meet.
const KEYS: [&str; 6] = ["a", "b", "p/1", "p/2", "p/3", "q/1"];

#[derive(Debug, Clone)]
struct Step {
    /// Key, and whether it is deleted.
    writes: BTreeMap<usize, bool>,
    /// Guards that hold are made from these; one more that fails where `spoiled`.
    guarded: Vec<usize>,
    spoiled: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let writes = proptest::collection::btree_map(0..KEYS.len(), any::<bool>(), 0..4);
    let step = (writes, vec(0..KEYS.len(), 0..3), prop::bool::weighted(0.2)).prop_map(
        |(writes, guarded, spoiled)| Step {
            writes,
            guarded,
            spoiled,
        },
    );
    vec(step, 1..24)
}

type Contents = BTreeMap<String, Bytes>;

fn contents(listing: &Listing) -> Contents {
    let pairs = listing.entries.iter();
    pairs.map(|e| (e.key.clone(), e.value.clone())).collect()
}

async fn transaction(store: &dyn Store, step: &Step, number: usize) -> Txn {
    let mut txn = Txn::new();
    for &key in &step.guarded {
        txn = match store.get(KEYS[key]).await.unwrap() {
            Some(entry) => txn.unchanged(KEYS[key], entry.mod_revision),
            None => txn.absent(KEYS[key]),
        };
    }
    if step.spoiled {
        txn = txn.unchanged("never-there", 1);
    }
    for (&key, &delete) in &step.writes {
        txn = match delete {
            true => txn.delete(KEYS[key]),
            false => txn.put(KEYS[key], format!("{number}")),
        };
    }
    txn
}

/// Runs the steps and remembers the whole contents after each; then lets a watcher start at every one
/// of them and demands that it arrives at the same end.
async fn replays(store: &dyn Store, steps: &[Step]) {
    let mut seen: BTreeMap<Revision, Contents> = BTreeMap::new();
    let start = store.list("").await.unwrap();
    seen.insert(start.revision, contents(&start));
    for (number, step) in steps.iter().enumerate() {
        let before = store.list("").await.unwrap();
        let txn = transaction(store, step, number).await;
        let result = store.commit(txn).await;
        let after = store.list("").await.unwrap();
        if step.spoiled {
            assert!(matches!(result, Err(Error::Conflict { .. })));
            assert_eq!(before, after, "a failed guard changed something (S1)");
        } else {
            assert_eq!(result.unwrap(), after.revision);
        }
        seen.insert(after.revision, contents(&after));
    }
    let end = store.commit(Txn::new().put("end", "")).await.unwrap();
    seen.insert(end, contents(&store.list("").await.unwrap()));

    for prefix in ["", "p/"] {
        let only = |all: &Contents| -> Contents {
            let mut all = all.clone();
            all.retain(|key, _| key.starts_with(prefix));
            all
        };
        for (&from, then) in &seen {
            let mut replayed = only(then);
            let mut watch = store.watch(prefix, from);
            for (&revision, expected) in seen.range(from + 1..) {
                if only(expected) == replayed && !touched(store, prefix, revision) {
                    continue;
                }
                // Everything has happened by now, so a watcher is told at once or never.
                let told = watch.next().now_or_never().flatten();
                let batch = told.expect("a commit is told (S2)").unwrap();
                assert_eq!(batch.revision, revision, "from {from} under `{prefix}`");
                for change in batch.changes {
                    match change.value {
                        Some(value) => drop(replayed.insert(change.key, value)),
                        None => drop(replayed.remove(&change.key)),
                    }
                }
                assert_eq!(replayed, only(expected), "from {from} at {revision} (S2)");
            }
        }
    }
}

/// Whether a commit wrote under `prefix`, asked of a second watcher: the same value may be put again.
fn touched(store: &dyn Store, prefix: &str, revision: Revision) -> bool {
    // The last commit of a run writes `end`, outside every other prefix, so "" always has a next one.
    let mut all = store.watch("", revision - 1);
    let told = all.next().now_or_never().flatten();
    let batch = told.expect("a commit is told (S2)").unwrap();
    batch.revision == revision && batch.changes.iter().any(|c| c.key.starts_with(prefix))
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// S1, S2
    #[test]
    fn a_watcher_of_memory_that_starts_anywhere_arrives_at_the_same_end(steps in steps()) {
        run(async { replays(&MemoryStore::new(), &steps).await });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// S1, S2, S3: the same on disk, and a reopened file says what the closed one said.
    #[test]
    fn a_watcher_of_a_file_that_starts_anywhere_arrives_at_the_same_end(steps in steps()) {
        run(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("store.redb");
            let store = FileStore::open(&path).unwrap();
            replays(&store, &steps).await;
            let last = store.list("").await.unwrap();

            drop(store);
            let store = FileStore::open(&path).unwrap();
            assert_eq!(store.list("").await.unwrap(), last);
        });
    }

    /// S4: with a short memory, a watcher is told everything from its start or that it is forgotten.
    #[test]
    fn a_watcher_that_fell_behind_is_told_so(commits in 1u64..40, limit in 1usize..10, from in 0u64..40) {
        run(async {
            let store = MemoryStore::with_history(limit);
            for _ in 0..commits {
                store.commit(Txn::new().put("a", "")).await.unwrap();
            }
            let oldest = commits.saturating_sub(limit as u64);
            // A watcher in memory answers at once or waits for a commit.
            match store.watch("", from).next().now_or_never().flatten() {
                Some(Ok(batch)) => {
                    assert_eq!(batch.revision, from + 1);
                    assert!(from >= oldest);
                }
                Some(Err(Error::Compacted { oldest: told })) => {
                    assert_eq!(told, oldest);
                    assert!(from < oldest || from > commits);
                }
                Some(Err(error)) => panic!("{error}"),
                None => assert_eq!(from, commits),
            }
        });
    }
}
