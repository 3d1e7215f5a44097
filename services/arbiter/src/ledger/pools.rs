//! Pools: desired state, and how long it may last without its owner.

use std::collections::BTreeMap;

use tether_clock::Tick;
use tether_lifecycle::{Facts, Launcher, LifecyclePolicy, Loss, OnOwnerLoss, OwnerSight};
use tether_proto::{
    Failure,
    pool::{self as wire, PoolSpec},
    worker::EventKind,
};
use tether_types::{DeathCause, Epoch, Orderer, OwnerName, PoolName, Reason, Slot};

use super::{Ledger, Session, slots::Place, unknown_pool};
use crate::{
    effects::keys,
    record::PoolRecord,
    spec::{self, Resolved},
};

/// A pool and its places.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) resolved: Resolved,
    owner: OwnerName,
    pub(super) places: BTreeMap<Slot, Place>,
    pub(super) draining: bool,
    /// The owner's last sign of life, where it has no session.
    contact: Tick,
    /// How the owner was lost, where it was.
    loss: Option<Loss>,
    /// Why it is being ended, where it is.
    ending: Option<DeathCause>,
    /// What to become when its last worker is gone, where it was applied anew while ending.
    next: Option<(Resolved, OwnerName)>,
}

impl Pool {
    fn new(resolved: Resolved, owner: OwnerName, now: Tick) -> Self {
        Self {
            resolved,
            owner,
            places: BTreeMap::new(),
            draining: false,
            contact: now,
            loss: None,
            ending: None,
            next: None,
        }
    }

    pub(super) fn name(&self) -> &PoolName {
        &self.resolved.name
    }

    pub(super) fn owner(&self) -> &OwnerName {
        &self.owner
    }

    pub(super) fn policy(&self) -> &LifecyclePolicy {
        &self.resolved.policy
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub(super) fn on_owner_back(&mut self, now: Tick) {
        self.contact = now;
        self.loss = None;
    }

    pub(super) fn on_owner_lost(&mut self, loss: Loss, contact: Tick) {
        self.contact = contact;
        self.loss = Some(loss);
    }

    /// Until when its workers may go on without further word of the owner; none for as long as their
    /// node has its lease.
    pub(super) fn permission(&self, session: Option<&Session>) -> Option<Tick> {
        let contact = session.map_or(self.contact, |session| session.contact);
        let answer = match self.loss {
            Some(Loss::OwnerExited) => self.policy().on_owner_exit,
            Some(Loss::OwnerLeft) => self.policy().on_owner_goodbye,
            _ => self.policy().on_owner_silent,
        };
        match answer {
            OnOwnerLoss::Continue => None,
            OnOwnerLoss::RunForTimeout | OnOwnerLoss::Kill => {
                Some(contact + self.policy().heartbeat_timeout)
            }
        }
    }

    pub(super) fn next_deadline(&self, session: Option<&Session>) -> Option<Tick> {
        let places = self.places.values().filter_map(Place::next_deadline);
        let end = self.permission(session).filter(|_| !self.is_ending());
        places.chain(end).min()
    }

    fn record(&self) -> PoolRecord {
        PoolRecord {
            spec: Some(self.resolved.spec.clone()),
            owner: self.owner.to_string(),
            mode_why: self.resolved.mode_why.clone(),
            draining: self.draining,
        }
    }

    fn view(&self) -> wire::Pool {
        let count = |what: fn(&Place) -> bool| {
            u32::try_from(self.places.values().filter(|place| what(place)).count())
                .unwrap_or(u32::MAX)
        };
        wire::Pool {
            spec: Some(self.resolved.spec.clone()),
            owner: self.owner.to_string(),
            mode_why: self.resolved.mode_why.clone(),
            ready: count(Place::is_ready),
            live: count(Place::is_live),
            draining: self.draining,
            ending: self.is_ending(),
        }
    }
}

impl Ledger {
    /// Makes a pool as its owner wants it.
    ///
    /// # Errors
    /// Says which part of it is refused, and why.
    pub(crate) fn apply_pool(
        &mut self,
        spec: PoolSpec,
        owner: OwnerName,
        epoch: Epoch,
        now: Tick,
    ) -> Result<wire::Pool, Failure> {
        if epoch != Epoch(0) {
            self.live_session(&owner, epoch)?;
        }
        let resolved = spec::resolve(spec, &self.templates, &self.environment)?;
        let session = if epoch == Epoch(0) {
            None
        } else {
            self.sessions.get(&owner)
        };
        spec::check_needs(&resolved, &self.facts(session))?;

        let name = resolved.name.clone();
        match self.pools.get_mut(&name) {
            Some(pool) if pool.is_ending() => {
                // It comes back as asked for when the last of the old workers is gone (A1).
                pool.next = Some((resolved, owner));
                return Ok(pool.view());
            }
            Some(pool) if pool.owner != owner => {
                return Err(Failure::new(
                    Reason::NotOwner,
                    format!(
                        "pool `{name}` belongs to owner `{}`, not to `{owner}`: choose another name for the pool",
                        pool.owner
                    ),
                ));
            }
            Some(pool) => {
                for place in pool.places.values_mut() {
                    place.change_plan(resolved.plan, self.highest, now);
                }
                pool.resolved = resolved;
                pool.on_owner_back(now);
            }
            None => {
                let pool = Pool::new(resolved, owner.clone(), now);
                self.pools.insert(name.clone(), pool);
                self.effects.put_empty(tether_store::keys::pool(&name));
            }
        }
        self.pool_changed(&name, "applied", now);
        self.get_pool(name.as_str())
    }

    pub(super) fn restore_pool(&mut self, name: &str, record: PoolRecord, now: Tick) {
        let resolved = record
            .spec
            .ok_or_else(|| Failure::new(Reason::ConfigInvalid, "the record has no pool in it"));
        let resolved =
            resolved.and_then(|spec| spec::resolve(spec, &self.templates, &self.environment));
        match (resolved, OwnerName::new(&record.owner)) {
            (Ok(mut resolved), Ok(owner)) => {
                resolved.mode_why = record.mode_why;
                let name = resolved.name.clone();
                let draining = record.draining;
                self.pools.insert(
                    name.clone(),
                    Pool {
                        draining,
                        ..Pool::new(resolved, owner, now)
                    },
                );
                self.fill(&name, now);
            }
            (Err(error), _) => {
                tracing::error!(pool = name, %error, "Cannot take up a pool of before")
            }
            (_, Err(error)) => {
                tracing::error!(pool = name, %error, "Cannot take up a pool of before")
            }
        }
    }

    /// What modes find here.
    fn facts(&self, session: Option<&Session>) -> Facts {
        let launchers = Launcher::ALL
            .iter()
            .copied()
            .filter(|launcher| self.nodes.values().any(|node| node.offers(*launcher)));
        let owner = match session.and_then(|session| session.process.as_ref()) {
            None => OwnerSight::NoIdentity,
            Some(process) if self.nodes.values().any(|node| node.sees(process)) => {
                OwnerSight::Observed
            }
            Some(_) => OwnerSight::Elsewhere,
        };
        Facts {
            launchers: launchers.collect(),
            owner,
            arbiter: true,
            discovery: true,
        }
    }

    pub(crate) fn get_pool(&self, name: &str) -> Result<wire::Pool, Failure> {
        Ok(self.pool_named(name)?.view())
    }

    fn pool_named(&self, name: &str) -> Result<&Pool, Failure> {
        let found = PoolName::new(name)
            .ok()
            .and_then(|name| self.pools.get(&name));
        found.ok_or_else(|| unknown_pool(name, &self.pools))
    }

    pub(crate) fn list_pools(&self) -> Vec<wire::Pool> {
        self.pools.values().map(Pool::view).collect()
    }

    /// Changes a pool's size.
    ///
    /// # Errors
    /// When there is no such pool, or the size is refused.
    pub(crate) fn scale_pool(
        &mut self,
        name: &str,
        size: u32,
        now: Tick,
    ) -> Result<wire::Pool, Failure> {
        let pool = self.pool_named(name)?;
        let spec = PoolSpec {
            size,
            ..pool.resolved.spec.clone()
        };
        let name = pool.name().clone();
        let mut resolved = spec::resolve(spec, &self.templates, &self.environment)?;
        if let Some(pool) = self.pools.get_mut(&name) {
            resolved.mode_why = std::mem::take(&mut pool.resolved.mode_why);
            pool.resolved = resolved;
        }
        self.pool_changed(&name, &format!("scaled to {size}"), now);
        self.get_pool(name.as_str())
    }

    /// Takes a pool out of service, or puts it back.
    ///
    /// # Errors
    /// When there is no such pool.
    pub(crate) fn drain_pool(
        &mut self,
        name: &str,
        draining: bool,
        now: Tick,
    ) -> Result<wire::Pool, Failure> {
        let name = self.pool_named(name)?.name().clone();
        if let Some(pool) = self.pools.get_mut(&name) {
            pool.draining = draining;
            for (&slot, place) in &pool.places {
                if let Some(endpoint) = place.endpoint(&name, slot, draining) {
                    self.effects
                        .put(tether_store::keys::endpoint(&name, slot), endpoint);
                }
            }
        }
        self.pool_changed(
            &name,
            if draining {
                "drained"
            } else {
                "put back into service"
            },
            now,
        );
        self.get_pool(name.as_str())
    }

    /// Ends a pool on an operator's order.
    ///
    /// # Errors
    /// When there is no such pool.
    pub(crate) fn delete_pool(&mut self, name: &str, now: Tick) -> Result<(), Failure> {
        let name = self.pool_named(name)?.name().clone();
        self.end_pool(&name, DeathCause::Ordered(Orderer::Scale), None, now);
        Ok(())
    }

    /// Ends every worker of a pool, then forgets it. A later, harder order overrides an earlier one.
    pub(super) fn end_pool(
        &mut self,
        name: &PoolName,
        cause: DeathCause,
        grace_ms: Option<u64>,
        now: Tick,
    ) {
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        pool.next = None;
        if pool.ending.replace(cause).is_none() {
            let text = format!("pool `{name}` ends: {cause}");
            self.effects
                .owner_event(EventKind::PoolChanged, &pool.owner.clone(), text);
            self.effects.delete(keys::pool(name));
        }
        let slots: Vec<_> = pool.places.keys().copied().collect();
        for slot in slots {
            self.stop_place(name, slot, cause, grace_ms);
        }
        self.fill(name, now);
    }

    pub(super) fn check_pools(&mut self, now: Tick) {
        let over: Vec<_> = self
            .pools
            .values()
            .filter(|pool| !pool.is_ending())
            .filter(|pool| {
                pool.permission(self.sessions.get(&pool.owner))
                    .is_some_and(|until| now >= until)
            })
            .map(|pool| pool.name().clone())
            .collect();
        for name in over {
            // The shims have ended the workers by now; this is for what is left of the pool.
            self.end_pool(&name, DeathCause::OwnerGone, Some(0), now);
        }
        let names: Vec<_> = self.pools.keys().cloned().collect();
        for name in names {
            self.fill(&name, now);
        }
    }

    fn pool_changed(&mut self, name: &PoolName, how: &str, now: Tick) {
        if let Some(pool) = self.pools.get(name) {
            let record = pool.record();
            let text = format!(
                "pool `{name}` {how}: {} workers, mode {}",
                pool.resolved.spec.size, pool.resolved.mode
            );
            let owner = pool.owner.clone();
            self.effects.put(keys::pool(name), record);
            self.effects
                .owner_event(EventKind::PoolChanged, &owner, text);
        }
        self.fill(name, now);
    }

    /// Brings places and workers closer to what is wanted.
    pub(super) fn fill(&mut self, name: &PoolName, now: Tick) {
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        let size = if pool.is_ending() {
            0
        } else {
            pool.resolved.spec.size
        };
        let surplus: Vec<_> = pool.places.range(size..).map(|(&slot, _)| slot).collect();
        for slot in surplus {
            self.stop_place(name, slot, DeathCause::Ordered(Orderer::Scale), None);
            self.drop_place(name, slot);
        }
        // Before every node of before was heard, nobody knows what still runs where (A1).
        if self.all_heard() {
            for slot in 0..size {
                self.fill_place(name, slot, now);
            }
        }
        self.forget_ended(name, now);
    }

    /// Forgets a pool that was ended and has no worker left, or makes it what it is to become.
    fn forget_ended(&mut self, name: &PoolName, now: Tick) {
        let done = self
            .pools
            .get(name)
            .is_some_and(|pool| pool.is_ending() && pool.places.is_empty());
        let Some(pool) = done.then(|| self.pools.remove(name)).flatten() else {
            return;
        };
        self.jobs.forget_pool(name, &mut self.effects);
        match pool.next {
            Some((resolved, owner)) => {
                self.pools
                    .insert(name.clone(), Pool::new(resolved, owner, now));
                self.pool_changed(name, "applied", now);
            }
            None => {
                self.effects.delete(tether_store::keys::pool(name));
                for slot in 0..pool.resolved.spec.size {
                    self.effects.delete(tether_store::keys::death(name, slot));
                }
                let text = format!("pool `{name}` is gone");
                self.effects
                    .owner_event(EventKind::PoolChanged, &pool.owner, text);
            }
        }
    }
}
