//! The node for one more worker.

use std::{cmp::Reverse, collections::BTreeMap, fmt};

use tether_types::NodeName;

/// Names and values by which nodes are told apart, such as `zone = "a"`.
pub type Labels = BTreeMap<String, String>;

/// Numbers of things that a node has, such as `gpu = 4`.
pub type Counts = BTreeMap<String, u32>;

/// Which of several nodes that fit is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// The one with the fewest workers of the pool, so that a node that is lost takes few of them.
    #[default]
    Spread,
    /// The fullest one, so that others stay free for what needs much room, or can be given back.
    Pack,
}

impl Preference {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Spread, Self::Pack];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::Pack => "pack",
        }
    }
}

/// What a worker asks of its node.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// All of these.
    pub labels: &'a Labels,
    /// What it takes for itself alone.
    pub resources: &'a Counts,
}

/// A node as the planner sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a NodeName,
    /// Its labels.
    pub labels: &'a Labels,
    /// What it has in all.
    pub capacity: &'a Counts,
    /// What its workers have taken.
    pub used: &'a Counts,
    /// How many workers it has.
    pub workers: usize,
    /// How many of them belong to the pool.
    pub of_pool: usize,
    /// Whether it takes workers at all: it does not while it is cordoned or drained.
    pub open: bool,
}

impl Candidate<'_> {
    fn free(&self, resource: &str) -> u32 {
        let count = |of: &Counts| of.get(resource).copied().unwrap_or(0);
        count(self.capacity).saturating_sub(count(self.used))
    }

    fn has_labels(&self, needs: &Needs<'_>) -> bool {
        let mut wanted = needs.labels.iter();
        wanted.all(|(name, value)| self.labels.get(name) == Some(value))
    }

    fn has_room(&self, needs: &Needs<'_>) -> bool {
        let mut wanted = needs.resources.iter();
        wanted.all(|(name, &count)| self.free(name) >= count)
    }

    /// Counted things it has and the worker has no use for: they are better left to who needs them.
    fn wasted(&self, needs: &Needs<'_>) -> usize {
        let free = self.capacity.keys().filter(|name| self.free(name) > 0);
        free.filter(|name| !needs.resources.contains_key(*name))
            .count()
    }

    /// What would be left of what the worker asks for.
    fn left_over(&self, needs: &Needs<'_>) -> u64 {
        let left = needs
            .resources
            .iter()
            .map(|(name, count)| u64::from(self.free(name).saturating_sub(*count)));
        left.sum()
    }
}

/// Why no node takes a worker: how many were left out for what.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
pub struct NoNode {
    /// How many nodes there are.
    pub nodes: usize,
    /// Those that are cordoned or drained.
    pub closed: usize,
    /// Those without the labels.
    pub unlabelled: usize,
    /// Those without enough of a counted resource, and the most that any of these has free, by resource.
    pub full: usize,
    /// For each resource that was short somewhere: what is asked, and the most that is free on one node.
    pub short: BTreeMap<String, (u32, u32)>,
}

impl fmt::Display for NoNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("there is no node: start an agent");
        }
        let mut parts = Vec::new();
        if self.closed > 0 {
            parts.push(format!("{} take no workers (`tether nodes`)", self.closed));
        }
        if self.unlabelled > 0 {
            parts.push(format!("{} lack a label", self.unlabelled));
        }
        if self.full > 0 {
            let short = self.short.iter().map(|(name, (asked, free))| {
                format!("{asked} of `{name}` are asked and at most {free} are free")
            });
            let short: Vec<_> = short.collect();
            parts.push(format!("{} have no room: {}", self.full, short.join(", ")));
        }
        write!(f, "of {} nodes {}", self.nodes, parts.join(", "))
    }
}

/// Names the node for one more worker.
///
/// # Errors
/// Says why none takes it.
pub fn choose<'a>(
    needs: Needs<'_>,
    preference: Preference,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
) -> Result<&'a NodeName, NoNode> {
    let mut why = NoNode::default();
    let mut fitting = Vec::new();
    for candidate in candidates {
        why.nodes += 1;
        if !candidate.open {
            why.closed += 1;
        } else if !candidate.has_labels(&needs) {
            why.unlabelled += 1;
        } else if !candidate.has_room(&needs) {
            why.full += 1;
            note_shortage(&mut why, &needs, &candidate);
        } else {
            fitting.push(candidate);
        }
    }
    let best = match preference {
        Preference::Spread => fitting.iter().min_by_key(|node| {
            let load = (node.of_pool, node.wasted(&needs), node.workers);
            (load, node.name)
        }),
        Preference::Pack => fitting.iter().min_by_key(|node| {
            let room = (node.wasted(&needs), node.left_over(&needs));
            (room, Reverse(node.workers), node.name)
        }),
    };
    best.map(|node| node.name).ok_or(why)
}

fn note_shortage(why: &mut NoNode, needs: &Needs<'_>, node: &Candidate<'_>) {
    for (name, &asked) in needs.resources {
        let free = node.free(name);
        if free < asked {
            let (_, most) = why.short.entry(name.clone()).or_insert((asked, 0));
            *most = (*most).max(free);
        }
    }
}
