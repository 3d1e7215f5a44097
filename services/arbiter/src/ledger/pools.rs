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
    effects::{Effects, keys},
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
    pub(super) loss: Option<Loss>,
    /// Why it is being ended, where it is.
    pub(super) ending: Option<DeathCause>,
    /// What to become when its last worker is gone, where it was applied anew while ending.
    pub(super) next: Option<Next>,
}

/// A pool to be.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) resolved: Resolved,
    pub(super) owner: OwnerName,
    /// When it was asked for: its owner's word counts from there.
    pub(super) contact: Tick,
}

impl Next {
    fn record(&self) -> PoolRecord {
        PoolRecord {
            spec: Some(self.resolved.spec.clone()),
            owner: self.owner.to_string(),
            mode_why: self.resolved.mode_why.clone(),
            ..PoolRecord::default()
        }
    }
}

impl Pool {
    pub(super) fn new(resolved: Resolved, owner: OwnerName, now: Tick) -> Self {
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

    /// How many places it is to have.
    pub(super) fn size(&self) -> Slot {
        if self.is_ending() {
            0
        } else {
            self.resolved.spec.size
        }
    }

    /// The cause to record for a worker that is one too many.
    pub(super) fn end_cause(&self) -> DeathCause {
        self.ending.unwrap_or(DeathCause::Ordered(Orderer::Scale))
    }

    /// True where it had been lost.
    pub(super) fn on_owner_back(&mut self, now: Tick) -> bool {
        self.contact = now;
        self.loss.take().is_some()
    }

    /// Gives up what it was to become, where `lost` says so.
    pub(super) fn give_up_next(&mut self, lost: impl Fn(&Next) -> bool) {
        self.next.take_if(|next| lost(next));
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
        self.permission(session).filter(|_| !self.is_ending())
    }

    fn record(&self) -> PoolRecord {
        PoolRecord {
            spec: Some(self.resolved.spec.clone()),
            owner: self.owner.to_string(),
            mode_why: self.resolved.mode_why.clone(),
            draining: self.draining,
            loss: self.loss.map_or("", Loss::name).to_owned(),
            ending: self.ending.map(|cause| super::nodes::lost(cause, "")),
            next: self.next.as_ref().map(|next| Box::new(next.record())),
        }
    }

    /// Has it written as it is.
    pub(super) fn write(&self, effects: &mut Effects) {
        effects.put(keys::pool(self.name()), self.record());
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
        if epoch != Epoch(0)
            && let Some(session) = self.sessions.get_mut(&owner)
        {
            // A sign of life like a beat: the owner cannot have beaten yet as often as this pool wants.
            session.contact = now;
            self.tell_nodes_of(&owner);
        }

        let name = resolved.name.clone();
        match self.pools.get_mut(&name) {
            Some(pool) if pool.is_ending() => {
                if let Some(next) = pool.next.as_ref().filter(|next| next.owner != owner) {
                    return Err(not_owner(&name, &next.owner, &owner));
                }
                // It comes back as asked for when the last of the old workers is gone (A1).
                pool.next = Some(Next {
                    resolved,
                    owner,
                    contact: now,
                });
                pool.write(&mut self.effects);
                return Ok(pool.view());
            }
            Some(pool) if pool.owner != owner => {
                return Err(not_owner(&name, &pool.owner, &owner));
            }
            Some(pool) => {
                for place in pool.places.values_mut() {
                    place.change_plan(resolved.plan, now);
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

    /// A pool that can be changed: one that is ending only ends, or is applied anew.
    fn lasting(&mut self, name: &str) -> Result<&mut Pool, Failure> {
        let name = self.pool_named(name)?.name().clone();
        let known = unknown_pool(name.as_str(), &self.pools);
        let pool = self.pools.get_mut(&name).ok_or(known)?;
        if pool.is_ending() {
            let text = format!("pool `{name}` is ending: apply it again to have it anew");
            return Err(Failure::new(Reason::Draining, text));
        }
        Ok(pool)
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
        let pool = self.lasting(name)?;
        let name = pool.name().clone();
        let spec = PoolSpec {
            size,
            ..pool.resolved.spec.clone()
        };
        let mode_why = pool.resolved.mode_why.clone();
        let resolved = spec::resolve(spec, &self.templates, &self.environment)?;
        if let Some(pool) = self.pools.get_mut(&name) {
            pool.resolved = Resolved {
                mode_why,
                ..resolved
            };
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
        let name = self.lasting(name)?.name().clone();
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
        if let Some(pool) = self.pools.get_mut(&name) {
            pool.next = None;
        }
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
        if pool.ending.replace(cause).is_none() {
            let text = format!("pool `{name}` ends: {cause}");
            self.effects
                .owner_event(EventKind::PoolChanged, &pool.owner, text);
        }
        // Until its last worker is gone it must be known to whoever comes after us (A4).
        pool.write(&mut self.effects);
        let slots: Vec<_> = pool.places.keys().copied().collect();
        for slot in slots {
            self.stop_place(name, slot, cause, grace_ms);
        }
        self.forget_ended(name, now);
    }

    pub(super) fn pool_changed(&mut self, name: &PoolName, how: &str, now: Tick) {
        if let Some(pool) = self.pools.get(name) {
            let text = format!(
                "pool `{name}` {how}: {} workers, mode {}",
                pool.resolved.spec.size, pool.resolved.mode
            );
            pool.write(&mut self.effects);
            self.effects
                .owner_event(EventKind::PoolChanged, &pool.owner, text);
        }
        self.fill(name, now);
    }
}

fn not_owner(pool: &PoolName, holder: &OwnerName, asking: &OwnerName) -> Failure {
    let text = format!(
        "pool `{pool}` belongs to owner `{holder}`, not to `{asking}`: choose another name for the pool"
    );
    Failure::new(Reason::NotOwner, text)
}
