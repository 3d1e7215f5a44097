//! `etcd://10.0.0.1:2379,10.0.0.2:2379/services/embed/`: keys in etcd that somebody else writes, one for each address.
//!
//! The value of a key is a bare address or an object of JSON (see `entry.rs`); a key that was deleted and written again
//! is another worker. With `pool=NAME` the keys are those of another cluster of Tether, under the prefix it has.
//!
//! One listing, then every commit after it; where etcd has forgotten what comes next, another listing. Members that are
//! lost are `tether-store`'s to deal with, and so is how to be let in: `ca`, `cert`, `key`, `user`, `password_file`,
//! `password_env` and `allow_old` are the parameters of a store in etcd.

mod keys;

use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use tether_store::{DatedBatch, Error, EtcdStore, Revision, Store as _};
use tether_types::PoolName;

use self::keys::{Foreign, Keys, Native};
use super::{
    Answer, Backend, Options, TARGETS_MAX, Watch,
    again::{Ask, and_again},
    target,
};

/// A listing of as many addresses as an answer may have is smaller.
const LISTING_MAX: usize = 32 << 20;

/// What a store in etcd takes too, and in the same way.
const PARAMETERS: [&str; 7] = [
    "ca",
    "cert",
    "key",
    "user",
    "password_file",
    "password_env",
    "allow_old",
];

#[derive(Debug)]
pub(super) struct Etcd;

impl Backend for Etcd {
    fn scheme(&self) -> &'static str {
        "etcd"
    }

    fn usage(&self) -> &'static str {
        "etcd://10.0.0.1:2379,10.0.0.2:2379/services/embed/"
    }

    fn watch(&self, place: &str, options: &mut Options) -> Result<Watch, String> {
        let pool = options.text("pool").map(PoolName::new).transpose();
        let pool = pool.map_err(|error| error.to_string())?;
        let (members, prefix) = place.split_once('/').unwrap_or((place, ""));
        if pool.is_none() && prefix.trim_matches('/').is_empty() {
            return Err(
                "the prefix of the keys is missing, or `pool=NAME` for a pool of another cluster of Tether".to_owned(),
            );
        }
        let given = PARAMETERS
            .iter()
            .filter_map(|name| Some(format!("{name}={}", options.text(name)?)));
        let given: Vec<_> = given.collect();
        let rest = match given.as_slice() {
            [] => format!("//{place}"),
            given => format!("//{place}?{}", given.join("&")),
        };
        tether_store::check(&format!("etcd:{rest}")).map_err(|error| match error {
            Error::Url { why, .. } => why,
            other => other.in_full(),
        })?;
        members
            .split(',')
            .try_for_each(|member| target(member).map(drop))?;
        let name = match &pool {
            Some(pool) => format!("`etcd://{place}`, pool `{pool}`"),
            None => format!("`etcd://{place}`"),
        };
        Ok(and_again(Followed {
            name,
            rest,
            pool,
            store: None,
            session: None,
        }))
    }
}

struct Followed {
    name: String,
    /// What a store is opened with.
    rest: String,
    /// Whose keys they are, where they are Tether's.
    pool: Option<PoolName>,
    store: Option<EtcdStore>,
    session: Option<Session>,
}

/// What is known, and from where it goes on.
struct Session {
    keys: Box<dyn Keys>,
    seen: Revision,
    /// None after an error.
    changes: Option<BoxStream<'static, Result<DatedBatch, Error>>>,
}

impl Ask for Followed {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn next(&mut self) -> Result<Answer, String> {
        if self.store.is_none() {
            let store = EtcdStore::open(&self.rest).await;
            self.store = Some(store.map_err(|error| error.in_full())?);
        }
        loop {
            match self.follow().await {
                Ok(answer) => return answer.inspect_err(|_| self.session = None),
                // Nothing is wrong: it is listed again.
                Err(Error::Compacted { .. }) if self.session.is_some() => self.session = None,
                Err(error) => {
                    if let Some(session) = &mut self.session {
                        session.changes = None;
                    }
                    return Err(error.in_full());
                }
            }
        }
    }
}

impl Followed {
    async fn follow(&mut self) -> Result<Result<Answer, String>, Error> {
        let Some(store) = &self.store else {
            return Ok(Err("it was not opened".to_owned()));
        };
        let Some(session) = &mut self.session else {
            return match list(store, self.pool.as_ref()).await? {
                Ok(session) => Ok(self.session.insert(session).keys.answer()),
                Err(why) => Ok(Err(why)),
            };
        };
        let Some(changes) = &mut session.changes else {
            // A watch alone does not tell whether etcd is there again.
            store.get("").await?;
            let changes = store.watch_dated(session.keys.prefix(), session.seen);
            session.changes = Some(changes);
            return Ok(session.keys.answer());
        };
        let mut batch = changes.next().await;
        // What has come meanwhile is one answer.
        loop {
            match batch {
                Some(batch) => {
                    let batch = batch?;
                    session.seen = batch.revision;
                    session.keys.change(batch);
                }
                None => {
                    return Err(Error::Unavailable {
                        what: "watch".to_owned(),
                        source: "it ended without a reason".into(),
                    });
                }
            }
            match changes.next().now_or_never() {
                Some(more) => batch = more,
                None => return Ok(session.keys.answer()),
            }
        }
    }
}

/// Lists what there is. Too much of it is no answer.
async fn list(
    store: &EtcdStore,
    pool: Option<&PoolName>,
) -> Result<Result<Session, String>, Error> {
    let mut keys: Box<dyn Keys> = match pool {
        Some(pool) => Box::new(Native::new(pool)),
        None => Box::new(Foreign::default()),
    };
    let mut seen = Revision::MAX;
    for prefix in keys.listed() {
        let listing = store
            .list_dated(&prefix, TARGETS_MAX + 1, LISTING_MAX)
            .await?;
        if listing.entries.len() > TARGETS_MAX {
            return Ok(Err(format!(
                "there are more than {TARGETS_MAX} keys under `{prefix}` there, which is taken for a mistake"
            )));
        }
        // Of several listings, what comes after the first is told.
        seen = seen.min(listing.revision);
        keys.take(listing);
    }
    let changes = Some(store.watch_dated(keys.prefix(), seen));
    Ok(Ok(Session {
        keys,
        seen,
        changes,
    }))
}
