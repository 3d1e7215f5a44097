//! Whether a watch was told everything: etcd had releases that lost events on the way to a watcher.
//!
//! From time to time the stretch since the last look is asked for once more, in a stream of its own, and both
//! are compared by a count and a sum. That costs etcd what a watcher that was away for so long costs it, and us
//! two numbers.

use std::time::Duration;

use etcd_client::{WatchOptions, WatchStream};
use tokio::time::{Instant, timeout_at};

use super::{EtcdStore, members::CALL, revision, signed, watch::begin};
use crate::Revision;

/// How long between two looks, more or less, so that not all watchers look at once.
const EVERY: Duration = Duration::from_secs(600);

const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// Revisions in any number, of which two that differ are told apart.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    count: u64,
    sum: u64,
}

impl Tally {
    fn add(&mut self, revision: Revision) {
        self.count += 1;
        // Spread out, so that one lost and another told twice do not add up to the same.
        let mixed = revision.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.sum = self.sum.wrapping_add(mixed ^ (mixed >> 32));
    }
}

/// What a look back found.
#[derive(Debug)]
pub(super) enum Found {
    /// What was told is what happened.
    Same,
    /// It cannot be said.
    Unknown(String),
    /// Something after this revision was not told.
    Lost { since: Revision },
}

#[derive(Debug)]
pub(super) struct Audit {
    /// Up to here all is known to be told.
    since: Revision,
    /// What was told after it.
    told: Tally,
    due: Instant,
}

impl Audit {
    /// Releases before 3.5.8 may answer a question for progress ahead of the events it follows; a watch on
    /// an etcd that `is_old` never looks back.
    pub(super) fn new(since: Revision, is_old: bool) -> Self {
        Self {
            since,
            told: Tally::default(),
            due: if is_old {
                Instant::now() + NEVER
            } else {
                later()
            },
        }
    }

    pub(super) fn told(&mut self, revision: Revision) {
        self.told.add(revision);
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Compares what was told from the last look up to `until` with etcd's record.
    pub(super) async fn look_back(
        &mut self,
        store: &EtcdStore,
        prefix: &str,
        until: Revision,
    ) -> Found {
        self.due = later();
        let recorded = match Box::pin(recorded(store, prefix, self.since, until)).await {
            Ok(recorded) => recorded,
            Err(why) => return Found::Unknown(why),
        };
        let told = std::mem::take(&mut self.told);
        let since = std::mem::replace(&mut self.since, until);
        match recorded {
            Some(recorded) if recorded != told => Found::Lost { since },
            Some(_) => Found::Same,
            None => Found::Unknown("the record was compacted".to_owned()),
        }
    }
}

fn later() -> Instant {
    Instant::now() + EVERY.mul_f64(0.75 + 0.5 * fastrand::f64())
}

/// The commits under `prefix` after `since` and up to `until`; none where the record does not go back so far.
async fn recorded(
    store: &EtcdStore,
    prefix: &str,
    since: Revision,
    until: Revision,
) -> Result<Option<Tally>, String> {
    let deadline = Instant::now() + CALL;
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(signed(since.saturating_add(1)));
    let opened = store.members.call(deadline, |client| {
        begin(client, store.key(prefix), options.clone())
    });
    let (mut stream, first) = opened.await.map_err(|error| error.to_string())?;
    if first.compact_revision() > 0 {
        return Ok(None);
    }
    timeout_at(deadline, read(&mut stream, store, until))
        .await
        .unwrap_or_else(|_| Err(format!("not read within {CALL:?}")))
        .map(Some)
}

/// Reads until the stream is past `until`, or says that it has nothing more.
async fn read(
    stream: &mut WatchStream,
    store: &EtcdStore,
    until: Revision,
) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let mut last = 0;
    // It is answered once the stream has told everything up to the revision in the answer.
    stream
        .request_progress()
        .await
        .map_err(|error| error.to_string())?;
    loop {
        let response = stream.message().await.map_err(|error| error.to_string())?;
        let Some(response) = response.filter(|response| !response.canceled()) else {
            return Err("the stream ended".to_owned());
        };
        let events = response.events().iter().filter_map(|event| event.kv());
        for entry in events.filter_map(|kv| store.entry(kv)) {
            if entry.mod_revision > until {
                return Ok(tally);
            }
            if entry.mod_revision > last {
                last = entry.mod_revision;
                tally.add(last);
            }
        }
        let now = revision(response.header().map_or(0, |header| header.revision()));
        if response.events().is_empty() && now >= until {
            return Ok(tally);
        }
    }
}

#[cfg(test)]
mod tests {
    use tether_etcd_cluster::Setup;

    use super::*;
    use crate::{Store as _, Txn};

    #[test]
    fn a_tally_tells_what_was_lost_from_what_was_told_twice() {
        let tally = |revisions: &[Revision]| {
            let mut tally = Tally::default();
            revisions.iter().for_each(|&revision| tally.add(revision));
            tally
        };

        assert_eq!(tally(&[5, 7, 9]), tally(&[9, 5, 7]));
        for other in [
            &[5, 9][..],
            &[5, 7, 7],
            &[6, 6, 9],
            &[5, 7, 9, 10],
            &[4, 8, 9],
        ] {
            assert_ne!(tally(&[5, 7, 9]), tally(other));
        }
    }

    #[tokio::test]
    async fn a_commit_that_a_watch_was_not_told_of_is_found() {
        let cluster = Setup::members(1).start().await;
        let url = cluster.url("audit");
        let store = EtcdStore::open(url.strip_prefix("etcd:").unwrap())
            .await
            .unwrap();
        let start = store.commit(Txn::new().put("a", "")).await.unwrap();
        let mut revisions = Vec::new();
        for key in ["a", "b", "a"] {
            revisions.push(store.commit(Txn::new().put(key, "")).await.unwrap());
        }
        let end = store.commit(Txn::new().delete("a")).await.unwrap();
        // Later than what is looked at, and not to be counted.
        store.commit(Txn::new().put("a", "")).await.unwrap();
        let told = |revisions: &[Revision]| {
            let mut audit = Audit::new(start, false);
            revisions.iter().for_each(|&revision| audit.told(revision));
            audit
        };

        let mut all = told(&[revisions[0], revisions[2], end]);
        let found = all.look_back(&store, "a", end).await;
        assert!(matches!(found, Found::Same), "{found:?}");
        let found = all.look_back(&store, "a", end).await;
        assert!(matches!(found, Found::Same), "nothing since: {found:?}");
        for some in [&[][..], &revisions[..1], &[revisions[0], end]] {
            let found = told(some).look_back(&store, "a", end).await;
            assert!(
                matches!(found, Found::Lost { since } if since == start),
                "{found:?}"
            );
        }

        let mut client = cluster.client(0).await.unwrap();
        client.compact(signed(end), None).await.unwrap();
        let found = told(&[]).look_back(&store, "a", end).await;
        assert!(matches!(found, Found::Unknown(_)), "{found:?}");
    }
}
