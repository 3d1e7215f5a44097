//! The counted resources of a node: which of its units which worker has.
//!
//! A unit is given with the order to start a worker, and is its own until the node says that it is dead. The node
//! tells of the units of all that it has, so that another arbiter knows them too, and of workers that nobody has
//! a place for: theirs are not free before they are gone.

use std::collections::{BTreeMap, BTreeSet};

use tether_placement::Counts;
use tether_proto::node::{ResourceUnits, WorkerReport};
use tether_types::{NodeName, WorkerId};

use super::Ledger;

/// Those that are not free.
#[derive(Debug, Default)]
pub(super) struct Units {
    held: BTreeMap<WorkerId, Vec<ResourceUnits>>,
    used: Counts,
}

impl Units {
    /// How many of each are not free.
    pub(super) fn used(&self) -> &Counts {
        &self.used
    }

    /// What a worker has.
    pub(super) fn of(&self, id: &WorkerId) -> &[ResourceUnits] {
        self.held.get(id).map_or(&[], Vec::as_slice)
    }

    /// Gives a worker what it asks for, the lowest units that are free. There are as many: whoever chose the
    /// node has looked.
    pub(super) fn give(
        &mut self,
        id: &WorkerId,
        wanted: &Counts,
        capacity: &Counts,
    ) -> Vec<ResourceUnits> {
        let given = wanted.iter().map(|(name, &count)| {
            let resources = self.held.values().flatten();
            let of_name = resources.filter(|resource| resource.name == *name);
            let taken: BTreeSet<_> = of_name.flat_map(|resource| &resource.units).collect();
            let all = 0..capacity.get(name).copied().unwrap_or(0);
            let free = all.filter(|unit| !taken.contains(unit));
            ResourceUnits {
                name: name.clone(),
                units: free.take(usize::try_from(count).unwrap_or(0)).collect(),
            }
        });
        let given: Vec<_> = given.collect();
        self.note(id, &given);
        given
    }

    /// Notes what a worker has, as its node tells.
    fn note(&mut self, id: &WorkerId, units: &[ResourceUnits]) {
        if !units.is_empty() && self.of(id) != units {
            self.held.insert(id.clone(), units.to_vec());
            self.count();
        }
    }

    /// A worker is gone. True where that freed something.
    fn take_back(&mut self, id: &WorkerId) -> bool {
        let freed = self.held.remove(id).is_some();
        if freed {
            self.count();
        }
        freed
    }

    fn count(&mut self) {
        self.used.clear();
        for resource in self.held.values().flatten() {
            let count = u32::try_from(resource.units.len()).unwrap_or(u32::MAX);
            let used = self.used.entry(resource.name.clone()).or_default();
            *used = used.saturating_add(count);
        }
    }
}

impl Ledger {
    /// Notes what a node tells of the units of a worker that lives.
    pub(super) fn note_units(&mut self, name: &NodeName, id: &WorkerId, report: &WorkerReport) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.units.note(id, &report.resources);
        }
    }

    /// A worker is gone: others may have its units.
    pub(super) fn free_units(&mut self, name: &NodeName, id: &WorkerId) {
        if let Some(node) = self.nodes.get_mut(name) {
            self.units_freed |= node.units.take_back(id);
        }
    }

    /// A node has told of all that it has: whatever it did not tell of, and is not on its way there, has nothing.
    pub(super) fn free_units_but(&mut self, name: &NodeName, told: &[WorkerReport]) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        let told = told.iter().filter_map(|report| report.worker.as_ref());
        let told: BTreeSet<_> = told.filter_map(|id| WorkerId::try_from(id).ok()).collect();
        let held = node.units.held.keys();
        let gone = held.filter(|id| !told.contains(id) && !node.workers.contains(id));
        let gone: Vec<_> = gone.cloned().collect();
        for id in gone {
            self.free_units(name, &id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> WorkerId {
        format!("train/{slot}.{}", slot + 1).parse().unwrap()
    }

    fn gpus(units: &[u32]) -> Vec<ResourceUnits> {
        vec![ResourceUnits {
            name: "gpu".to_owned(),
            units: units.to_vec(),
        }]
    }

    #[test]
    fn no_two_workers_have_the_same_unit_and_what_is_free_again_is_given_again() {
        let capacity = Counts::from([("gpu".to_owned(), 4)]);
        let wanted = |count| Counts::from([("gpu".to_owned(), count)]);
        let mut units = Units::default();
        // As told by a node that had more of them before.
        units.note(&id(0), &gpus(&[1, 7]));

        assert_eq!(units.give(&id(1), &wanted(2), &capacity), gpus(&[0, 2]));
        assert_eq!(units.used()["gpu"], 4);
        assert!(units.take_back(&id(0)) && !units.take_back(&id(0)));
        assert_eq!(units.give(&id(2), &wanted(2), &capacity), gpus(&[1, 3]));
        assert_eq!(units.of(&id(2)), gpus(&[1, 3]));
        assert!(units.give(&id(3), &Counts::new(), &capacity).is_empty());
    }
}
