//! `etcd://host:2379,host2:2379/prefix/`, a store that many machines share.
//!
//! A call is answered as long as a majority of the members works and one of them can be reached. A member
//! that is dead or says that it knows of no leader is left for the next one at once; one that is silent
//! (stopped, cut off, its disk stalled) after [`members::ATTEMPT`], and the calls that come after begin with another.
//! What has no answer within [`members::CALL`] is [`Error::Unavailable`]. A commit may so be sent to several
//! members and is done once at most ([`receipt`]); a watch goes on from the last revision it has told.

mod audit;
mod dated;
mod greeting;
mod judge;
mod members;
mod receipt;
mod target;
mod version;
mod watch;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, KvClient, TxnOp, TxnOpResponse,
};
use futures::{StreamExt as _, TryStreamExt as _, future::BoxFuture};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

pub use self::dated::{DatedBatch, DatedListing};
use self::{
    members::{CALL, Members},
    receipt::{Outcome, Receipt},
    target::Target,
};
use crate::{
    Batch, Changes, Entry, Error, Expect, Guard, Listing, Revision, Scheme, Store, Txn, Write,
    scheme::masked,
};

/// A listing or a batch may be as large as etcd lets it grow; gRPC's own limit is 4 MB.
const MESSAGE_MAX: usize = 1 << 30;

/// A store in an etcd cluster, under a prefix of its own.
#[derive(Clone)]
pub struct EtcdStore {
    members: Arc<Members>,
    prefix: Arc<str>,
    /// Commits of one store are done one after the other.
    receipt: Arc<Mutex<Receipt>>,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EtcdStore({}{})", self.members.names(), self.prefix)
    }
}

impl EtcdStore {
    /// The store that `rest`, the part of the URL after `etcd:`, describes. A member that cannot be reached
    /// is no error: it may come later.
    ///
    /// # Errors
    /// When the URL or a file it names is wrong, when etcd does not let us in, or when one of the members
    /// that answer is too old.
    pub async fn open(rest: &str) -> Result<Self, Error> {
        let target = parse(rest)?;
        Ok(Self {
            members: Arc::new(Members::open(&target).await?),
            receipt: Arc::new(Mutex::new(Receipt::new(&target.prefix))),
            prefix: target.prefix.into(),
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The entry in our words; `None` for one that is not of this store's callers.
    fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        let Ok(key) = kv.key_str() else {
            let key = kv.key().escape_ascii();
            tracing::warn!(%key, "A key under our prefix is not text, and is ignored; nothing of Tether wrote it");
            return None;
        };
        let key = key.strip_prefix(&*self.prefix)?;
        (!key.starts_with('\0')).then(|| Entry {
            key: key.to_owned(),
            value: Bytes::copy_from_slice(kv.value()),
            mod_revision: revision(kv.mod_revision()),
        })
    }

    /// Whether a transaction that only deletes has nothing to delete: it gets no revision of its own then, not
    /// even for the receipt.
    async fn is_idle(&self, txn: &Txn, deadline: Instant) -> Result<Option<Revision>, Error> {
        let deleted = txn
            .writes
            .iter()
            .map(|write| TxnOp::get(self.key(write.key()), None));
        let request = etcd_client::Txn::new()
            .when(self.compares(txn))
            .and_then(deleted.collect::<Vec<_>>())
            .or_else(self.reads(txn));
        let answer = self
            .members
            .call(deadline, |client| {
                let request = request.clone();
                async move { kv(&client).txn(request).await }
            })
            .await?;
        if !answer.succeeded() {
            return Err(conflict(txn, &answer.op_responses()));
        }
        let nothing = |response: &TxnOpResponse| matches!(response, TxnOpResponse::Get(get) if get.kvs().is_empty());
        let now = revision(answer.header().map_or(0, |header| header.revision()));
        Ok(answer.op_responses().iter().all(nothing).then_some(now))
    }

    fn compares(&self, txn: &Txn) -> Vec<Compare> {
        let compares = txn.guards.iter().map(|guard| match guard.expect {
            Expect::Absent => Compare::create_revision(self.key(&guard.key), CompareOp::Equal, 0),
            Expect::Revision(at) => {
                Compare::mod_revision(self.key(&guard.key), CompareOp::Equal, signed(at))
            }
        });
        compares.collect()
    }

    fn writes(&self, txn: &Txn) -> Vec<TxnOp> {
        let writes = txn.writes.iter().map(|write| match write {
            Write::Put { key, value } => TxnOp::put(self.key(key), value.as_ref(), None),
            Write::Delete { key } => TxnOp::delete(self.key(key), None),
        });
        writes.collect()
    }

    /// Where a guard fails, the same transaction reads the guarded keys, to name the one at fault.
    fn reads(&self, txn: &Txn) -> Vec<TxnOp> {
        let guards = txn.guards.iter();
        guards
            .map(|guard| TxnOp::get(self.key(&guard.key), None))
            .collect()
    }
}

/// etcd counts from 1 in a signed number.
fn revision(signed: i64) -> Revision {
    u64::try_from(signed).unwrap_or(0)
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MESSAGE_MAX)
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let key = self.key(key);
        let answer = self
            .members
            .call(Instant::now() + CALL, |client| {
                let key = key.clone();
                async move { kv(&client).get(key, None).await }
            })
            .await?;
        Ok(answer.kvs().first().and_then(|kv| self.entry(kv)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        let key = self.key(prefix);
        let answer = self
            .members
            .call(Instant::now() + CALL, |client| {
                let key = key.clone();
                async move {
                    kv(&client)
                        .get(key, Some(GetOptions::new().with_prefix()))
                        .await
                }
            })
            .await?;
        let entries = answer.kvs().iter().filter_map(|kv| self.entry(kv));
        Ok(Listing {
            entries: entries.collect(),
            revision: revision(answer.header().map_or(0, |header| header.revision())),
        })
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, Error> {
        txn.check()?;
        let deadline = Instant::now() + CALL;
        let mut receipt = timeout_at(deadline, self.receipt.lock())
            .await
            .map_err(|_| {
                self.members.unavailable(format!(
                    "an earlier commit has no answer within {CALL:?}; this one was not sent"
                ))
            })?;
        if txn
            .writes
            .iter()
            .all(|write| matches!(write, Write::Delete { .. }))
            && let Some(revision) = self.is_idle(&txn, deadline).await?
        {
            return Ok(revision);
        }
        let parts = (self.compares(&txn), self.writes(&txn), self.reads(&txn));
        match receipt.commit(&self.members, deadline, parts).await? {
            Outcome::Done(revision) => Ok(revision),
            Outcome::NotDone(read) => Err(conflict(&txn, &read)),
        }
    }

    fn watch(&self, prefix: &str, after: Revision) -> Changes {
        let plain = |DatedBatch { revision, changes }| Batch {
            revision,
            changes: changes.into_iter().map(|(change, _)| change).collect(),
        };
        watch::follow(self.clone(), prefix, after)
            .map_ok(plain)
            .boxed()
    }
}

/// Names the first guard that does not hold, by what was read of the guarded keys.
fn conflict(txn: &Txn, read: &[TxnOpResponse]) -> Error {
    let current = read.iter().map(|response| match response {
        TxnOpResponse::Get(get) => get.kvs().first().map(|kv| revision(kv.mod_revision())),
        _ => None,
    });
    let failed = txn
        .guards
        .iter()
        .zip(current)
        .find(|(guard, now)| !guard.expect.holds(*now));
    Error::Conflict {
        key: failed.map_or_else(String::new, |(Guard { key, .. }, _)| key.clone()),
    }
}

fn parse(rest: &str) -> Result<Target, Error> {
    Target::parse(rest).map_err(|why| Error::Url {
        given: masked(&format!("etcd:{rest}")),
        why,
    })
}

#[derive(Debug)]
pub(crate) struct Etcd;

impl Scheme for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn usage(&self) -> &'static str {
        "etcd://host:2379,host2:2379"
    }

    fn check(&self, rest: &str) -> Result<(), Error> {
        parse(rest).map(drop)
    }

    fn open<'a>(&self, rest: &'a str) -> BoxFuture<'a, Result<Arc<dyn Store>, Error>> {
        Box::pin(async move { Ok(Arc::new(EtcdStore::open(rest).await?) as Arc<dyn Store>) })
    }
}
