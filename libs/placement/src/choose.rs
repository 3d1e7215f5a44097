//! The node for one more worker.

use std::{collections::BTreeMap, fmt};

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
    /// Why it takes no worker of the pool whatever it has, to follow on "3 of them": "are cordoned". None
    /// where it does.
    pub barred: Option<&'static str>,
}

/// What is known of all candidates before they are looked at, so that of many not all have to be.
///
/// It is for candidates that come in the order of the preference: those with the fewest workers first to be
/// spread, those with the most first to be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// None has fewer workers of the pool.
    pub least_of_pool: usize,
    /// So many that fit are enough to choose from.
    pub enough: usize,
}

impl Default for Known {
    /// Nothing is known, not even an order.
    fn default() -> Self {
        Self {
            least_of_pool: 0,
            enough: usize::MAX,
        }
    }
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

    /// How well it suits, the least being the best.
    fn rank(&self, needs: &Needs<'_>, preference: Preference) -> Rank<'_> {
        let (first, second, load) = match preference {
            Preference::Spread => (
                self.of_pool,
                u64::try_from(self.wasted(needs)).unwrap_or(u64::MAX),
                self.workers,
            ),
            Preference::Pack => {
                let room = self.left_over(needs);
                (self.wasted(needs), room, usize::MAX - self.workers)
            }
        };
        (first, second, load, self.name)
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

type Rank<'a> = (usize, u64, usize, &'a NodeName);

/// Why no node takes a worker: how many were left out for what.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
pub struct NoNode {
    /// How many nodes there are.
    pub nodes: usize,
    /// Those that are barred, by why.
    pub barred: BTreeMap<&'static str, usize>,
    /// Those without the labels.
    pub unlabelled: usize,
    /// The labels that one of these lacks.
    pub lacking: Labels,
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
        let barred = self.barred.iter();
        let mut parts: Vec<_> = barred
            .map(|(why, count)| format!("{count} {why}"))
            .collect();
        if self.unlabelled > 0 {
            let lacking = self.lacking.iter();
            let lacking: Vec<_> = lacking
                .map(|(name, value)| format!("`{name} = {value}`"))
                .collect();
            let lacking = lacking.join(" or ");
            parts.push(format!("{} have no label {lacking}", self.unlabelled));
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
    known: Known,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
) -> Result<&'a NodeName, NoNode> {
    let mut why = NoNode::default();
    let mut best: Option<Candidate<'a>> = None;
    let mut fitting = 0;
    for candidate in candidates {
        why.nodes += 1;
        if let Some(barred) = candidate.barred {
            *why.barred.entry(barred).or_default() += 1;
        } else if !candidate.has_labels(&needs) {
            why.unlabelled += 1;
            note_lack(&mut why, &needs, &candidate);
        } else if !candidate.has_room(&needs) {
            why.full += 1;
            note_shortage(&mut why, &needs, &candidate);
        } else {
            fitting += 1;
            let rank = candidate.rank(&needs, preference);
            let better = |best: &Candidate<'a>| rank < best.rank(&needs, preference);
            let (first, second, ..) = rank;
            if best.as_ref().is_none_or(better) {
                best = Some(candidate);
            }
            let ordered = known != Known::default();
            let unbeaten = match preference {
                Preference::Spread => first <= known.least_of_pool && second == 0,
                Preference::Pack => first == 0 && second == 0,
            };
            if ordered && (unbeaten || fitting >= known.enough) {
                break;
            }
        }
    }
    best.map(|node| node.name).ok_or(why)
}

fn note_lack(why: &mut NoNode, needs: &Needs<'_>, node: &Candidate<'_>) {
    for (name, value) in needs.labels {
        if node.labels.get(name) != Some(value) {
            why.lacking.insert(name.clone(), value.clone());
        }
    }
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
