//! One arbiter's way to the store that all share: it may stall, and what goes through it is judged.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use prost::Message as _;
use tether_proto::{
    common::WorkerRef,
    worker::{Event, EventKind},
};
use tether_store::{Changes, Entry, Error, Listing, MemoryStore, Revision, Store, Txn, Write};
use tether_types::{Death, DeathCause, WorkerId};
use tokio::time::sleep;

use super::{
    clocks::{self, Host},
    mutant::Mutant,
};

/// Where an arbiter writes that it leads.
const REIGN: &str = "arbiter/leader/reign";
const LEADER: &str = "arbiter/leader/";

/// Where arbiters write what happened.
const EVENTS: &str = "arbiter/events/";

/// How often a stalled way is tried.
const AGAIN: Duration = Duration::from_millis(20);

/// What is seen of all arbiters' commits.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Who won last, and when.
    pub(crate) leader: Option<(Host, Duration)>,
    /// What happened that must not.
    pub(crate) wrong: Option<String>,
    /// Arbiters that do not reach the store.
    pub(crate) stalled: Vec<Host>,
    /// What there is to tell, in order.
    pub(crate) news: Vec<String>,
    /// Deaths that were recorded.
    pub(crate) buried: Vec<Burial>,
}

/// The record of a death.
#[derive(Debug, Clone)]
pub(crate) struct Burial {
    /// Its key in the store.
    pub(crate) record: String,
    pub(crate) worker: WorkerId,
    /// Why it died, as far as the ledger knows.
    pub(crate) cause: DeathCause,
}

impl Burial {
    fn of(write: &Write) -> Option<Self> {
        let Write::Put { key, value } = write else {
            return None;
        };
        if !key.starts_with(EVENTS) {
            return None;
        }
        let event = Event::decode(&**value).ok()?;
        if event.kind() != EventKind::WorkerDied {
            return None;
        }
        Some(Self {
            record: key.clone(),
            worker: WorkerRef::required(event.worker.as_ref()).ok()?,
            cause: Death::from(event.death.as_ref()?).cause,
        })
    }
}

/// Shared by all ways.
pub(crate) type Shared = Arc<Mutex<Seen>>;

/// Looks at it, or changes it.
pub(crate) fn with<T>(seen: &Shared, act: impl FnOnce(&mut Seen) -> T) -> T {
    act(&mut seen.lock().unwrap_or_else(PoisonError::into_inner))
}

/// One arbiter's way.
#[derive(Debug, Clone)]
pub(crate) struct Tap {
    pub(crate) host: Host,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) seen: Shared,
    pub(crate) mutant: Option<Mutant>,
}

impl Tap {
    async fn pass(&self) {
        while clocks::is_stopped(self.host)
            || with(&self.seen, |seen| seen.stalled.contains(&self.host))
        {
            sleep(AGAIN).await;
        }
    }

    fn judge(&self, wins: bool, resigns: bool, effects: usize) {
        let now = clocks::truth();
        with(&self.seen, |seen| {
            if wins {
                seen.leader = Some((self.host, now));
                seen.news.push(format!("arbiter {} leads", self.host));
            } else if resigns {
                seen.leader = None;
            } else if effects > 0 && seen.leader.is_none_or(|(leader, _)| leader != self.host) {
                seen.wrong = Some(format!(
                    "P2: arbiter {} wrote while {:?} leads",
                    self.host, seen.leader
                ));
            }
        });
    }
}

#[async_trait]
impl Store for Tap {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.pass().await;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.pass().await;
        self.store.list(prefix).await
    }

    async fn commit(&self, mut txn: Txn) -> Result<Revision, Error> {
        self.pass().await;
        let about_leading = txn
            .writes
            .iter()
            .any(|write| write.key().starts_with(LEADER));
        if self.mutant == Some(Mutant::NoGuard) && !about_leading {
            txn.guards.clear();
        }
        let is_reign = |write: &&Write| write.key() == REIGN;
        let (wins, resigns) = match txn.writes.iter().find(is_reign) {
            Some(Write::Put { .. }) => (true, false),
            Some(Write::Delete { .. }) => (false, true),
            None => (false, false),
        };
        let effects = match about_leading {
            true => 0,
            false => txn.writes.len(),
        };
        let buried: Vec<_> = txn.writes.iter().filter_map(Burial::of).collect();
        let committed = self.store.commit(txn).await;
        if committed.is_ok() {
            self.judge(wins, resigns, effects);
            with(&self.seen, |seen| seen.buried.extend(buried));
        }
        // The answer takes the same way.
        self.pass().await;
        committed
    }

    fn watch(&self, prefix: &str, after: Revision) -> Changes {
        self.store.watch(prefix, after)
    }
}
