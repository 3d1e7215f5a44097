//! Pools: desired state, and how long it may last without its owner.

use std::{sync::Arc, time::Duration};

use tether_clock::Tick;
use tether_lifecycle::{
    Facts, Launcher, LifecyclePolicy, Loss, OnOwnerLoss, OwnerSight, Surroundings,
};
use tether_proto::{
    Failure,
    pool::{self as wire, PoolSpec},
    worker::EventKind,
};
use tether_supervise::Starts;
use tether_types::{
    DeathCause, Epoch, Incarnation, NodeName, Orderer, OwnerName, PoolName, Reason, Slot,
};

use super::{
    Ledger, Session, millis, places::Places, placing::Spread, rollout::Rollout, slots::Place,
    unknown_pool,
};
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
    pub(super) places: Places<Place>,
    pub(super) draining: bool,
    /// The owner's last sign of life, where it has no session.
    contact: Tick,
    /// How the owner was lost, where it was.
    pub(super) loss: Option<Loss>,
    /// Why it is being ended, where it is.
    pub(super) ending: Option<DeathCause>,
    /// What to become when its last worker is gone, where it was applied anew while ending.
    pub(super) next: Option<Next>,
    /// Whether its ready workers are left alone, although it is ending, for others that depend on it.
    pub(super) held: bool,
    /// How many workers may be started, and when the next may be, where one waits for that.
    pub(super) starts: Starts,
    pub(super) starts_at: Option<Tick>,
    /// Whether no worker of it can be on a node that was not heard: it was made by this very arbiter.
    pub(super) never_owned: bool,
    /// The pool its workers wait for, as was told, and why there is no node for them.
    pub(super) waits_for: Option<PoolName>,
    pub(super) no_node: Option<String>,
    /// How evenly they are spread over nodes.
    pub(super) spread: Spread,
    /// How far it is with replacing them.
    pub(super) rollout: Rollout,
    /// The longest that any of its workers may have been told to outlive their node's lease.
    pub(super) longest: Outliving,
    /// When what nodes are told of it changed last, see [`Ledger::stamp`].
    pub(super) stamp: u64,
}

/// How long workers outlive the lease of their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outliving {
    /// After its end.
    pub(super) grace: Duration,
    /// With a job, after the node was last heard.
    job_ttl: Duration,
}

impl Outliving {
    pub(super) fn of(policy: &LifecyclePolicy) -> Self {
        Self {
            grace: policy.partition_grace,
            job_ttl: policy.job_ttl,
        }
    }

    /// After the end of the lease, with a job.
    pub(super) fn with_job(self, node_ttl: Duration) -> Duration {
        self.grace.max(self.job_ttl.saturating_sub(node_ttl))
    }

    fn or(self, other: Self) -> Self {
        Self {
            grace: self.grace.max(other.grace),
            job_ttl: self.job_ttl.max(other.job_ttl),
        }
    }
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
        let starts = Starts::new(resolved.spec.starts_per_second);
        Self {
            longest: Outliving::of(&resolved.policy),
            resolved,
            owner,
            places: Places::default(),
            draining: false,
            contact: now,
            loss: None,
            ending: None,
            next: None,
            held: false,
            starts,
            starts_at: None,
            never_owned: false,
            waits_for: None,
            no_node: None,
            spread: Spread::default(),
            rollout: Rollout::default(),
            stamp: super::FIRST_STAMP,
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

    /// How many places it is to have, those of spares included: no worker needs no spare.
    pub(super) fn size(&self) -> Slot {
        match (self.is_ending(), self.resolved.spec.size) {
            (true, _) | (false, 0) => 0,
            (false, size) => size.saturating_add(self.resolved.spec.spares),
        }
    }

    /// Whether there is to be a worker in a place.
    pub(super) fn wants(&self, slot: Slot) -> bool {
        slot < self.size() || self.rollout.stands_in(slot)
    }

    /// Whether the worker in a place is left alone for others that depend on it.
    pub(super) fn holds(&self, slot: Slot) -> bool {
        self.held && self.places.get(slot).is_some_and(|place| place.is_ready())
    }

    /// Whether its workers die with their owner's process. Not after a goodbye: what becomes of them
    /// was decided by that, and the process may end at any time after it.
    pub(super) fn dies_with_owner(&self) -> bool {
        self.policy().on_owner_exit == OnOwnerLoss::Kill && self.loss != Some(Loss::OwnerLeft)
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

    /// When what nodes are told of it changed last. A word of its owner changes nothing where the workers
    /// may go on without one.
    pub(super) fn stamp(&self, session: Option<&Session>) -> u64 {
        let word = session.filter(|_| self.permission(session).is_some());
        let opened = session.map_or(0, |session| session.opened);
        let word = word.map_or(0, |session| session.word);
        self.stamp.max(opened).max(word)
    }

    pub(super) fn next_deadline(&self, session: Option<&Session>) -> Option<Tick> {
        let permission = self.permission(session);
        let end = match (self.is_ending(), self.held) {
            (false, _) => permission,
            (true, true) => {
                permission.map(|end| end.saturating_sub(self.policy().heartbeat_timeout / 2))
            }
            (true, false) => None,
        };
        end.into_iter().chain(self.starts_at).min()
    }

    /// Makes it what its owner wants. Workers that run go on; what was given up is tried again.
    fn change(&mut self, resolved: Resolved, more_may_live: bool, highest: u64, now: Tick) {
        if self.resolved.is_outdated_by(&resolved) && resolved.replaces_on_change() {
            self.rollout.fresh_after = Incarnation(highest);
        }
        // Whoever was told a longer time keeps it until it hears otherwise, and may never (A1).
        let wanted = Outliving::of(&resolved.policy);
        let any_lives = self.places.values().any(|place| place.live.is_some());
        self.longest = match more_may_live || any_lives {
            true => self.longest.or(wanted),
            false => wanted,
        };
        for place in self.places.values_mut() {
            place.change_plan(Arc::clone(&resolved.plan), now);
        }
        self.starts.change(resolved.spec.starts_per_second);
        self.resolved = resolved;
        self.rollout.on_size(self.size());
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
            longest_grace_ms: millis(self.longest.grace),
            longest_job_ttl_ms: millis(self.longest.job_ttl),
            fresh_after: self.rollout.fresh_after.0,
            extra: self.rollout.places().collect(),
        }
    }

    /// Takes over what an earlier arbiter may have told its workers.
    pub(super) fn restore_longest(&mut self, record: &PoolRecord) {
        self.longest = self.longest.or(Outliving {
            grace: Duration::from_millis(record.longest_grace_ms),
            job_ttl: Duration::from_millis(record.longest_job_ttl_ms),
        });
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
            ready: count(|place| place.serves),
            live: count(Place::is_live),
            draining: self.draining,
            ending: self.is_ending(),
            waits_for: self.why_waiting(),
            stale: self.rollout.stale,
            rollout_waits_for: self.rollout.waits_for.clone(),
        }
    }

    /// Why a worker that is due is not started; empty where none is held up.
    pub(super) fn why_waiting(&self) -> String {
        let pool = self.waits_for.as_ref();
        let pool = pool.map(|other| format!("pool `{other}` has no ready worker"));
        pool.or_else(|| self.no_node.clone()).unwrap_or_default()
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
        // Whoever applies it, what is to be watched is the process of its owner.
        let facts = self.facts(self.sessions.get(&owner));
        let found = Surroundings {
            launchers: facts.launchers.clone(),
            owner: Some(facts.owner),
            ..self.surroundings.clone()
        };
        let resolved = spec::resolve(spec, &self.templates, &found)?;
        spec::check_needs(&resolved, &facts)?;
        self.check_dependencies(&resolved, &owner)?;
        self.check_in_sight(&resolved, &owner)?;
        let others = self.pools.values().map(|pool| &pool.resolved);
        for other in others.filter(|other| other.name != resolved.name) {
            resolved.check_apart_from(other)?;
        }
        if epoch != Epoch(0)
            && let Some(session) = self.sessions.get_mut(&owner)
        {
            // A sign of life like a beat: the owner cannot have beaten yet as often as this pool wants.
            session.contact = now;
            self.stamp += 1;
            session.word = self.stamp;
            self.tell_nodes_of(&owner);
        }

        let name = resolved.name.clone();
        self.claim_from_registry(&name)?;
        let more_may_live = self.awaits_any_of(&name);
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
                pool.change(resolved, more_may_live, self.highest, now);
                pool.on_owner_back(now);
                self.stamp += 1;
                pool.stamp = self.stamp;
            }
            None => {
                let mut pool = Pool::new(resolved, owner.clone(), now);
                pool.never_owned = !self.lost_pools;
                self.pools.insert(name.clone(), pool);
                self.effects.put_empty(tether_store::keys::pool(&name));
            }
        }
        // Its policy may be another: what is told of running workers changes with it.
        self.tell_nodes_of(&owner);
        self.pool_changed(&name, "applied", now);
        self.get_pool(name.as_str())
    }

    /// Refuses to couple workers that already run where their owner's process cannot be watched.
    fn check_in_sight(&self, pool: &Resolved, owner: &OwnerName) -> Result<(), Failure> {
        let (Some(running), Some(process)) = (
            self.pools.get(&pool.name),
            self.sessions
                .get(owner)
                .and_then(|session| session.process.as_ref()),
        ) else {
            return Ok(());
        };
        let kills = |policy: &LifecyclePolicy| policy.on_owner_exit == OnOwnerLoss::Kill;
        if running.is_ending() || kills(running.policy()) || !kills(&pool.policy) {
            return Ok(());
        }
        let places = running.places.values();
        let mut nodes = places.filter_map(|place| place.live.as_ref()?.node.as_ref());
        let blind = |name: &&NodeName| !self.nodes.get(name).is_some_and(|node| node.sees(process));
        match nodes.find(blind) {
            None => Ok(()),
            Some(node) => {
                let text = format!(
                    "pool `{}` cannot be switched to mode `{}` while it runs: it has workers on node `{node}`, where the process of owner `{owner}` cannot be watched; delete the pool and apply it again",
                    pool.name, pool.mode
                );
                Err(Failure::new(Reason::ModeForbids, text).fact("field", "mode"))
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
        found.ok_or_else(|| self.no_pool(name))
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

    /// Changes a pool's size; of one that has another size than `from`, where that is given, nothing.
    ///
    /// # Errors
    /// When there is no such pool, or the size is refused.
    pub(crate) fn scale_pool(
        &mut self,
        name: &str,
        size: u32,
        from: Option<u32>,
        now: Tick,
    ) -> Result<wire::Pool, Failure> {
        let pool = self.lasting(name)?;
        let name = pool.name().clone();
        if from.is_some_and(|from| from != pool.resolved.spec.size) {
            return self.get_pool(name.as_str());
        }
        let spec = PoolSpec {
            size,
            ..pool.resolved.spec.clone()
        };
        let mode_why = pool.resolved.mode_why.clone();
        let resolved = spec::resolve(spec, &self.templates, &self.surroundings)?;
        let more_may_live = self.awaits_any_of(&name);
        if let Some(pool) = self.pools.get_mut(&name) {
            let resolved = Resolved {
                mode_why,
                ..resolved
            };
            pool.change(resolved, more_may_live, self.highest, now);
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
        self.end_pools_in_order(&[name], DeathCause::Ordered(Orderer::Scale), None, now);
        Ok(())
    }

    /// Notes that a pool is to end. A later, harder order overrides an earlier one.
    pub(super) fn mark_ending(&mut self, name: &PoolName, cause: DeathCause) {
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        pool.rollout.end();
        if pool.ending.replace(cause).is_none() {
            let text = format!("pool `{name}` ends: {cause}");
            self.effects
                .owner_event(EventKind::PoolChanged, &pool.owner, text);
        }
        // Until its last worker is gone it must be known to whoever comes after us (A4).
        pool.write(&mut self.effects);
    }

    /// Ends every worker of a pool that is ending, but those that are held back; then forgets it.
    pub(super) fn stop_pool(
        &mut self,
        name: &PoolName,
        cause: DeathCause,
        grace_ms: Option<u64>,
        now: Tick,
    ) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        let slots: Vec<_> = pool.places.slots().collect();
        for slot in slots {
            if self.pools.get(name).is_some_and(|pool| pool.holds(slot)) {
                self.schedule(name, slot);
            } else {
                self.stop_place(name, slot, cause, grace_ms);
            }
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
