//! What there is: the pools, each as its four resources.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
};

use serde::{Deserialize, Serialize};
use tether_proto::{common::Endpoint, discovery::WatchEndpointsResponse};

use crate::{Kind, assignment::assignment, describe, resource::Resource};

/// How a client picks among the endpoints of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Of two, the one with fewer calls under way. Envoy can, and gRPC in C++, Python and Ruby refuses it.
    LeastRequest,
}

/// All pools, as one watcher of discovery knows them.
#[derive(Debug)]
pub struct Catalog {
    balance: Balance,
    pools: BTreeMap<String, Pool>,
    /// Pools of which nobody has said yet who serves them. Their endpoints are not told, not even that there are none: a
    /// client that knows some would give them up for the time it takes to ask a source.
    unheard: BTreeSet<String>,
    revision: u64,
}

/// One pool. Its resources are encoded when the first stream wants them, and kept for the others.
#[derive(Debug, Default)]
struct Pool {
    /// Whether it was named, rather than only an endpoint of it.
    named: bool,
    endpoints: BTreeMap<u32, Endpoint>,
    resources: [OnceCell<Resource>; Kind::ALL.len()],
}

impl Catalog {
    /// A catalog without pools, which is not to be told before the first [`take`](Self::take).
    pub fn new(balance: Balance) -> Self {
        Self {
            balance,
            pools: BTreeMap::new(),
            unheard: BTreeSet::new(),
            revision: 0,
        }
    }

    /// Counts its changes; 0 before it knows anything.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The pools that there are.
    pub fn pools(&self) -> impl Iterator<Item = &str> {
        self.pools.keys().map(String::as_str)
    }

    /// Takes in what discovery tells; says whether that is news.
    pub fn take(&mut self, message: WatchEndpointsResponse) -> bool {
        let mut news = message.snapshot && self.revision == 0;
        let before = match message.snapshot {
            true => std::mem::take(&mut self.pools),
            false => BTreeMap::new(),
        };
        if message.snapshot {
            let unheard = message.unheard_pools.into_iter().collect();
            news |= self.unheard != unheard;
            self.unheard = unheard;
        }
        for pool in message.heard_pools {
            news |= self.unheard.remove(&pool);
        }
        for pool in message.pools {
            let pool = self.pools.entry(pool).or_default();
            news |= !std::mem::replace(&mut pool.named, true);
        }
        for removal in message.removals {
            let Some(worker) = removal.worker else {
                continue;
            };
            if let Some(pool) = self.pools.get_mut(&worker.pool) {
                news |= pool.remove(worker.slot, worker.incarnation);
            }
        }
        for endpoint in message.upserts {
            let Some(worker) = &endpoint.worker else {
                continue;
            };
            let pool = self.pools.entry(worker.pool.clone()).or_default();
            news |= pool.insert(worker.slot, endpoint);
        }
        for pool in message.removed_pools {
            if let Some(pool) = self.pools.get_mut(&pool) {
                news |= std::mem::take(&mut pool.named);
            }
        }
        self.pools
            .retain(|_, pool| pool.named || !pool.endpoints.is_empty());
        // What was encoded of a pool that is as it was is still true.
        for (name, old) in before {
            match self.pools.get_mut(&name) {
                Some(new) if new.endpoints == old.endpoints => new.resources = old.resources,
                Some(_) | None => {}
            }
        }
        self.revision += u64::from(news);
        news
    }

    /// Whether nothing is to be said of this, not even that there is none.
    pub(crate) fn withholds(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Endpoints && self.unheard.contains(name)
    }

    /// The resource of this name, if there is one to be told.
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<&Resource> {
        if self.withholds(kind, name) {
            return None;
        }
        let pool = self.pools.get(name)?;
        Some(pool.resources[kind.index()].get_or_init(|| match kind {
            Kind::Cluster => describe::cluster(name, self.balance),
            Kind::Endpoints => assignment(name, pool.endpoints.values()),
            Kind::Listener => describe::listener(name),
            Kind::Route => describe::route(name),
        }))
    }
}

impl Pool {
    fn insert(&mut self, slot: u32, endpoint: Endpoint) -> bool {
        if self.endpoints.get(&slot) == Some(&endpoint) {
            return false;
        }
        self.endpoints.insert(slot, endpoint);
        self.resources[Kind::Endpoints.index()].take();
        true
    }

    fn remove(&mut self, slot: u32, incarnation: u64) -> bool {
        let known = self.endpoints.get(&slot).and_then(|e| e.worker.as_ref());
        if known.is_none_or(|worker| worker.incarnation != incarnation) {
            return false;
        }
        self.endpoints.remove(&slot);
        self.resources[Kind::Endpoints.index()].take();
        true
    }
}
