//! In which pools it is found out how many calls a worker can take.

use std::collections::BTreeMap;

use tether_types::PoolName;

/// Of which pools how many calls a worker can take is found, where neither it nor its template says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adaptive {
    /// Whether of those that are not named.
    pub others: bool,
    /// Whether of these.
    pub pools: BTreeMap<PoolName, bool>,
}

impl Adaptive {
    pub(crate) fn is_on(&self, pool: &PoolName) -> bool {
        self.pools.get(pool).copied().unwrap_or(self.others)
    }
}
