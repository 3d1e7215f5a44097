//! Commits and watches that go on while something is done to a cluster, and what must be true of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use tether_store::{Batch, Error, Revision, Store, Txn, open};
use tokio::{task::JoinSet, time::Instant};

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// What the writers have heard.
#[derive(Debug, Default)]
struct Heard {
    /// Revision of each acknowledged commit, with the key that it wrote.
    done: BTreeMap<Revision, String>,
    /// Commits whose outcome was not told, by the key that they would have written.
    unclear: Vec<String>,
    longest: Duration,
}

/// Two writers, one with guards and one without, and two watchers, each with a store of its own.
pub(crate) struct Load {
    stores: [Arc<dyn Store>; 2],
    heard: Arc<Mutex<Heard>>,
    seen: Vec<Arc<Mutex<Vec<Batch>>>>,
    writers: JoinSet<()>,
    watchers: JoinSet<()>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Load {
    /// Starts on an empty store.
    pub(crate) async fn start(url: &str) -> Self {
        let stores = [open(url).await.unwrap(), open(url).await.unwrap()];
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let start = stores[0].commit(Txn::new().put("start", "")).await.unwrap();
        let (mut writers, mut watchers, mut seen) = (JoinSet::new(), JoinSet::new(), Vec::new());
        for (store, guarded) in stores.iter().zip([true, false]) {
            let (heard, stopped) = (Arc::clone(&heard), stopped.clone());
            writers.spawn(write(Arc::clone(store), guarded, heard, stopped));
            let batches = Arc::new(Mutex::new(Vec::new()));
            seen.push(Arc::clone(&batches));
            watchers.spawn(watch(open(url).await.unwrap(), start, batches));
        }
        Self {
            stores,
            heard,
            seen,
            writers,
            watchers,
            stop,
        }
    }

    /// Waits until so many more commits are acknowledged.
    pub(crate) async fn goes_on(&self, commits: usize) {
        let count = || self.heard.lock().unwrap().done.len();
        let goal = count() + commits;
        let deadline = Instant::now() + PATIENCE;
        while count() < goal {
            assert!(Instant::now() < deadline, "no commit for {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it, and checks that everything acknowledged is there, and was told to each watcher, once and in
    /// order. Says the longest time without an acknowledgement, and how many commits had no clear outcome.
    pub(crate) async fn end(mut self, what: &str) -> (Duration, usize) {
        self.stop.send_replace(true);
        while let Some(writer) = self.writers.join_next().await {
            writer.unwrap();
        }
        let end = self.stores[0]
            .commit(Txn::new().put("end", ""))
            .await
            .unwrap();
        for batches in &self.seen {
            let deadline = Instant::now() + PATIENCE;
            let arrived = || {
                batches
                    .lock()
                    .unwrap()
                    .last()
                    .is_some_and(|b| b.revision >= end)
            };
            while !arrived() {
                assert!(
                    Instant::now() < deadline,
                    "a watcher was not told of the end"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        self.watchers.shutdown().await;

        let heard = std::mem::take(&mut *self.heard.lock().unwrap());
        for batches in &self.seen {
            check(&heard, &batches.lock().unwrap());
        }
        let listing = self.stores[0].list("log/").await.unwrap();
        let listed: BTreeMap<_, _> = listing
            .entries
            .into_iter()
            .map(|entry| (entry.key, entry.mod_revision))
            .collect();
        for (revision, key) in &heard.done {
            assert_eq!(
                listed.get(key),
                Some(revision),
                "`{key}` was acknowledged and is lost"
            );
        }
        let (longest, unclear) = (heard.longest, heard.unclear.len());
        println!(
            "{what}: {} commits acknowledged, longest gap {} ms, {unclear} unclear",
            heard.done.len(),
            longest.as_millis()
        );
        (longest, unclear)
    }
}

fn check(heard: &Heard, batches: &[Batch]) {
    assert!(
        batches
            .windows(2)
            .all(|two| two[0].revision < two[1].revision),
        "a watcher was told something twice or out of order"
    );
    let mut written: BTreeMap<&str, Vec<Revision>> = BTreeMap::new();
    for batch in batches {
        for change in batch
            .changes
            .iter()
            .filter(|change| change.key.starts_with("log/"))
        {
            written.entry(&change.key).or_default().push(batch.revision);
        }
    }
    for (revision, key) in &heard.done {
        let told = written.get(key.as_str());
        assert_eq!(told, Some(&vec![*revision]), "`{key}` was not told once");
    }
    for (key, revisions) in written {
        assert_eq!(revisions.len(), 1, "`{key}` was written more than once");
        let known = heard.done.values().any(|done| done == key)
            || heard.unclear.iter().any(|unclear| unclear == key);
        assert!(known, "`{key}` was written by nobody");
    }
}

/// Writes one key after the other; with guards, each commit also takes the turn from the one before it.
async fn write(
    store: Arc<dyn Store>,
    guarded: bool,
    heard: Arc<Mutex<Heard>>,
    stopped: tokio::sync::watch::Receiver<bool>,
) {
    let mut turn = 0;
    let mut last = Instant::now();
    for number in 0.. {
        if *stopped.borrow() {
            return;
        }
        let key = format!("log/{guarded}/{number:06}");
        let mut txn = Txn::new().put(&key, "");
        if guarded {
            txn = txn.unchanged("turn", turn).put("turn", number.to_string());
        }
        match store.commit(txn).await {
            Ok(revision) => {
                let mut heard = heard.lock().unwrap();
                heard.longest = heard.longest.max(last.elapsed());
                heard.done.insert(revision, key);
                (turn, last) = (revision, Instant::now());
            }
            Err(Error::Unavailable { .. }) => {
                heard.lock().unwrap().unclear.push(key);
                turn = settled(&store).await;
            }
            // Nobody else takes the turn, so this would be our own commit told as somebody else's.
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// After a commit without an outcome, the next one that has one settles it; then its turn can be read.
async fn settled(store: &Arc<dyn Store>) -> Revision {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the store does not come back");
        if store.commit(Txn::new().put("settled", "")).await.is_ok()
            && let Ok(turn) = store.get("turn").await
        {
            return turn.map_or(0, |entry| entry.mod_revision);
        }
    }
}

async fn watch(store: Arc<dyn Store>, mut after: Revision, batches: Arc<Mutex<Vec<Batch>>>) {
    loop {
        let mut watch = store.watch("", after);
        while let Some(batch) = watch.next().await {
            match batch {
                Ok(batch) => {
                    after = batch.revision;
                    batches.lock().unwrap().push(batch);
                }
                Err(Error::Unavailable { .. }) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}
