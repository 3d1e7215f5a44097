//! Slots for addresses that come without any: by position in the sorted set. Pure.

use std::collections::BTreeSet;

use tether_proto::common::{Endpoint, WorkerRef};
use tether_types::{Address, PoolName, Slot};

/// Remembers which address has which slot.
#[derive(Debug)]
pub(crate) struct Slots {
    pool: PoolName,
    taken: Vec<(Address, u64)>,
    last_incarnation: u64,
}

impl Slots {
    /// No slots yet. Incarnations start after `before`, which should be larger in each life of the
    /// service, so that a gateway never sees one address under another's incarnation (D5).
    pub(crate) fn new(pool: PoolName, before: u64) -> Self {
        Self {
            pool,
            taken: Vec::new(),
            last_incarnation: before,
        }
    }

    /// The endpoints for this set of addresses. A slot whose address changed is another incarnation.
    pub(crate) fn assign(&mut self, addresses: BTreeSet<Address>) -> Vec<Endpoint> {
        let before = std::mem::take(&mut self.taken);
        let mut before = before.into_iter();
        for address in addresses {
            let incarnation = match before.next() {
                Some((same, incarnation)) if same == address => incarnation,
                _ => {
                    self.last_incarnation += 1;
                    self.last_incarnation
                }
            };
            self.taken.push((address, incarnation));
        }
        let slots = 0..Slot::MAX;
        slots
            .zip(&self.taken)
            .map(|(slot, (address, incarnation))| Endpoint {
                worker: Some(WorkerRef {
                    pool: self.pool.to_string(),
                    slot,
                    incarnation: *incarnation,
                }),
                address: address.to_string(),
                node: String::new(),
                draining: false,
                // Nobody could replace what no agent runs.
                count_calls: false,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// D5
        #[test]
        fn an_incarnation_of_a_slot_has_one_address_for_ever(
            sets in collection::vec(collection::btree_set(1u16..9, 0..6), 1..20)
        ) {
            let mut slots = Slots::new(PoolName::new("p").unwrap(), 100);
            let mut seen: BTreeMap<(u32, u64), String> = BTreeMap::new();
            for ports in sets {
                let host = || "10.0.0.1".to_owned();
                let set: BTreeSet<_> = ports.iter().map(|&port| Address::Tcp { host: host(), port }).collect();
                let endpoints = slots.assign(set.clone());

                prop_assert_eq!(endpoints.len(), set.len());
                for (number, endpoint) in endpoints.into_iter().enumerate() {
                    let worker = endpoint.worker.unwrap();
                    prop_assert_eq!(worker.slot as usize, number);
                    prop_assert!(worker.incarnation > 100);
                    let known = seen
                        .entry((worker.slot, worker.incarnation))
                        .or_insert_with(|| endpoint.address.clone());
                    prop_assert_eq!(known.as_str(), endpoint.address);
                }
            }
        }
    }
}
