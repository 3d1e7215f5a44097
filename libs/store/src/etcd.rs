//! `etcd://host:2379,host2:2379/prefix/`, a store that many machines share.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, KeyValue, TxnOp,
    TxnOpResponse, WatchOptions, WatchResponse, WatchStream,
};
use futures::{StreamExt as _, future::BoxFuture, stream};
use tether_types::Address;

use crate::{
    Batch, Change, Changes, Entry, Error, Expect, Guard, Listing, Revision, Scheme, Store, Txn,
    Write,
};

/// Where our keys are unless the URL says otherwise.
const PREFIX: &str = "/tether/v1/";
/// etcd cuts a connection that pings more often than every 5 s, so 6 s is the fastest safe rate.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An etcd that elects a leader answers within this time; one that does not is not available.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A store in an etcd cluster, under a prefix of its own.
#[derive(Clone)]
pub struct EtcdStore {
    client: Client,
    endpoints: String,
    prefix: String,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EtcdStore({}{})", self.endpoints, self.prefix)
    }
}

impl EtcdStore {
    /// A store on the cluster whose members are `endpoints` (`host:port`), under `prefix`. Nothing is
    /// asked of etcd yet.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no connection can even be prepared.
    pub async fn new(endpoints: &[String], prefix: &str) -> Result<Self, Error> {
        let options = ConnectOptions::new()
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(CONNECT_TIMEOUT)
            // A member cut off from the others says so within seconds; without this it stays silent.
            .with_require_leader(true);
        let named = endpoints.join(",");
        let client = Client::connect(endpoints, Some(options))
            .await
            .map_err(|error| Error::unavailable(&named, error))?;
        Ok(Self {
            client,
            endpoints: named,
            prefix: prefix.to_owned(),
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The entry in our words; `None` for a key that is not text, which we never write.
    fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        Some(Entry {
            key: kv.key_str().ok()?.strip_prefix(&self.prefix)?.to_owned(),
            value: Bytes::copy_from_slice(kv.value()),
            mod_revision: revision(kv.mod_revision()),
        })
    }

    /// Bounds one call: a connection to a machine that vanished answers nothing at all.
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(answer) => answer.map_err(|error| self.unavailable(error)),
            Err(_) => Err(self.unavailable(format!("no answer within {CALL_TIMEOUT:?}"))),
        }
    }

    fn unavailable(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::unavailable(format!("etcd://{}", self.endpoints), source)
    }
}

/// etcd counts from 1 in a signed number.
fn revision(signed: i64) -> Revision {
    u64::try_from(signed).unwrap_or(0)
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let answer = self
            .call(self.client.kv_client().get(self.key(key), None))
            .await?;
        Ok(answer.kvs().first().and_then(|kv| self.entry(kv)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        let options = GetOptions::new().with_prefix();
        let answer = self
            .call(self.client.kv_client().get(self.key(prefix), Some(options)))
            .await?;
        Ok(Listing {
            entries: answer
                .kvs()
                .iter()
                .filter_map(|kv| self.entry(kv))
                .collect(),
            revision: revision(answer.header().map_or(0, |header| header.revision())),
        })
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, Error> {
        txn.check()?;
        let compares: Vec<Compare> = txn
            .guards
            .iter()
            .map(|guard| match guard.expect {
                Expect::Absent => {
                    Compare::create_revision(self.key(&guard.key), CompareOp::Equal, 0)
                }
                Expect::Revision(at) => {
                    Compare::mod_revision(self.key(&guard.key), CompareOp::Equal, signed(at))
                }
            })
            .collect();
        let writes: Vec<TxnOp> = txn
            .writes
            .iter()
            .map(|write| match write {
                Write::Put { key, value } => TxnOp::put(self.key(key), value.as_ref(), None),
                Write::Delete { key } => TxnOp::delete(self.key(key), None),
            })
            .collect();
        // Where a guard fails, the same transaction reads the guarded keys, to name the one at fault.
        let reads: Vec<TxnOp> = txn
            .guards
            .iter()
            .map(|guard| TxnOp::get(self.key(&guard.key), None))
            .collect();
        let request = etcd_client::Txn::new()
            .when(compares)
            .and_then(writes)
            .or_else(reads);

        let answer = self.call(self.client.kv_client().txn(request)).await?;
        if answer.succeeded() {
            return Ok(revision(
                answer.header().map_or(0, |header| header.revision()),
            ));
        }
        Err(Error::Conflict {
            key: first_failed(&txn.guards, &answer.op_responses()),
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Changes {
        let start = Position::Unopened(Box::new(self.clone()), prefix.to_owned(), after);
        stream::unfold(start, |position| async {
            let mut watch = match position {
                Position::Ended => return None,
                Position::Open(watch) => watch,
                Position::Unopened(store, prefix, after) => {
                    match Watch::open(*store, &prefix, after).await {
                        Ok(watch) => Box::new(watch),
                        Err(error) => return Some((Err(error), Position::Ended)),
                    }
                }
            };
            match watch.next().await {
                Ok(batch) => Some((Ok(batch), Position::Open(watch))),
                Err(error) => Some((Err(error), Position::Ended)),
            }
        })
        .boxed()
    }
}

fn first_failed(guards: &[Guard], found: &[TxnOpResponse]) -> String {
    let current = found.iter().map(|response| match response {
        TxnOpResponse::Get(get) => get.kvs().first().map(|kv| revision(kv.mod_revision())),
        _ => None,
    });
    let failed = guards
        .iter()
        .zip(current)
        .find(|(guard, now)| !guard.expect.holds(*now));
    failed.map_or_else(String::new, |(guard, _)| guard.key.clone())
}

/// Where the stream of one watcher stands.
enum Position {
    Unopened(Box<EtcdStore>, String, Revision),
    Open(Box<Watch>),
    Ended,
}

/// One watch on one connection. etcd's progress notifications are not used: releases before 3.4.25 and
/// 3.5.8 may send one ahead of events it claims to include, which would make a gap. A watcher that was
/// quiet for so long that its revision is compacted lists again.
struct Watch {
    store: EtcdStore,
    stream: WatchStream,
    after: Revision,
    /// Commits that came in one response and are not told yet.
    ready: VecDeque<Batch>,
}

impl Watch {
    async fn open(store: EtcdStore, prefix: &str, after: Revision) -> Result<Self, Error> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(signed(after.saturating_add(1)));
        let stream = store
            .call(
                store
                    .client
                    .watch_client()
                    .watch(store.key(prefix), Some(options)),
            )
            .await?;
        Ok(Self {
            store,
            stream,
            after,
            ready: VecDeque::new(),
        })
    }

    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                self.after = batch.revision;
                return Ok(batch);
            }
            let response = match self.stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(self.store.unavailable("etcd ended the watch")),
                Err(error) => return Err(self.store.unavailable(error)),
            };
            self.read(&response).await?;
        }
    }

    async fn read(&mut self, response: &WatchResponse) -> Result<(), Error> {
        if response.compact_revision() > 0 {
            // Events of the compacted revision itself are kept, so one may watch after the one before.
            return Err(Error::Compacted {
                oldest: revision(response.compact_revision() - 1),
            });
        }
        if response.canceled() {
            return Err(self.store.unavailable(response.cancel_reason()));
        }
        let now = revision(response.header().map_or(0, |header| header.revision()));
        if response.created() && now < self.after {
            // A member that lags behind, or a cluster restored from a backup: only a read through
            // the leader can tell.
            let latest = self.store.list("\0").await?.revision;
            if latest < self.after {
                return Err(Error::Compacted { oldest: latest });
            }
        }
        // One response may hold several commits; one commit is never split over responses.
        for event in response.events() {
            let Some(entry) = event.kv().and_then(|kv| self.store.entry(kv)) else {
                continue;
            };
            let change = Change {
                key: entry.key,
                value: (event.event_type() == EventType::Put).then_some(entry.value),
            };
            match self.ready.back_mut() {
                Some(batch) if batch.revision == entry.mod_revision => batch.changes.push(change),
                _ => self.ready.push_back(Batch {
                    revision: entry.mod_revision,
                    changes: vec![change],
                }),
            }
        }
        for batch in &mut self.ready {
            batch.changes.sort_by(|a, b| a.key.cmp(&b.key));
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Etcd;

impl Etcd {
    /// Splits `//host:port,host:port/prefix/` into members and prefix.
    fn parse(rest: &str) -> Result<(Vec<String>, String), String> {
        let rest = rest
            .strip_prefix("//")
            .ok_or("`//` and the members follow `etcd:`")?;
        let (members, path) = rest.split_once('/').unwrap_or((rest, ""));
        let members: Result<Vec<String>, String> = members
            .split(',')
            .map(|member| match member.parse::<Address>() {
                Ok(Address::Tcp { .. }) => Ok(member.to_owned()),
                Ok(Address::Unix(_)) => Err("etcd is reached by `host:port`".to_owned()),
                Err(error) => Err(error.to_string()),
            })
            .collect();
        let prefix = match path.trim_matches('/') {
            "" => PREFIX.to_owned(),
            path => format!("/{path}/"),
        };
        Ok((members?, prefix))
    }
}

impl Scheme for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn usage(&self) -> &'static str {
        "etcd://host:2379,host2:2379"
    }

    fn open<'a>(&self, rest: &'a str) -> BoxFuture<'a, Result<Arc<dyn Store>, Error>> {
        Box::pin(async move {
            let (members, prefix) = Self::parse(rest).map_err(|why| Error::Url {
                given: format!("etcd:{rest}"),
                why,
            })?;
            let store = EtcdStore::new(&members, &prefix).await?;
            Ok(Arc::new(store) as Arc<dyn Store>)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_members_and_optionally_a_prefix() {
        let (members, prefix) = Etcd::parse("//a:2379,[::1]:2379").unwrap();
        assert_eq!((members.len(), prefix.as_str()), (2, PREFIX));

        let (_, prefix) = Etcd::parse("//a:2379/team/one").unwrap();
        assert_eq!(prefix, "/team/one/");

        for bad in ["a:2379", "//", "//a", "//a:2379,", "//unix:/a"] {
            assert!(Etcd::parse(bad).is_err(), "{bad}");
        }
    }
}
