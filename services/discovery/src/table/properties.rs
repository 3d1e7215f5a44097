//! D1, D2 and D7 under random commits, reloads, answers of sources and a short ring.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    collection::{btree_map, vec},
    prelude::*,
};
use prost::Message as _;
use tether_proto::{
    common::{Death, Endpoint, WorkerRef},
    discovery::{EndpointRemoval, NodeLoss, WatchEndpointsResponse},
};
use tether_store::{Change, Entry, keys};
use tether_types::{NodeName, PoolName};

use super::Table;

/// What a commit does to one slot.
#[derive(Debug, Clone, Copy)]
enum Act {
    Start,
    Drain,
    Die,
    Leave,
    /// The node is lost with all that it has.
    Lose,
    /// It is back in time.
    Return,
}

/// What happens at once.
#[derive(Debug, Clone)]
enum Step {
    /// The arbiter writes, in places of these pools.
    Commit(Vec<(usize, u32, Act)>),
    /// The store is read as a whole.
    Reload,
    /// The source of the configured pool names these slots, with an incarnation each.
    Source(BTreeMap<u32, u64>),
}

/// Pools, in order; the one in the middle has a source of its own, and whatever the arbiter writes of it is ignored.
const POOLS: [&str; 3] = ["a", "b", "c"];
const CONFIGURED: &str = POOLS[1];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let act = prop_oneof![
        3 => Just(Act::Start),
        1 => Just(Act::Drain),
        2 => Just(Act::Die),
        1 => Just(Act::Leave),
        1 => Just(Act::Lose),
        1 => Just(Act::Return)
    ];
    let commit = vec((0..POOLS.len(), 0..3u32, act), 1..4);
    let step = prop_oneof![
        12 => commit.prop_map(Step::Commit),
        1 => Just(Step::Reload),
        4 => btree_map(0..3u32, 1..3u64, 0..4).prop_map(Step::Source)
    ];
    vec(step, 1..40)
}

/// Each slot is always on the same one.
fn node_of(slot: u32) -> NodeName {
    NodeName::new(format!("n{}", slot % 2)).unwrap()
}

type Places = BTreeMap<(String, u32), Endpoint>;

/// What a watcher knows.
#[derive(Debug, Clone, Default, PartialEq)]
struct Copy {
    places: Places,
    /// Pools of which nobody has said yet who serves them.
    unheard: BTreeSet<String>,
}

impl Copy {
    /// What a watcher of one pool knows of all that, or of all pools.
    fn only(&self, pool: Option<&PoolName>) -> Self {
        let mut only = self.clone();
        let wanted = |name: &str| pool.is_none_or(|pool| pool.as_str() == name);
        only.places.retain(|(name, _), _| wanted(name));
        only.unheard.retain(|name| wanted(name));
        only
    }
}

/// What the arbiter has written, and the changes of the commit at hand.
#[derive(Default)]
struct Arbiter {
    serving: Places,
    incarnation: u64,
    /// Endpoints that are in the store and over, and what says so.
    left: Places,
    losses: BTreeMap<String, NodeLoss>,
}

impl Arbiter {
    /// One commit, and whose death it records. It writes a key once, and not of places of a node that it loses.
    fn commit(
        &mut self,
        pools: &[PoolName],
        acts: Vec<(usize, u32, Act)>,
    ) -> (Vec<Change>, BTreeSet<(String, u32)>) {
        let mut changes: BTreeMap<String, Change> = BTreeMap::new();
        let mut touched = BTreeSet::new();
        let (mut died, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for (pool, slot, act) in acts {
            let calm = !lost.contains(&node_of(slot));
            let first = !touched
                .iter()
                .any(|(_, other)| node_of(*other) == node_of(slot));
            let whole = matches!(act, Act::Lose | Act::Return);
            let fits = if whole { first && calm } else { calm };
            if fits && touched.insert((pool, slot)) {
                if whole {
                    lost.insert(node_of(slot));
                }
                let made = self.act(&pools[pool], slot, act);
                if matches!(act, Act::Die) {
                    died.insert((pools[pool].to_string(), slot));
                }
                changes.extend(made.into_iter().map(|change| (change.key.clone(), change)));
            }
        }
        (changes.into_values().collect(), died)
    }

    /// All that is in the store.
    fn entries(&self) -> Vec<Entry> {
        let entry = |((pool, slot), endpoint): (&(String, u32), &Endpoint)| Entry {
            key: keys::endpoint(&PoolName::new(pool).unwrap(), *slot),
            value: endpoint.encode_to_vec().into(),
            mod_revision: 1,
        };
        let loss = |(node, loss): (&String, &NodeLoss)| Entry {
            key: keys::loss(&NodeName::new(node).unwrap()),
            value: loss.encode_to_vec().into(),
            mod_revision: 1,
        };
        let entries = self.serving.iter().chain(&self.left).map(entry);
        entries.chain(self.losses.iter().map(loss)).collect()
    }

    fn act(&mut self, pool: &PoolName, slot: u32, act: Act) -> Vec<Change> {
        let place = (pool.to_string(), slot);
        let key = keys::endpoint(pool, slot);
        let put = |key, value: Vec<u8>| Change {
            key,
            value: Some(value.into()),
        };
        let old = self.serving.get(&place).cloned();
        match (act, old) {
            (Act::Start, _) => {
                self.incarnation += 1;
                let worker = WorkerRef {
                    pool: pool.to_string(),
                    slot,
                    incarnation: self.incarnation,
                };
                let new = Endpoint {
                    worker: Some(worker),
                    node: node_of(slot).to_string(),
                    ..Endpoint::default()
                };
                self.serving.insert(place.clone(), new.clone());
                let mut changes = vec![put(key, new.encode_to_vec())];
                // The last one that a record stands for takes it along.
                let left = self.left.remove(&place);
                if left.is_some() && !self.left.values().any(|left| left.node == new.node) {
                    self.losses.remove(&new.node);
                    let key = keys::loss(&node_of(slot));
                    changes.push(Change { key, value: None });
                }
                changes
            }
            (Act::Lose, _) => {
                let node = node_of(slot);
                let loss = NodeLoss {
                    up_to_incarnation: self.incarnation,
                    ..NodeLoss::default()
                };
                let there = |endpoint: &Endpoint| endpoint.node == node.as_str();
                self.left
                    .extend(self.serving.extract_if(.., |_, endpoint| there(endpoint)));
                if !self.left.values().any(there) {
                    return Vec::new();
                }
                self.losses.insert(node.to_string(), loss.clone());
                vec![put(keys::loss(&node), loss.encode_to_vec())]
            }
            (Act::Return, _) => {
                let node = node_of(slot);
                let there = |endpoint: &Endpoint| endpoint.node == node.as_str();
                self.serving
                    .extend(self.left.extract_if(.., |_, endpoint| there(endpoint)));
                match self.losses.remove(node.as_str()) {
                    Some(_) => vec![Change {
                        key: keys::loss(&node),
                        value: None,
                    }],
                    None => Vec::new(),
                }
            }
            (_, None) => Vec::new(),
            (Act::Drain, Some(old)) => {
                let new = Endpoint {
                    draining: true,
                    ..old
                };
                self.serving.insert(place, new.clone());
                vec![put(key, new.encode_to_vec())]
            }
            (Act::Leave, Some(_)) => {
                self.serving.remove(&place);
                vec![Change { key, value: None }]
            }
            (Act::Die, Some(old)) => {
                self.serving.remove(&place);
                let death = EndpointRemoval {
                    worker: old.worker,
                    death: Some(Death::default()),
                };
                let record = put(keys::death(pool, slot), death.encode_to_vec());
                vec![Change { key, value: None }, record]
            }
        }
    }
}

fn from_source(slot: u32, incarnation: u64) -> Endpoint {
    Endpoint {
        worker: Some(WorkerRef {
            pool: CONFIGURED.to_owned(),
            slot,
            incarnation,
        }),
        ..Endpoint::default()
    }
}

/// Reads on from `after` to the present, as a gateway does.
fn catch_up(table: &Table, pool: Option<&PoolName>, copy: &mut Copy, mut after: Option<u64>) {
    loop {
        let (message, upto) = table.next(pool, after);
        assert!(
            after.is_none_or(|after| upto >= after),
            "a revision went back"
        );
        after = Some(upto);
        match message {
            Some(message) => take(copy, &message),
            None => return,
        }
    }
}

fn take(copy: &mut Copy, message: &WatchEndpointsResponse) {
    let place = |worker: &Option<WorkerRef>| {
        let worker = worker.as_ref().unwrap();
        (worker.pool.clone(), worker.slot)
    };
    let Copy { places, unheard } = copy;
    if message.snapshot {
        places.clear();
        *unheard = message.unheard_pools.iter().cloned().collect();
    }
    for heard in &message.heard_pools {
        assert!(unheard.remove(heard), "`{heard}` is heard once");
    }
    for gone in &message.removals {
        let removed = places
            .remove(&place(&gone.worker))
            .map(|known| known.worker);
        assert_eq!(
            removed,
            Some(gone.worker.clone()),
            "what was not told is removed"
        );
    }
    for new in &message.upserts {
        places.insert(place(&new.worker), new.clone());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_watcher_that_starts_or_resumes_anywhere_arrives_at_the_table(
        steps in steps(),
        limit in 1usize..40,
    ) {
        let pools = POOLS.map(|name| PoolName::new(name).unwrap());
        let configured = BTreeSet::from([pools[1].clone()]);
        let mut arbiter = Arbiter::default();
        let mut table = Table::new(configured, limit);
        let mut sourced = Copy {
            places: Places::new(),
            unheard: BTreeSet::from([CONFIGURED.to_owned()]),
        };
        let mut seen = BTreeMap::from([(table.revision(), sourced.clone())]);

        for step in steps {
            let before = table.revision();
            match step {
                Step::Commit(acts) => {
                    let (changes, died) = arbiter.commit(&pools, acts);
                    table.commit(changes);
                    let (message, _) = table.next(None, Some(before));
                    for gone in message.iter().flat_map(|message| &message.removals) {
                        let worker = gone.worker.as_ref().unwrap();
                        let place = (worker.pool.clone(), worker.slot);
                        prop_assert_eq!(gone.death.is_some(), died.contains(&place), "D2");
                    }
                }
                Step::Reload => table.reload(arbiter.entries()),
                Step::Source(named) => {
                    let named = named.into_iter().map(|(slot, incarnation)| from_source(slot, incarnation));
                    let named: Vec<_> = named.collect();
                    table.source(&pools[1], named.clone());
                    let place = |endpoint: Endpoint| {
                        let slot = endpoint.worker.as_ref().unwrap().slot;
                        ((CONFIGURED.to_owned(), slot), endpoint)
                    };
                    sourced = Copy::default();
                    sourced.places.extend(named.into_iter().map(place));
                }
            }
            prop_assert!(table.revision() <= before + 1, "one commit, one message");
            let mut now = sourced.clone();
            let written = arbiter.serving.iter().filter(|((pool, _), _)| pool != CONFIGURED);
            now.places.extend(written.map(|(place, endpoint)| (place.clone(), endpoint.clone())));
            seen.insert(table.revision(), now);
        }

        let now = seen[&table.revision()].clone();
        for pool in [None, Some(&pools[0]), Some(&pools[1])] {
            for (&revision, then) in &seen {
                let mut copy = then.only(pool);
                catch_up(&table, pool, &mut copy, Some(revision));
                prop_assert_eq!(&copy, &now.only(pool), "D1 from {}", revision);
            }
            let mut copy = Copy::default();
            catch_up(&table, pool, &mut copy, None);
            prop_assert_eq!(&copy, &now.only(pool), "D1 from nothing");
        }
    }
}
