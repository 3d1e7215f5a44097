//! Which node takes the next worker of a pool, and why none does: the planner's choice, from what is known here.

use std::collections::BTreeMap;

use tether_lifecycle::OnOwnerLoss;
use tether_placement::{Candidate, Known, NoNode, Preference, choose};
use tether_proto::worker::EventKind;
use tether_types::{NodeName, PoolName, ProcessIdentity};

use super::{Ledger, Node, Pool};

/// Of nodes that fit, so many are looked at: on larger clusters the choice is the best among these, which are
/// those with the fewest workers, or to be packed the most.
const ENOUGH: usize = 256;

/// Why a node takes no worker of a pool.
const AWAY: &str = "are lost or not heard yet";
const CLOSED: &str = "are cordoned or drained (`tether nodes`)";
const NO_LAUNCHER: &str = "do not offer the pool's launcher";
const BLIND: &str = "cannot watch the process of the pool's owner";

/// How evenly the workers of a pool are spread: how many nodes have so many of them. Which those are, the nodes know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Spread(BTreeMap<usize, usize>);

impl Spread {
    /// A node has so many of them now.
    pub(super) fn change(&mut self, before: usize, after: usize) {
        if let Some(nodes) = self.0.get_mut(&before) {
            *nodes -= 1;
            if *nodes == 0 {
                self.0.remove(&before);
            }
        }
        if after > 0 {
            *self.0.entry(after).or_default() += 1;
        }
    }

    /// The least that any of so many nodes has.
    fn least(&self, nodes: usize) -> usize {
        let least = self.0.keys().next().copied().unwrap_or(0);
        if self.0.values().sum::<usize>() < nodes {
            0
        } else {
            least
        }
    }
}

impl Ledger {
    /// The node for another worker of this pool.
    ///
    /// # Errors
    /// Says why there is none.
    pub(super) fn choose_node(&self, pool: &PoolName) -> Result<NodeName, NoNode> {
        let Some(pool) = self.pools.get(pool) else {
            return Err(NoNode::default());
        };
        let session = self.sessions.get(pool.owner());
        let owner = session.and_then(|session| session.process.as_ref());
        let preference = pool.resolved.wishes.preference;
        let by_load = self.loads.iter().map(|(_, name)| name);
        // In the order in which the planner need not look at all of them.
        let names: Box<dyn Iterator<Item = &NodeName>> = match preference {
            Preference::Spread => Box::new(by_load),
            Preference::Pack => Box::new(by_load.rev()),
        };
        let known = Known {
            least_of_pool: pool.spread.least(self.nodes.len()),
            enough: ENOUGH,
        };
        let candidates = names.filter_map(|name| {
            let (name, node) = self.nodes.get_key_value(name)?;
            Some(Candidate {
                name,
                labels: &node.labels,
                capacity: &node.resources,
                used: node.units.used(),
                workers: node.workers.len(),
                of_pool: node.workers.of(pool.name()),
                barred: self.barred(name, node, pool, owner),
            })
        });
        choose(pool.resolved.wishes.needs(), preference, known, candidates).cloned()
    }

    fn barred(
        &self,
        name: &NodeName,
        node: &Node,
        pool: &Pool,
        owner: Option<&ProcessIdentity>,
    ) -> Option<&'static str> {
        let in_sight = || match pool.policy().on_owner_exit {
            OnOwnerLoss::Kill => owner.is_some_and(|owner| node.sees(owner)),
            OnOwnerLoss::RunForTimeout | OnOwnerLoss::Continue => true,
        };
        if !node.takes() {
            Some(AWAY)
        } else if self.is_closed(name) {
            Some(CLOSED)
        } else if !node.offers(pool.policy().launcher) {
            Some(NO_LAUNCHER)
        } else {
            (!in_sight()).then_some(BLIND)
        }
    }

    /// Notes why the workers of a pool that are due find no node, and tells of it once: while they wait the counts
    /// in it may change with each worker of others.
    pub(super) fn note_no_node(&mut self, pool: &PoolName, why: Option<&NoNode>) {
        let Some(entry) = self.pools.get_mut(pool) else {
            return;
        };
        let why = why.map(ToString::to_string);
        if entry.no_node == why {
            return;
        }
        if let (Some(why), None) = (&why, &entry.no_node) {
            let text = format!("pool `{pool}` waits for a node: {why}");
            self.effects
                .owner_event(EventKind::PoolChanged, entry.owner(), text);
        }
        entry.no_node = why;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_is_known_without_looking_at_all() {
        let mut spread = Spread::default();
        assert_eq!(spread.least(2), 0);
        for (before, after) in [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3)] {
            spread.change(before, after);
        }
        assert_eq!((spread.least(2), spread.least(3)), (2, 0));
        spread.change(2, 1);
        assert_eq!(spread.least(2), 1);
        spread.change(1, 0);
        assert_eq!((spread.least(2), spread.least(1)), (0, 3));
    }
}
