//! What a node says of all its workers in one number, so that both sides see when they know different things.

use crate::{WorkerId, stable};

/// A set of workers and the phase of each. It does not depend on the order in which they came, and one
/// that changed costs the same however many there are.
///
/// Two different sets of which nobody chose the members have the same digest once in 2^64.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    sum: u64,
    count: u32,
}

impl Digest {
    /// Takes a worker in that is in this phase, as the wire numbers phases.
    pub fn add(&mut self, id: &WorkerId, phase: i32) {
        self.sum = self.sum.wrapping_add(mix(id, phase));
        self.count = self.count.wrapping_add(1);
    }

    /// Takes one out that was taken in with this phase.
    pub fn remove(&mut self, id: &WorkerId, phase: i32) {
        self.sum = self.sum.wrapping_sub(mix(id, phase));
        self.count = self.count.wrapping_sub(1);
    }

    /// The number that stands for the set.
    pub const fn sum(self) -> u64 {
        self.sum
    }

    /// How many workers are in it.
    pub const fn count(self) -> u32 {
        self.count
    }
}

/// One worker's part. Must never change: agents and arbiters of two versions compare them.
fn mix(id: &WorkerId, phase: i32) -> u64 {
    // Finished each, as sums of FNV alone cancel out for neighbouring slots.
    let bytes = id.pool.as_str().bytes().chain([0]);
    let bytes = bytes.chain(id.slot.to_le_bytes());
    let bytes = bytes.chain(id.incarnation.0.to_le_bytes());
    stable::finish(stable::fnv1a(bytes.chain(phase.to_le_bytes())))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{Incarnation, PoolName};

    fn worker(pool: &str, slot: u32, incarnation: u64) -> WorkerId {
        WorkerId {
            pool: PoolName::new(pool).unwrap(),
            slot,
            incarnation: Incarnation(incarnation),
        }
    }

    fn of(set: &BTreeMap<WorkerId, i32>) -> Digest {
        let mut digest = Digest::default();
        for (id, phase) in set.iter().rev() {
            digest.add(id, *phase);
        }
        digest
    }

    #[test]
    fn what_came_and_went_leaves_no_trace_and_every_difference_shows() {
        let (mut set, mut kept, mut seen) = (BTreeMap::new(), Digest::default(), BTreeSet::new());
        let mut random = 7_u64;
        for _ in 0..20_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let bits = random >> 33;
            let pool = ["a", "b", "ab"][(bits % 3) as usize];
            let id = worker(pool, (bits >> 2) as u32 % 5, (bits >> 5) % 5);
            let phase = (bits >> 9) as i32 % 4;

            let before = if phase == 0 {
                set.remove(&id)
            } else {
                set.insert(id.clone(), phase)
            };
            if let Some(before) = before {
                kept.remove(&id, before);
            }
            if phase != 0 {
                kept.add(&id, phase);
            }

            assert_eq!(kept, of(&set));
            seen.insert((set.clone(), kept.sum()));
        }
        let sets: BTreeSet<_> = seen.iter().map(|(set, _)| set).collect();
        let sums: BTreeSet<_> = seen.iter().map(|(_, sum)| sum).collect();
        assert_eq!(sets.len(), sums.len(), "two sets have one digest");
    }

    #[test]
    fn a_digest_is_the_same_in_every_version() {
        let mut digest = Digest::default();
        digest.add(&worker("digits", 3, 17), 3);

        assert_eq!(
            (digest.sum(), digest.count()),
            (11_021_203_773_479_551_004, 1)
        );
    }
}
