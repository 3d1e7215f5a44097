//! Which workers are on which node, and the counts by which the planner chooses: how many a node has, and how
//! evenly the workers of a pool are spread.

use tether_types::{NodeName, PoolName, WorkerId};

use super::{Ledger, roster::Roster};

impl Ledger {
    /// A worker is on a node.
    pub(super) fn seat(&mut self, name: &NodeName, id: &WorkerId) {
        if self.on_roster(name, |roster| roster.insert(id)) == Some(true) {
            let after = self.of_pool(name, &id.pool);
            self.spread(&id.pool, after.saturating_sub(1), after);
        }
    }

    /// A worker is on a node no more.
    pub(super) fn unseat(&mut self, name: &NodeName, id: &WorkerId) {
        self.unhear(name, id);
        if self.on_roster(name, |roster| roster.remove(id)) == Some(true) {
            let after = self.of_pool(name, &id.pool);
            self.spread(&id.pool, after + 1, after);
        }
        self.free_units(name, id);
    }

    /// Workers are on a lost node no more. What its stream told of them is over with the stream.
    pub(super) fn unseat_lost(&mut self, name: &NodeName, ids: &[WorkerId]) {
        let removed = self.on_roster(name, |roster| roster.remove_all(ids));
        let removed = removed.unwrap_or_default();
        for of_pool in removed.chunk_by(|a, b| a.pool == b.pool) {
            let pool = &of_pool[0].pool;
            let after = self.of_pool(name, pool);
            self.spread(pool, after + of_pool.len(), after);
        }
        for id in removed {
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

    /// How many workers of a pool are on a node.
    fn of_pool(&self, name: &NodeName, pool: &PoolName) -> usize {
        let node = self.nodes.get(name);
        node.map_or(0, |node| node.workers.of(pool))
    }

    fn spread(&mut self, pool: &PoolName, before: usize, after: usize) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.spread.change(before, after);
        }
    }
}
