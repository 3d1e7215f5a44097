//! One property for each invariant of the crate's front page.

#![allow(clippy::unwrap_used, reason = "helpers outside of test functions")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};
use tether_placement::{
    Budget, Candidate, Counts, Known, Labels, Needs, NoNode, Place, Preference, Standing, Step,
    choose, next_step,
};
use tether_types::NodeName;

#[derive(Debug, Clone)]
struct Node {
    name: NodeName,
    labels: Labels,
    capacity: Counts,
    used: Counts,
    workers: usize,
    of_pool: usize,
    open: bool,
}

impl Node {
    fn seen(&self) -> Candidate<'_> {
        Candidate {
            name: &self.name,
            labels: &self.labels,
            capacity: &self.capacity,
            used: &self.used,
            workers: self.workers,
            of_pool: self.of_pool,
            barred: (!self.open).then_some("are cordoned (`tether nodes`)"),
        }
    }
}

fn counts() -> impl Strategy<Value = Counts> {
    proptest::collection::btree_map(prop_oneof!["gpu", "slot"], 0..4_u32, 0..3)
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map(prop_oneof!["zone", "disk"], prop_oneof!["a", "b"], 0..3)
}

fn node() -> impl Strategy<Value = Node> {
    let load = (0..9_usize, 0..4_usize, prop::bool::weighted(0.8));
    (0..20_u32, labels(), counts(), counts(), load).prop_map(
        |(number, labels, capacity, used, (workers, of_pool, open))| Node {
            name: NodeName::new(format!("n{number}").as_str()).unwrap(),
            labels,
            capacity,
            used,
            workers: workers + of_pool,
            of_pool,
            open,
        },
    )
}

fn fits(node: &Node, labels: &Labels, resources: &Counts) -> bool {
    let free = |name: &String| {
        let has = node.capacity.get(name).copied().unwrap_or(0);
        has.saturating_sub(node.used.get(name).copied().unwrap_or(0))
    };
    node.open
        && labels
            .iter()
            .all(|(name, value)| node.labels.get(name) == Some(value))
        && resources.iter().all(|(name, &count)| free(name) >= count)
}

/// A pool under replacement: fresh or stale, ready or not, with places beyond its size.
#[derive(Debug, Clone)]
struct Pool {
    size: u32,
    surge: u32,
    unavailable: u32,
    places: BTreeMap<u32, (Standing, bool)>,
    /// Places whose workers are kept for now.
    kept: BTreeSet<u32>,
}

impl Pool {
    fn budget(&self) -> Budget {
        Budget::new(self.surge, self.unavailable).unwrap()
    }

    fn seen(&self) -> Vec<Place> {
        let place = |(&slot, &(standing, stale)): (&u32, &(Standing, bool))| Place {
            slot,
            standing,
            stale,
            kept: self.kept.contains(&slot),
        };
        self.places.iter().map(place).collect()
    }

    fn ready(&self) -> u32 {
        let ready = self.places.values();
        let ready = ready.filter(|(standing, _)| *standing == Standing::Ready);
        u32::try_from(ready.count()).unwrap()
    }

    fn carry_out(&mut self, step: Step) {
        match step {
            Step::Add => {
                let free = (self.size..)
                    .find(|slot| !self.places.contains_key(slot))
                    .unwrap();
                self.places.insert(free, (Standing::Coming, false));
            }
            Step::Replace(slot) => {
                self.places.insert(slot, (Standing::Going, true));
            }
            Step::Remove(slot) => {
                self.places.insert(slot, (Standing::Going, false));
            }
        }
    }

    /// What is on its way arrives.
    fn settle(&mut self) {
        let size = self.size;
        self.places
            .retain(|&slot, (standing, _)| slot < size || *standing != Standing::Going);
        for (standing, stale) in self.places.values_mut() {
            if *standing == Standing::Going {
                *stale = false;
            }
            *standing = Standing::Ready;
        }
    }
}

fn pool() -> impl Strategy<Value = Pool> {
    let standing = prop_oneof![
        3 => Just(Standing::Ready),
        1 => Just(Standing::Coming),
        1 => Just(Standing::Going)
    ];
    let budget = (0..3_u32, 0..3_u32).prop_filter("a budget", |(surge, less)| surge + less > 0);
    (vec((standing, any::<bool>()), 0..8), budget).prop_map(|(places, (surge, unavailable))| {
        let size = u32::try_from(places.len()).unwrap();
        Pool {
            size,
            surge,
            unavailable,
            places: (0..).zip(places).collect(),
            kept: BTreeSet::new(),
        }
    })
}

proptest! {
    /// P1, and that a node is found where there is one.
    #[test]
    fn a_worker_goes_to_a_node_that_fits_and_to_none_only_where_none_does(
        nodes in vec(node(), 0..6),
        labels in labels(),
        resources in counts(),
        pack: bool,
    ) {
        let preference = if pack { Preference::Pack } else { Preference::Spread };
        let needs = Needs { labels: &labels, resources: &resources };

        let chosen = choose(needs, preference, Known::default(), nodes.iter().map(Node::seen));

        match chosen {
            Ok(name) => {
                let mut named = nodes.iter().filter(|node| node.name == *name);
                prop_assert!(named.any(|node| fits(node, &labels, &resources)));
            }
            Err(why) => {
                prop_assert!(!nodes.iter().any(|node| fits(node, &labels, &resources)));
                prop_assert_eq!(why.barred.values().sum::<usize>() + why.unlabelled + why.full, nodes.len());
            }
        }
    }

    /// What is known beforehand only spares looking, where all that fit are enough.
    #[test]
    fn what_is_known_beforehand_changes_no_choice(
        mut nodes in vec(node(), 0..8),
        resources in counts(),
        pack: bool,
    ) {
        nodes.sort_by_key(|node| (node.workers, node.name.clone()));
        nodes.dedup_by_key(|node| node.name.clone());
        let preference = if pack { Preference::Pack } else { Preference::Spread };
        if pack {
            nodes.sort_by_key(|node| (std::cmp::Reverse(node.workers), node.name.clone()));
        }
        let labels = Labels::new();
        let needs = Needs { labels: &labels, resources: &resources };
        let least = nodes.iter().map(|node| node.of_pool).min().unwrap_or(0);

        let all = choose(needs, preference, Known::default(), nodes.iter().map(Node::seen));
        let known = Known { least_of_pool: least, enough: 100 };
        prop_assert_eq!(&choose(needs, preference, known, nodes.iter().map(Node::seen)), &all);

        let few = Known { least_of_pool: least, enough: 2 };
        let few = choose(needs, preference, few, nodes.iter().map(Node::seen));
        prop_assert_eq!(few.err(), all.err());
    }

    /// P1: the spread leaves no two nodes that fit more than one worker apart.
    #[test]
    fn workers_are_spread_evenly_over_equal_nodes(nodes in 1..6_usize, workers in 0..20_usize) {
        let mut nodes: Vec<_> = (0..nodes).map(plain).collect();
        let (labels, resources) = (Labels::new(), Counts::new());
        let needs = Needs { labels: &labels, resources: &resources };

        for _ in 0..workers {
            let name = choose(needs, Preference::Spread, Known::default(), nodes.iter().map(Node::seen)).unwrap().clone();
            let node = nodes.iter_mut().find(|node| node.name == name).unwrap();
            (node.workers, node.of_pool) = (node.workers + 1, node.of_pool + 1);
        }

        let loads: BTreeSet<_> = nodes.iter().map(|node| node.of_pool).collect();
        prop_assert!(loads.last().unwrap() - loads.first().unwrap() <= 1);
    }

    /// P2, P3 and P5 at every step, and P4 until all is fresh, whenever what is on its way arrives. Whoever is
    /// ready may begin what must not be cut short, also one that stands in, until all of that is over.
    #[test]
    fn a_pool_becomes_fresh_within_its_budget(
        mut pool in pool(),
        arrive in vec((any::<bool>(), prop::option::weighted(0.3, 0..10_u32)), 64),
    ) {
        let least = pool.size.saturating_sub(pool.unavailable);
        for (arrives, begins) in arrive.into_iter().chain([(true, None); 64]) {
            match begins.filter(|slot| pool.places.get(slot).is_some_and(|place| place.0 == Standing::Ready)) {
                Some(slot) => drop(pool.kept.insert(slot)),
                None => pool.kept.clear(),
            }
            let before = pool.ready();
            if let Some(step) = next_step(pool.size, pool.budget(), &pool.seen()) {
                prop_assert_eq!(Some(step), next_step(pool.size, pool.budget(), &pool.seen()));
                if let Step::Replace(slot) | Step::Remove(slot) = step {
                    // P5
                    prop_assert!(!pool.kept.contains(&slot), "{step:?} {pool:?}");
                }
                pool.carry_out(step);
                // P2: what was below already is not made worse.
                prop_assert!(pool.ready() >= least.min(before), "{step:?} {pool:?}");
            } else {
                let waits = pool.places.values().any(|(standing, _)| *standing != Standing::Ready);
                let done = pool.places.values().all(|(_, stale)| !stale);
                // P4
                prop_assert!(waits || !pool.kept.is_empty() || (done && pool.places.len() == pool.size as usize), "{pool:?}");
            }
            // P3
            prop_assert!(pool.places.len() <= (pool.size + pool.surge) as usize, "{pool:?}");
            if arrives {
                pool.settle();
            }
        }
        prop_assert!(pool.places.values().all(|place| *place == (Standing::Ready, false)), "{pool:?}");
        prop_assert_eq!(pool.places.len(), pool.size as usize);
    }
}

fn plain(number: usize) -> Node {
    Node {
        name: NodeName::new(format!("n{number}").as_str()).unwrap(),
        labels: Labels::new(),
        capacity: Counts::new(),
        used: Counts::new(),
        workers: 0,
        of_pool: 0,
        open: true,
    }
}

#[test]
fn the_reason_names_what_is_missing() {
    let mut nodes: Vec<_> = (0..3).map(plain).collect();
    nodes[0].open = false;
    nodes[1].capacity = Counts::from([("gpu".to_owned(), 2)]);
    nodes[1].used = Counts::from([("gpu".to_owned(), 1)]);
    let (labels, resources) = (Labels::new(), Counts::from([("gpu".to_owned(), 2)]));
    let needs = Needs {
        labels: &labels,
        resources: &resources,
    };

    let why = choose(
        needs,
        Preference::Spread,
        Known::default(),
        nodes.iter().map(Node::seen),
    )
    .unwrap_err();

    assert_eq!(
        why.to_string(),
        "of 3 nodes 1 are cordoned (`tether nodes`), 2 have no room: 2 of `gpu` are asked and at most 1 are free"
    );
    let labels = Labels::from([("zone".to_owned(), "a".to_owned())]);
    let needs = Needs {
        labels: &labels,
        resources: &resources,
    };
    let nodes = nodes.iter().skip(1).map(Node::seen);
    let why = choose(needs, Preference::Spread, Known::default(), nodes).unwrap_err();
    assert_eq!(why.to_string(), "of 2 nodes 2 have no label `zone = a`");
    assert_eq!(
        NoNode::default().to_string(),
        "there is no node: start an agent"
    );
}

#[test]
fn packing_fills_a_node_and_leaves_what_is_counted_to_those_who_ask_for_it() {
    let mut nodes: Vec<_> = (0..3).map(plain).collect();
    nodes[0].capacity = Counts::from([("gpu".to_owned(), 4)]);
    nodes[2].workers = 5;
    let labels = Labels::new();
    let choose = |resources: &Counts| {
        let needs = Needs {
            labels: &labels,
            resources,
        };
        let chosen = choose(
            needs,
            Preference::Pack,
            Known::default(),
            nodes.iter().map(Node::seen),
        );
        chosen.unwrap().to_string()
    };

    assert_eq!(choose(&Counts::new()), "n2");
    assert_eq!(choose(&Counts::from([("gpu".to_owned(), 1)])), "n0");
}

#[test]
fn a_budget_without_room_is_refused_and_a_usual_one_adds_before_it_takes_away() {
    assert!(Budget::new(0, 0).is_err());
    let ready = |slot, stale| Place {
        slot,
        standing: Standing::Ready,
        stale,
        kept: false,
    };

    let mut places = vec![ready(0, true), ready(1, true)];
    assert_eq!(next_step(2, Budget::default(), &places), Some(Step::Add));
    places.push(Place {
        standing: Standing::Coming,
        ..ready(2, false)
    });
    assert_eq!(next_step(2, Budget::default(), &places), None);
    places[2].standing = Standing::Ready;
    let next = next_step(2, Budget::default(), &places);
    assert_eq!(next, Some(Step::Replace(0)));
}
