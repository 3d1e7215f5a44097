//! What serves now, and a ring of what changed lately. Pure.

mod losses;
#[cfg(test)]
mod properties;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
};

use bytes::Bytes;
use prost::Message as _;
use tether_proto::{
    common::{Endpoint, WorkerRef},
    discovery::{EndpointRemoval, NodeLoss, WatchEndpointsResponse},
};
use tether_store::{Change, Entry, keys::ServeKey};
use tether_types::{PoolName, Slot};

use losses::Losses;

type Place = (PoolName, Slot);

/// The ring may hold so many times what is in the table before the oldest changes are forgotten: who missed more than
/// that is told less by a fresh snapshot.
const RING_OF_TABLE: usize = 4;

/// The table; its revision counts its own changes and means nothing to another instance.
#[derive(Debug)]
pub(crate) struct Table {
    /// Pools with a source of their own, which the store has no say in.
    configured: BTreeSet<PoolName>,
    /// Of these, those whose sources have said nothing yet.
    unheard: BTreeSet<PoolName>,
    pools: BTreeSet<PoolName>,
    endpoints: BTreeMap<Place, Endpoint>,
    losses: Losses,
    revision: u64,
    ring: VecDeque<Changed>,
    /// What all changes in the ring tell together.
    told: usize,
    limit: usize,
    /// The oldest revision from which the ring leads to the present.
    oldest: u64,
}

/// One change of the table.
#[derive(Debug, Default)]
struct Changed {
    revision: u64,
    upserts: Vec<Endpoint>,
    removals: Vec<EndpointRemoval>,
    pools: Vec<PoolName>,
    removed_pools: Vec<PoolName>,
    /// Pools whose sources have said for the first time who serves.
    heard: Vec<PoolName>,
}

/// What a commit, a listing or a source says, before it is compared with what is known.
#[derive(Default)]
struct Facts {
    endpoints: BTreeMap<Place, Option<Endpoint>>,
    deaths: BTreeMap<Place, EndpointRemoval>,
    losses: BTreeMap<String, Option<NodeLoss>>,
    pools: BTreeMap<PoolName, bool>,
    heard: Option<PoolName>,
}

impl Table {
    pub(crate) fn new(configured: BTreeSet<PoolName>, limit: usize) -> Self {
        Self {
            pools: configured.clone(),
            unheard: configured.clone(),
            configured,
            endpoints: BTreeMap::new(),
            losses: Losses::default(),
            // 0 is how a watcher says that it has seen nothing.
            revision: 1,
            ring: VecDeque::new(),
            told: 0,
            limit,
            oldest: 1,
        }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes in one commit of the store.
    pub(crate) fn commit(&mut self, changes: Vec<Change>) {
        let mut facts = Facts::default();
        for change in changes {
            self.read(&mut facts, &change.key, change.value.as_ref());
        }
        self.apply(facts);
    }

    /// Takes in the whole of the store: what it does not list is gone.
    pub(crate) fn reload(&mut self, entries: Vec<Entry>) {
        let mut facts = Facts::default();
        for place in self.endpoints.keys().chain(self.losses.hidden_places()) {
            if !self.configured.contains(&place.0) {
                facts.endpoints.insert(place.clone(), None);
            }
        }
        for pool in self.pools.difference(&self.configured) {
            facts.pools.insert(pool.clone(), false);
        }
        for node in self.losses.nodes() {
            facts.losses.insert(node.clone(), None);
        }
        for entry in entries {
            self.read(&mut facts, &entry.key, Some(&entry.value));
        }
        self.apply(facts);
    }

    /// Takes in all endpoints of a configured pool.
    pub(crate) fn source(&mut self, pool: &PoolName, endpoints: Vec<Endpoint>) {
        let mut facts = Facts {
            heard: self.unheard.take(pool),
            ..Facts::default()
        };
        for (place, _) in self.endpoints.range(places_of(pool)) {
            facts.endpoints.insert(place.clone(), None);
        }
        for endpoint in endpoints {
            if let Some(worker) = &endpoint.worker {
                let place = (pool.clone(), worker.slot);
                facts.endpoints.insert(place, Some(endpoint));
            }
        }
        self.apply(facts);
    }

    /// Reads one key. What is not understood is left out: one bad entry must not hide the others.
    fn read(&self, facts: &mut Facts, key: &str, value: Option<&Bytes>) {
        let Some(parsed) = ServeKey::parse(key) else {
            tracing::warn!(key, "A key under `serve/` is not understood");
            return;
        };
        let pool = match &parsed {
            ServeKey::Pool(pool) | ServeKey::Endpoint(pool, _) | ServeKey::Death(pool, _) => {
                Some(pool)
            }
            ServeKey::Loss(_) => None,
        };
        if pool.is_some_and(|pool| self.configured.contains(pool)) {
            tracing::warn!(
                key,
                "The pool has a configured source, the store's entry is ignored"
            );
            return;
        }
        let understood = match parsed {
            ServeKey::Pool(pool) => {
                facts.pools.insert(pool, value.is_some());
                true
            }
            ServeKey::Endpoint(pool, slot) => {
                match value.map(|value| Endpoint::decode(value.as_ref())) {
                    None => {
                        facts.endpoints.insert((pool, slot), None);
                        true
                    }
                    Some(Ok(endpoint)) if names(endpoint.worker.as_ref(), &pool, slot) => {
                        facts.endpoints.insert((pool, slot), Some(endpoint));
                        true
                    }
                    Some(_) => false,
                }
            }
            ServeKey::Death(pool, slot) => {
                match value.map(|value| EndpointRemoval::decode(value.as_ref())) {
                    None => true,
                    Some(Ok(death)) if names(death.worker.as_ref(), &pool, slot) => {
                        facts.deaths.insert((pool, slot), death);
                        true
                    }
                    Some(_) => false,
                }
            }
            ServeKey::Loss(node) => {
                let loss = value
                    .map(|value| NodeLoss::decode(value.as_ref()))
                    .transpose();
                let understood = loss.is_ok();
                facts
                    .losses
                    .extend(loss.map(|loss| (node.to_string(), loss)));
                understood
            }
        };
        if !understood {
            tracing::warn!(key, "An entry does not describe what its key names");
        }
    }

    /// Compares facts with what is known; what differs is one change with one revision.
    fn apply(&mut self, mut facts: Facts) {
        let mut changed = Changed::default();
        for (node, loss) in std::mem::take(&mut facts.losses) {
            for place in self.losses.change(&node, loss) {
                // As the store has it, whatever a loss made of it up to now.
                let written = self.endpoints.get(&place);
                let written = written.or_else(|| self.losses.hidden(&place)).cloned();
                facts.endpoints.entry(place).or_insert(written);
            }
        }
        for (place, written) in facts.endpoints {
            let known = self.endpoints.get(&place);
            let new = self.losses.show(&place, known, written);
            let old = match &new {
                Some(new) => self.endpoints.insert(place.clone(), new.clone()),
                None => self.endpoints.remove(&place),
            };
            if old == new {
                continue;
            }
            let lost = old.as_ref().and_then(|old| self.losses.death(old));
            let gone = old.and_then(|old| old.worker);
            let incarnation = |worker: &WorkerRef| worker.incarnation;
            let lives_on = new
                .as_ref()
                .and_then(|new| new.worker.as_ref())
                .map(incarnation);
            if let Some(gone) = gone.filter(|gone| Some(gone.incarnation) != lives_on) {
                // The death on record may be that of an earlier or later incarnation.
                let died = facts.deaths.get(&place);
                let death = died.filter(|died| died.worker.as_ref() == Some(&gone));
                changed.removals.push(EndpointRemoval {
                    death: death.and_then(|died| died.death.clone()).or(lost),
                    worker: Some(gone),
                });
            }
            changed.upserts.extend(new);
        }
        for (pool, exists) in facts.pools {
            if exists && self.pools.insert(pool.clone()) {
                changed.pools.push(pool);
            } else if !exists && self.pools.remove(&pool) {
                changed.removed_pools.push(pool);
            }
        }
        changed.heard.extend(facts.heard);
        if !changed.is_empty() {
            self.revision += 1;
            changed.revision = self.revision;
            self.told += changed.len();
            self.ring.push_back(changed);
            self.forget();
        }
    }

    /// Forgets the oldest changes where there are too many, or they tell too much; the newest only where there may be none.
    fn forget(&mut self) {
        let most = self.limit.max(RING_OF_TABLE * self.endpoints.len());
        while self.ring.len() > self.limit || (self.ring.len() > 1 && self.told > most) {
            let Some(forgotten) = self.ring.pop_front() else {
                return;
            };
            self.told -= forgotten.len();
            self.oldest = forgotten.revision;
        }
    }

    /// The pools that have this name, for whoever does not tell letters of either case apart.
    pub(crate) fn pools_like(&self, name: &str) -> Vec<&PoolName> {
        let pools = self.pools.iter();
        let like = |pool: &&PoolName| pool.as_str().eq_ignore_ascii_case(name);
        pools.filter(like).collect()
    }

    /// Whether nobody has said yet who serves a pool.
    pub(crate) fn is_unheard(&self, pool: &PoolName) -> bool {
        self.unheard.contains(pool)
    }

    /// What serves a pool.
    pub(crate) fn endpoints_of(&self, pool: &PoolName) -> impl Iterator<Item = &Endpoint> {
        let places = self.endpoints.range(places_of(pool));
        places.map(|(_, endpoint)| endpoint)
    }

    /// What a watcher that knows everything up to `after` is told next, and what it knows then. Where
    /// `after` is nothing, or nothing the ring still leads on from, that is a snapshot.
    pub(crate) fn next(
        &self,
        pool: Option<&PoolName>,
        after: Option<u64>,
    ) -> (Option<WatchEndpointsResponse>, u64) {
        let known = after.filter(|after| (self.oldest..=self.revision).contains(after));
        let Some(after) = known else {
            return (Some(self.snapshot(pool)), self.revision);
        };
        let start = self.ring.partition_point(|change| change.revision <= after);
        let told = self
            .ring
            .range(start..)
            .find_map(|change| change.message(pool));
        let upto = told.as_ref().map_or(self.revision, |told| told.revision);
        (told, upto)
    }

    fn snapshot(&self, pool: Option<&PoolName>) -> WatchEndpointsResponse {
        let wanted = |name: &PoolName| pool.is_none_or(|pool| pool == name);
        let serving = self.endpoints.iter().filter(|(place, _)| wanted(&place.0));
        let pools = self.pools.iter().filter(|pool| wanted(pool));
        let unheard = self.unheard.iter().filter(|pool| wanted(pool));
        WatchEndpointsResponse {
            revision: self.revision,
            snapshot: true,
            upserts: serving.map(|(_, endpoint)| endpoint.clone()).collect(),
            pools: pools.map(PoolName::to_string).collect(),
            unheard_pools: unheard.map(PoolName::to_string).collect(),
            ..WatchEndpointsResponse::default()
        }
    }
}

impl Changed {
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How much it tells.
    fn len(&self) -> usize {
        self.upserts.len()
            + self.removals.len()
            + self.pools.len()
            + self.removed_pools.len()
            + self.heard.len()
    }

    /// The part that concerns `pool`, if any.
    fn message(&self, pool: Option<&PoolName>) -> Option<WatchEndpointsResponse> {
        let wanted = |name: &str| pool.is_none_or(|pool| pool.as_str() == name);
        let of = |worker: &Option<WorkerRef>| worker.as_ref().is_some_and(|w| wanted(&w.pool));
        let names = |pools: &[PoolName]| -> Vec<String> {
            let names = pools.iter().map(PoolName::to_string);
            names.filter(|name| wanted(name)).collect()
        };
        let upserts = self.upserts.iter().filter(|upsert| of(&upsert.worker));
        let removals = self.removals.iter().filter(|removal| of(&removal.worker));
        let message = WatchEndpointsResponse {
            revision: self.revision,
            upserts: upserts.cloned().collect(),
            removals: removals.cloned().collect(),
            pools: names(&self.pools),
            removed_pools: names(&self.removed_pools),
            heard_pools: names(&self.heard),
            ..WatchEndpointsResponse::default()
        };
        let nothing = message.upserts.is_empty()
            && message.removals.is_empty()
            && message.pools.is_empty()
            && message.removed_pools.is_empty()
            && message.heard_pools.is_empty();
        (!nothing).then_some(message)
    }
}

/// Every place that a pool may have.
fn places_of(pool: &PoolName) -> RangeInclusive<Place> {
    (pool.clone(), Slot::MIN)..=(pool.clone(), Slot::MAX)
}

/// Whether a message is about the slot its key names, and about a certain incarnation.
fn names(worker: Option<&WorkerRef>, pool: &PoolName, slot: Slot) -> bool {
    worker.is_some_and(|worker| {
        worker.pool == pool.as_str() && worker.slot == slot && worker.incarnation > 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_changes_are_forgotten_before_there_are_many() {
        let pool = PoolName::new("train").unwrap();
        let mut table = Table::new(BTreeSet::from([pool.clone()]), 64);
        let serving = |slots: std::ops::Range<Slot>| {
            let endpoint = |slot| Endpoint {
                worker: Some(WorkerRef {
                    pool: "train".to_owned(),
                    slot,
                    incarnation: 1,
                }),
                ..Endpoint::default()
            };
            slots.map(endpoint).collect()
        };
        for _ in 0..10 {
            table.source(&pool, serving(0..500));
            table.source(&pool, serving(500..1_000));
        }
        assert!(table.told <= 4 * 500, "{}", table.told);
        let now = table.revision();
        let is_snapshot = |table: &Table, after| table.next(None, Some(after)).0.unwrap().snapshot;
        assert!(!is_snapshot(&table, now - 1), "the last one is there");
        assert!(is_snapshot(&table, now - 5));

        // Also one that alone tells more than the table now has room for.
        table.source(&pool, Vec::new());
        let (message, _) = table.next(None, Some(now));
        assert_eq!(message.unwrap().removals.len(), 500);
    }
}
