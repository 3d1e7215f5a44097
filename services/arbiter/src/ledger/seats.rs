//! Which workers are on which node, and the counts by which the planner chooses: how many a node has, and where
//! the workers of a pool are.

use tether_types::{NodeName, WorkerId};

use super::{Ledger, roster::Roster};

impl Ledger {
    /// A worker is on a node.
    pub(super) fn seat(&mut self, name: &NodeName, id: &WorkerId) {
        if self.on_roster(name, |roster| roster.insert(id)) == Some(true)
            && let Some(pool) = self.pools.get_mut(&id.pool)
        {
            pool.spread.add(name);
        }
    }

    /// A worker is on a node no more.
    pub(super) fn unseat(&mut self, name: &NodeName, id: &WorkerId) {
        self.unhear(name, id);
        if self.on_roster(name, |roster| roster.remove(id)) == Some(true) {
            self.leave(name, id);
        }
        self.free_units(name, id);
    }

    /// Workers are on a lost node no more. What its stream told of them is over with the stream.
    pub(super) fn unseat_lost(&mut self, name: &NodeName, ids: &[WorkerId]) {
        let removed = self.on_roster(name, |roster| roster.remove_all(ids));
        for id in removed.unwrap_or_default() {
            self.leave(name, &id);
            self.free_units(name, &id);
        }
    }

    /// Changes what a node has, and how many that are; none where it is not known.
    fn on_roster<T>(
        &mut self,
        name: &NodeName,
        change: impl FnOnce(&mut Roster) -> T,
    ) -> Option<T> {
        let node = self.nodes.get_mut(name)?;
        let before = node.workers.len();
        let changed = change(&mut node.workers);
        let after = node.workers.len();
        if before != after {
            self.loads.remove(&(before, name.clone()));
            self.loads.insert((after, name.clone()));
        }
        Some(changed)
    }

    fn leave(&mut self, name: &NodeName, id: &WorkerId) {
        if let Some(pool) = self.pools.get_mut(&id.pool) {
            pool.spread.remove(name);
        }
    }
}
