//! The workers of one node, in as little memory as a million of them want.

use tether_types::{Incarnation, PoolName, Slot, WorkerId};

/// A sorted list: a node has hundreds of workers, so that moving some along costs less than a tree.
#[derive(Debug, Clone, Default)]
pub(super) struct Roster(Vec<Entry>);

type Entry = (PoolName, Slot, Incarnation);

fn entry(id: &WorkerId) -> Entry {
    (id.pool.clone(), id.slot, id.incarnation)
}

fn id(entry: &Entry) -> WorkerId {
    let (pool, slot, incarnation) = entry;
    WorkerId {
        pool: pool.clone(),
        slot: *slot,
        incarnation: *incarnation,
    }
}

impl Roster {
    /// False where it was there.
    pub(super) fn insert(&mut self, id: &WorkerId) -> bool {
        let entry = entry(id);
        let Err(at) = self.0.binary_search(&entry) else {
            return false;
        };
        if self.0.len() == self.0.capacity() {
            // By a quarter rather than to double the size.
            self.0.reserve_exact((self.0.len() / 4).max(4));
        }
        self.0.insert(at, entry);
        true
    }

    /// False where it was not there.
    pub(super) fn remove(&mut self, id: &WorkerId) -> bool {
        let found = self.0.binary_search(&entry(id));
        if let Ok(at) = found {
            self.0.remove(at);
        }
        found.is_ok()
    }

    /// Takes out all of these that are there, and tells which were.
    pub(super) fn remove_all(&mut self, ids: &[WorkerId]) -> Vec<WorkerId> {
        let mut gone: Vec<_> = ids.iter().map(entry).collect();
        gone.sort_unstable();
        let gone = |entry: &mut Entry| gone.binary_search(entry).is_ok();
        let removed = self
            .0
            .extract_if(.., gone)
            .map(|entry| id(&entry))
            .collect();
        self.0.shrink_to_fit();
        removed
    }

    pub(super) fn contains(&self, id: &WorkerId) -> bool {
        self.0.binary_search(&entry(id)).is_ok()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many are of a pool.
    pub(super) fn of(&self, pool: &PoolName) -> usize {
        let start = self.0.partition_point(|entry| entry.0 < *pool);
        self.0[start..].partition_point(|entry| entry.0 == *pool)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = WorkerId> {
        self.0.iter().map(id)
    }

    /// Each pool that has workers there, once.
    pub(super) fn pools(&self) -> impl Iterator<Item = &PoolName> {
        self.by_pool().map(|(pool, _)| pool)
    }

    /// The workers of each pool.
    pub(super) fn by_pool(
        &self,
    ) -> impl Iterator<Item = (&PoolName, impl Iterator<Item = WorkerId>)> {
        let pools = self.0.chunk_by(|a, b| a.0 == b.0);
        pools.map(|workers| (&workers[0].0, workers.iter().map(id)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_set_that_knows_its_pools(
            steps in vec((any::<bool>(), 0..3_usize, 0..4_u32, 0..3_u64), 0..60),
            several in any::<u64>(),
        ) {
            let (mut roster, mut model) = (Roster::default(), BTreeSet::new());
            for (comes, pool, slot, incarnation) in steps {
                let id = WorkerId {
                    pool: PoolName::new(["a", "b", "c"][pool]).unwrap(),
                    slot,
                    incarnation: Incarnation(incarnation),
                };
                let changed = if comes { roster.insert(&id) } else { roster.remove(&id) };
                prop_assert_eq!(changed, if comes { model.insert(id.clone()) } else { model.remove(&id) });
                prop_assert!(roster.iter().eq(model.iter().cloned()));
                let pools: BTreeSet<_> = model.iter().map(|id| &id.pool).collect();
                prop_assert!(roster.pools().eq(pools));
                prop_assert_eq!(roster.len(), model.len());
                let of_b = PoolName::new("b").unwrap();
                prop_assert_eq!(roster.of(&of_b), model.iter().filter(|id| id.pool == of_b).count());
            }
            let chosen = |number: usize| several >> (number % 64) & 1 == 1;
            let gone = model.iter().enumerate().filter(|(number, _)| chosen(*number));
            // In another order, and with one that is not there.
            let mut gone: Vec<_> = gone.map(|(_, id)| id.clone()).rev().collect();
            gone.extend(gone.first().map(|id| WorkerId { slot: 99, ..id.clone() }));
            let removed = roster.remove_all(&gone);
            prop_assert!(removed.iter().eq(model.extract_if(.., |id| gone.contains(id)).collect::<Vec<_>>().iter()));
            prop_assert!(roster.iter().eq(model.iter().cloned()));
        }
    }
}
