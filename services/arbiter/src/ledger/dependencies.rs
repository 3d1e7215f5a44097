//! Pools that depend on others: in which order they start and end, and which orders there cannot be.
//!
//! A pool starts no worker while one it depends on has none ready. It does not end when that one dies.
//! Where several pools end with a grace, one that others depend on is held back until those are gone,
//! but no longer than half of the time it has without its owner, so that it can still end in good order.

use std::collections::BTreeSet;

use tether_clock::Tick;
use tether_proto::Failure;
use tether_types::{DeathCause, OwnerName, PoolName, Reason};

use super::Ledger;
use crate::spec::Resolved;

impl Ledger {
    /// Refuses a pool that depends on one it cannot wait for.
    ///
    /// # Errors
    /// Names the pools, and what to do.
    pub(super) fn check_dependencies(
        &self,
        pool: &Resolved,
        owner: &OwnerName,
    ) -> Result<(), Failure> {
        let refused = |why: String| {
            let text = format!("`depends_on` of pool `{}` is refused: {why}", pool.name);
            Err(Failure::new(Reason::ConfigInvalid, text))
        };
        for other in &pool.depends_on {
            if *other == pool.name {
                return refused("it names the pool itself; leave that out".to_owned());
            }
            let Some(known) = self.pools.get(other) else {
                return refused(format!("there is no pool `{other}`; apply that one first"));
            };
            let its_owner = match &known.next {
                Some(next) => &next.owner,
                None if known.is_ending() => {
                    return refused(format!("pool `{other}` is ending; apply that one first"));
                }
                None => known.owner(),
            };
            if its_owner != owner {
                return refused(format!(
                    "pool `{other}` belongs to owner `{its_owner}`, not to `{owner}`; depend on your own pools only"
                ));
            }
        }
        let mut path = vec![&pool.name];
        if self.leads_back(
            &pool.name,
            &pool.depends_on,
            &mut path,
            &mut BTreeSet::new(),
        ) {
            let path: Vec<_> = path.iter().map(|name| format!("`{name}`")).collect();
            return refused(format!(
                "each of these would wait for the next: {}; take one of them out",
                path.join(" -> ")
            ));
        }
        Ok(())
    }

    /// Whether one of these pools depends on `target`, by way of others too; `path` is then the way.
    fn leads_back<'a>(
        &'a self,
        target: &'a PoolName,
        from: &'a [PoolName],
        path: &mut Vec<&'a PoolName>,
        seen: &mut BTreeSet<&'a PoolName>,
    ) -> bool {
        for other in from {
            path.push(other);
            if other == target {
                return true;
            }
            if seen.insert(other)
                && let Some(pool) = self.pools.get(other)
            {
                // What a pool is and what it will be: while it ends, both count.
                let next = pool.next.as_ref().map(|next| &*next.resolved.depends_on);
                for further in [&*pool.resolved.depends_on, next.unwrap_or_default()] {
                    if self.leads_back(target, further, path, seen) {
                        return true;
                    }
                }
            }
            path.pop();
        }
        false
    }

    /// A pool that this one depends on and that has no ready worker.
    pub(super) fn missing_dependency(&self, name: &PoolName) -> Option<&PoolName> {
        let ready = |other: &PoolName| {
            let pool = self.pools.get(other);
            pool.is_some_and(|pool| pool.places.values().any(|place| place.is_ready()))
        };
        let depends_on = &self.pools.get(name)?.resolved.depends_on;
        depends_on.iter().find(|other| !ready(other))
    }

    /// A worker of this pool is ready: those that depend on it may start, and be recycled.
    pub(super) fn wake_dependents(&mut self, name: &PoolName, now: Tick) {
        for dependent in self.dependents(name) {
            self.place_waiting_of(&dependent, now);
            self.recycle_next(&dependent, now);
            self.roll(&dependent, now);
        }
    }

    fn dependents(&self, name: &PoolName) -> Vec<PoolName> {
        let dependents = self
            .pools
            .values()
            .filter(|pool| pool.resolved.depends_on.contains(name));
        dependents.map(|pool| pool.name().clone()).collect()
    }

    /// Ends pools, those that others depend on after those others.
    pub(super) fn end_pools_in_order(
        &mut self,
        names: &[PoolName],
        cause: DeathCause,
        grace_ms: Option<u64>,
        now: Tick,
    ) {
        // All of them are ending before the first one is stopped, as that is what others wait for.
        for name in names {
            self.mark_ending(name, cause);
        }
        for name in names {
            let held = grace_ms != Some(0) && self.is_needed(name);
            if let Some(pool) = self.pools.get_mut(name) {
                pool.held = held;
            }
            self.stop_pool(name, cause, grace_ms, now);
        }
    }

    /// Whether a pool that is ending depends on this one.
    fn is_needed(&self, name: &PoolName) -> bool {
        let mut pools = self.pools.values();
        pools.any(|pool| pool.is_ending() && pool.resolved.depends_on.contains(name))
    }

    /// After a restart: what was held back is held back again.
    pub(super) fn hold_needed(&mut self) {
        let ending = self.pools.values().filter(|pool| pool.is_ending());
        let needed: Vec<_> = ending
            .filter(|pool| self.is_needed(pool.name()))
            .map(|pool| pool.name().clone())
            .collect();
        for name in needed {
            if let Some(pool) = self.pools.get_mut(&name) {
                pool.held = true;
            }
        }
    }

    /// A pool is gone: what it depended on need not wait for it.
    pub(super) fn release_dependencies(&mut self, gone: &Resolved, now: Tick) {
        for name in &gone.depends_on {
            let held = self.pools.get(name).is_some_and(|pool| pool.held);
            if held && !self.is_needed(name) {
                self.release(name, now);
            }
        }
    }

    /// Holds a pool back no longer.
    pub(super) fn release(&mut self, name: &PoolName, now: Tick) {
        if let Some(pool) = self.pools.get_mut(name) {
            pool.held = false;
        }
        self.fill(name, now);
    }
}
