//! Slots and incarnations for addresses that come without any. Pure, and without a memory: replicas of discovery,
//! and one that was restarted, give an address the same numbers.

use std::collections::BTreeMap;

use tether_discovery_backends::Traits;
use tether_proto::common::{Endpoint, EndpointHealth, WorkerRef};
use tether_types::{Address, PoolName, Slot, stable};

/// An address comes and goes without a change to the slots of the others, save where two addresses have one hash.
const SLOTS: u64 = 1 << 31;

/// What is told of one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) traits: Traits,
    pub(crate) health: EndpointHealth,
}

/// The endpoints for these members. Another identity at the same address is another incarnation, and an incarnation
/// of a slot has one address for ever (D5).
pub(crate) fn number(pool: &PoolName, members: &BTreeMap<Address, Member>) -> Vec<Endpoint> {
    let mut taken: BTreeMap<Slot, Endpoint> = BTreeMap::new();
    for (address, member) in members {
        let text = address.to_string();
        let mut slot = hash(&[&text]) % SLOTS;
        let free = loop {
            let candidate = Slot::try_from(slot).unwrap_or_default();
            if !taken.contains_key(&candidate) {
                break candidate;
            }
            slot = (slot + 1) % SLOTS;
        };
        // As long as most programs can count, and never 0.
        let incarnation = hash(&[&text, &member.traits.identity]) >> 32 | 1;
        let traits = &member.traits;
        let endpoint = Endpoint {
            worker: Some(WorkerRef {
                pool: pool.to_string(),
                slot: free,
                incarnation,
            }),
            address: text,
            // No agent runs it, and nobody could replace what no agent runs.
            node: String::new(),
            count_calls: false,
            draining: traits.draining,
            zone: traits.zone.clone(),
            weight: traits.weight,
            capacity: traits.capacity,
            protocol: traits.protocol.clone(),
            health: member.health.into(),
            epoch: 0,
            fates: String::new(),
        };
        taken.insert(free, endpoint);
    }
    taken.into_values().collect()
}

fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    stable::finish(stable::fnv1a(bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection, prelude::*};

    use super::*;

    fn members(ports: &BTreeSet<u16>, identity: &str) -> BTreeMap<Address, Member> {
        let member = |&port: &u16| {
            let host = "10.0.0.1".to_owned();
            let traits = Traits {
                identity: identity.to_owned(),
                ..Traits::default()
            };
            let health = EndpointHealth::Unspecified;
            (Address::Tcp { host, port }, Member { traits, health })
        };
        ports.iter().map(member).collect()
    }

    fn numbers(ports: &BTreeSet<u16>, identity: &str) -> BTreeMap<String, (Slot, u64)> {
        let endpoints = number(&PoolName::new("p").unwrap(), &members(ports, identity));
        let numbers = endpoints.into_iter().map(|endpoint| {
            let worker = endpoint.worker.unwrap();
            (endpoint.address, (worker.slot, worker.incarnation))
        });
        numbers.collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// D5
        #[test]
        fn an_incarnation_of_a_slot_has_one_address_for_ever(
            sets in collection::vec(collection::btree_set(any::<u16>(), 0..50), 1..20)
        ) {
            let mut seen: BTreeMap<(Slot, u64), String> = BTreeMap::new();
            for set in sets {
                let numbered = numbers(&set, "");
                prop_assert_eq!(numbered.len(), set.len());
                for (address, worker) in numbered {
                    prop_assert!(worker.1 > 0);
                    let known = seen.entry(worker).or_insert_with(|| address.clone());
                    prop_assert_eq!(known.as_str(), address);
                }
            }
        }
    }

    #[test]
    fn who_comes_and_goes_changes_nothing_for_others_and_another_identity_is_another_worker() {
        let all: BTreeSet<u16> = (1..2_000).collect();
        let some: BTreeSet<u16> = all.iter().copied().filter(|port| port % 3 == 0).collect();
        let (of_all, of_some) = (numbers(&all, ""), numbers(&some, ""));
        assert!(
            of_some
                .iter()
                .all(|(address, worker)| of_all[address] == *worker)
        );

        for (address, (slot, incarnation)) in numbers(&some, "another") {
            let (before, other) = of_some[&address];
            assert!(slot == before && incarnation != other, "{address}");
        }
    }
}
