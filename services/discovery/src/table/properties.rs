//! D1 and D2 under random commits, reloads and a short ring.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};
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

fn acts() -> impl Strategy<Value = Vec<Vec<(usize, u32, Act)>>> {
    let act = prop_oneof![
        3 => Just(Act::Start),
        1 => Just(Act::Drain),
        2 => Just(Act::Die),
        1 => Just(Act::Leave),
        1 => Just(Act::Lose),
        1 => Just(Act::Return)
    ];
    vec(vec((0..2usize, 0..3u32, act), 1..4), 1..30)
}

/// Each slot is always on the same one.
fn node_of(slot: u32) -> NodeName {
    NodeName::new(format!("n{}", slot % 2)).unwrap()
}

type Places = BTreeMap<(String, u32), Endpoint>;

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

/// Reads on from `after` to the present, as a gateway does.
fn catch_up(table: &Table, pool: Option<&PoolName>, places: &mut Places, mut after: Option<u64>) {
    loop {
        let (message, upto) = table.next(pool, after);
        assert!(
            after.is_none_or(|after| upto >= after),
            "a revision went back"
        );
        after = Some(upto);
        match message {
            Some(message) => take(places, &message),
            None => return,
        }
    }
}

fn take(places: &mut Places, message: &WatchEndpointsResponse) {
    let place = |worker: &Option<WorkerRef>| {
        let worker = worker.as_ref().unwrap();
        (worker.pool.clone(), worker.slot)
    };
    if message.snapshot {
        places.clear();
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
        commits in acts(),
        limit in 1usize..40,
        reload_at in 0usize..40,
    ) {
        let pools = ["a", "b"].map(|name| PoolName::new(name).unwrap());
        let mut arbiter = Arbiter::default();
        let mut table = Table::new(BTreeSet::new(), limit);
        let mut seen: BTreeMap<u64, Places> = BTreeMap::from([(table.revision(), Places::new())]);

        for (number, commit) in commits.into_iter().enumerate() {
            let mut changes: BTreeMap<String, Change> = BTreeMap::new();
            let mut touched = BTreeSet::new();
            let (mut died, mut lost) = (BTreeSet::new(), BTreeSet::new());
            for (pool, slot, act) in commit {
                // A commit writes a key once.
                // Nor does it write of places of a node that it loses.
                let calm = !lost.contains(&node_of(slot));
                let first = !touched.iter().any(|(_, other)| node_of(*other) == node_of(slot));
                let whole = matches!(act, Act::Lose | Act::Return);
                let fits = if whole { first && calm } else { calm };
                if fits && touched.insert((pool, slot)) {
                    if whole {
                        lost.insert(node_of(slot));
                    }
                    let made = arbiter.act(&pools[pool], slot, act);
                    if matches!(act, Act::Die) {
                        died.insert((pools[pool].to_string(), slot));
                    }
                    changes.extend(made.into_iter().map(|change| (change.key.clone(), change)));
                }
            }
            let before = table.revision();
            if number == reload_at {
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
                let entries = arbiter.serving.iter().chain(&arbiter.left).map(entry);
                table.reload(entries.chain(arbiter.losses.iter().map(loss)).collect());
            } else {
                table.commit(changes.into_values().collect());
                let (message, _) = table.next(None, Some(before));
                for gone in message.iter().flat_map(|message| &message.removals) {
                    let worker = gone.worker.as_ref().unwrap();
                    let place = (worker.pool.clone(), worker.slot);
                    prop_assert_eq!(gone.death.is_some(), died.contains(&place), "D2");
                }
            }
            prop_assert!(table.revision() <= before + 1, "one commit, one message");
            seen.insert(table.revision(), arbiter.serving.clone());
        }

        for pool in [None, Some(&pools[0])] {
            let only = |places: &Places| -> Places {
                let mut places = places.clone();
                places.retain(|(name, _), _| pool.is_none_or(|pool| pool.as_str() == name));
                places
            };
            for (&revision, then) in &seen {
                let mut places = only(then);
                catch_up(&table, pool, &mut places, Some(revision));
                prop_assert_eq!(&places, &only(&arbiter.serving), "D1 from {}", revision);
            }
            let mut places = Places::new();
            catch_up(&table, pool, &mut places, None);
            prop_assert_eq!(&places, &only(&arbiter.serving), "D1 from nothing");
        }
    }
}
