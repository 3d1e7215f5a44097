//! Registrations at work: what [`Registry`](crate::registry) decides is written, served, told and looked at in time.
//!
//! A pool of registrations is none of ours: nothing is started or ended in it, it has no owner and no record, and it
//! is there while it has registrations and for a while after. Of each there is one record, by which an arbiter that
//! starts knows whom not to give its name and its address to.

use std::{collections::BTreeMap, time::Duration};

use prost::Message as _;
use tether_clock::Tick;
use tether_history::{Freed, lease_of_registration};
use tether_lease::Terms;
use tether_proto::{
    Failure,
    common::{Endpoint, WorkerPhase, WorkerRef},
    pool as wire_pool, registry as wire,
    worker::{Event, EventKind, Worker},
};
use tether_store::{Entry, keys as serve, keys::ServeKey};
use tether_types::{DeathCause, Epoch, Incarnation, PoolName, Reason, WorkerId};

use super::{
    Ledger, Timed,
    epochs::{note_freed, note_granted},
    millis,
    nodes::lost,
    sessions::{usual_beat, wished_terms},
    unknown_pool,
};
use crate::{
    effects::keys,
    record::RegistrationRecord,
    registry::{Key, Member, Registrant, Seat},
};

/// Whatever is wished for: for so long may an address be nobody's after somebody was killed.
const TTL_MAX: Duration = Duration::from_secs(3_600);

/// What a pool of registrations has in the place of a mode.
const MODE: &str = "registered";

/// The answer to a beat.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RegistrationAck {
    pub(crate) ttl_ms: u64,
    pub(crate) beat_ms: u64,
}

impl Ledger {
    /// What this life holds for sure, so that nothing has to be written before it is told; none where that is to be
    /// seen to.
    ///
    /// # Errors
    /// As [`Registry::admit`](crate::registry::Registry::admit) says.
    pub(crate) fn resume_registration(
        &mut self,
        ask: &Registrant,
        now: Tick,
    ) -> Result<Option<Seat>, Failure> {
        for key in self.registry.in_the_way(ask) {
            self.end_if_over(&key, now);
        }
        let seat = self.registry.admit(ask, now)?;
        Ok(seat.filter(|seat| seat.is_written))
    }

    /// Registers a worker, or finds that this life has registered it.
    ///
    /// # Errors
    /// When its name or its address is another's, or agents run its pool.
    pub(crate) fn register(
        &mut self,
        ask: &Registrant,
        condition: wire::Condition,
        now: Tick,
    ) -> Result<Seat, Failure> {
        for key in self.registry.in_the_way(ask) {
            self.end_if_over(&key, now);
        }
        if let Some(seat) = self.registry.admit(ask, now)? {
            return Ok(seat);
        }
        let (pool, name) = &ask.key;
        if self.pools.contains_key(pool) {
            let text = format!(
                "pool `{pool}` is run by agents, and takes no registrations: register `{name}` in a pool of another name"
            );
            return Err(Failure::new(Reason::ModeForbids, text).fact("field", "pool"));
        }
        if ask.ttl > TTL_MAX {
            let text = format!(
                "a registration cannot have a `ttl` of {:?}: of one that is killed, the address would be nobody's for longer than {TTL_MAX:?}",
                ask.ttl
            );
            return Err(Failure::new(Reason::ConfigInvalid, text).fact("field", "ttl_ms"));
        }
        let terms = wished_terms("registration", ask.ttl, self.terms.node)?;
        let incarnation = self.next_incarnation();
        if self.registry.enter(ask, condition, terms, incarnation, now) {
            self.effects.put_empty(serve::pool(pool));
        }
        self.write_registration(&ask.key);
        self.watch_registration(&ask.key);
        let text = format!("registered as `{name}` at `{}`", ask.address);
        self.tell_of_registration(EventKind::WorkerRegistered, &ask.key, text);
        self.registry
            .admit(ask, now)?
            .ok_or_else(|| Failure::new(Reason::UnknownRegistration, "it is gone at once"))
    }

    /// The store has a registration.
    pub(crate) fn on_registered(&mut self, key: &Key, incarnation: Incarnation, now: Tick) {
        self.registry.on_written(key, incarnation);
        self.note_registration(key, now);
    }

    /// A beat of a registration.
    ///
    /// # Errors
    /// When it is not registered under that epoch.
    pub(crate) fn beat_registration(
        &mut self,
        key: &Key,
        epoch: Epoch,
        beat: (u64, u64),
        condition: Option<wire::Condition>,
        now: Tick,
    ) -> Result<RegistrationAck, Failure> {
        let heard = self.registry.beat(key, epoch, beat, condition, now)?;
        if heard.is_changed {
            self.write_registration(key);
        }
        if heard.ttl.is_some() {
            self.note_registration(key, now);
        }
        let terms = self.registry.get(key).map(|member| member.lease.terms());
        let ttl = terms.map_or(Duration::ZERO, |terms| terms.ttl());
        Ok(RegistrationAck {
            ttl_ms: heard.ttl.map_or(0, millis),
            beat_ms: millis(usual_beat(ttl)),
        })
    }

    /// Its holder says goodbye.
    ///
    /// # Errors
    /// When it is not registered under that epoch.
    pub(crate) fn deregister(&mut self, key: &Key, epoch: Epoch, now: Tick) -> Result<(), Failure> {
        self.registry.may_leave(key, epoch)?;
        let text = format!("deregistered by `{}`", key.1);
        self.tell_of_registration(EventKind::WorkerDeregistered, key, text);
        self.end_registration(key, Freed::Returned, now);
        Ok(())
    }

    /// The look at a registration that was armed for `at`.
    pub(super) fn check_registration(&mut self, key: &Key, at: Tick, now: Tick) {
        let Some(member) = self.registry.get_mut(key) else {
            return;
        };
        if member.armed == at {
            member.armed = Tick::NEVER;
            self.end_if_over(key, now);
            self.watch_registration(key);
        }
    }

    /// The look at what a pool keeps of registrations that are gone.
    pub(super) fn check_vacancy(&mut self, pool: &PoolName, at: Tick, now: Tick) {
        let crew = self.registry.crew_mut(pool);
        let Some(crew) = crew.filter(|crew| crew.armed == at) else {
            return;
        };
        crew.armed = Tick::NEVER;
        let vacated = self.registry.vacate(pool, now);
        for slot in vacated.graves {
            self.effects.delete(serve::death(pool, slot));
        }
        if vacated.is_all {
            self.effects.delete(serve::pool(pool));
        }
        self.watch_vacancy(pool);
    }

    /// Makes room for a pool that agents are to run.
    ///
    /// # Errors
    /// When registrations have its name.
    pub(super) fn claim_from_registry(&mut self, pool: &PoolName) -> Result<(), Failure> {
        let count = self.registry.count(pool);
        if count > 0 {
            let text = format!(
                "pool `{pool}` has {count} workers that were registered, and agents cannot run others in it: choose another name, or deregister those"
            );
            return Err(Failure::new(Reason::ModeForbids, text).fact("field", "name"));
        }
        for slot in self.registry.forget(pool) {
            self.effects.delete(serve::death(pool, slot));
        }
        Ok(())
    }

    /// What to say of a pool that agents do not run.
    pub(super) fn no_pool(&self, name: &str) -> Failure {
        let ours = PoolName::new(name).map_or(Ok(()), |pool| self.check_ours(&pool));
        ours.err()
            .unwrap_or_else(|| unknown_pool(name, &self.pools))
    }

    /// Whether what is asked for may be of a pool that agents run.
    ///
    /// # Errors
    /// When its workers were registered.
    pub(crate) fn check_ours(&self, pool: &PoolName) -> Result<(), Failure> {
        if !self.registry.knows(pool) {
            return Ok(());
        }
        let text = format!(
            "the workers of pool `{pool}` were registered by others, who alone start, drain and end them: sizes, signals, logs and jobs are for pools that agents run"
        );
        Err(Failure::new(Reason::ModeForbids, text))
    }

    fn end_if_over(&mut self, key: &Key, now: Tick) {
        if !self.registry.is_over(key, now) {
            return;
        }
        let death = lost(
            DeathCause::LeaseExpired,
            "whoever registered it was not heard within the lease; whether it lives is not known",
        );
        if let Some(id) = self.registered_worker(key) {
            self.write_death(&id, death.clone());
            self.effects.events.push(Event {
                kind: EventKind::WorkerDied.into(),
                worker: Some(WorkerRef::from(&id)),
                text: format!("registration `{}`: {}", key.1, death.detail),
                death: Some(death),
                ..Event::default()
            });
        }
        self.end_registration(key, Freed::Expired, now);
    }

    /// Withdraws the endpoint in the commit that lets go of name and address.
    fn end_registration(&mut self, key: &Key, why: Freed, now: Tick) {
        let died = why == Freed::Expired;
        let Some(member) = self.registry.take_out(key, died, now) else {
            return;
        };
        note_freed(
            || lease_of_registration(&key.0, &key.1),
            member.epoch(),
            why,
        );
        self.effects.delete(keys::registration(key));
        self.effects.delete(serve::endpoint(&key.0, member.slot));
        self.watch_vacancy(&key.0);
    }

    fn write_registration(&mut self, key: &Key) {
        if let Some(member) = self.registry.get(key) {
            let endpoint = serve::endpoint(&key.0, member.slot);
            self.effects.put(keys::registration(key), record(member));
            self.effects.put(endpoint, endpoint_of(key, member));
        }
    }

    fn tell_of_registration(&mut self, kind: EventKind, key: &Key, text: String) {
        self.effects.events.push(Event {
            kind: kind.into(),
            worker: self.registered_worker(key).as_ref().map(WorkerRef::from),
            text,
            ..Event::default()
        });
    }

    fn note_registration(&self, key: &Key, now: Tick) {
        if let Some(member) = self.registry.get(key) {
            let name = || lease_of_registration(&key.0, &key.1);
            note_granted(name, member.epoch(), &member.lease, now);
        }
    }

    fn registered_worker(&self, key: &Key) -> Option<WorkerId> {
        self.registry.get(key).map(|member| worker(key, member))
    }

    /// Has a registration looked at in time.
    fn watch_registration(&mut self, key: &Key) {
        if let Some(member) = self.registry.get_mut(key)
            && let Some(next) = member.lease.next_deadline()
            && next < member.armed
        {
            member.armed = self.wheel.arm(Timed::Registration(key.clone()), next);
        }
    }

    fn watch_vacancy(&mut self, pool: &PoolName) {
        if let Some(crew) = self.registry.crew_mut(pool)
            && let Some(next) = crew.next_look()
            && next < crew.armed
        {
            crew.armed = self.wheel.arm(Timed::Vacancy(pool.clone()), next);
        }
    }
}

/// After a restart.
impl Ledger {
    /// Takes up a registration an earlier arbiter wrote: nobody knows when it was heard last.
    pub(super) fn restore_registration(
        &mut self,
        rest: &str,
        record: RegistrationRecord,
        now: Tick,
    ) {
        let read = || {
            let (pool, name) = rest.split_once('/')?;
            Registrant::read(wire::Registrant {
                pool: pool.to_owned(),
                name: name.to_owned(),
                life: record.life,
                address: record.address,
                protocol: record.protocol,
                ttl_ms: record.ttl_ms,
                epoch: record.incarnation,
            })
            .ok()
        };
        let place = (record.slot, Incarnation(record.incarnation));
        let condition = record.condition.unwrap_or_default();
        match read() {
            Some(ask) if !self.pools.contains_key(&ask.key.0) => {
                let terms = Terms::usual(ask.ttl).unwrap_or(self.terms.node);
                self.registry.restore(&ask, place, condition, terms, now);
                self.note_registration(&ask.key, now);
                self.watch_registration(&ask.key);
            }
            _ => tracing::error!(
                registration = rest,
                "Cannot take up a registration of before"
            ),
        }
    }

    /// Whether an entry is of a pool of registrations, and then stays as far as it is true.
    pub(super) fn restore_registered(&mut self, entry: &Entry, now: Tick) -> bool {
        let key = ServeKey::parse(&entry.key);
        let Some(ServeKey::Pool(pool) | ServeKey::Endpoint(pool, _) | ServeKey::Death(pool, _)) =
            &key
        else {
            return false;
        };
        let Some(crew) = self.registry.crew_mut(pool) else {
            return false;
        };
        match &key {
            Some(ServeKey::Death(pool, slot)) => {
                crew.bury(*slot, now);
                self.watch_vacancy(pool);
            }
            Some(ServeKey::Endpoint(_, slot)) if !crew.has(*slot) => {
                self.effects.delete(entry.key.clone());
            }
            _ => {}
        }
        true
    }

    /// Has written what the commits of an earlier arbiter did not come to.
    pub(super) fn complete_registered(&mut self, entries: &[Entry]) {
        let served = entries
            .iter()
            .filter(|entry| entry.key.starts_with(serve::SERVE))
            .map(|entry| (entry.key.as_str(), &*entry.value));
        let served: BTreeMap<_, _> = match self.registry.pools().next() {
            Some(_) => served.collect(),
            None => return,
        };
        let mut missing = Vec::new();
        for (pool, members) in self.registry.pools() {
            let has_pool = served.contains_key(&*serve::pool(pool));
            for (name, member) in members {
                let key = (pool.clone(), name.clone());
                let endpoint = endpoint_of(&key, member).encode_to_vec();
                let written = served.get(&*serve::endpoint(pool, member.slot));
                if !has_pool || written.is_none_or(|written| **written != *endpoint) {
                    missing.push(key);
                }
            }
        }
        for key in missing {
            self.effects.put_empty(serve::pool(&key.0));
            self.write_registration(&key);
        }
    }
}

/// What is told of them.
impl Ledger {
    /// The registrations of one pool, or of all.
    pub(crate) fn list_registrations(&self, pool: &str, now: Tick) -> Vec<wire::Registration> {
        let registrations = self.registered(pool);
        let view = |(key, member): (Key, &Member)| wire::Registration {
            registrant: Some(wire::Registrant {
                pool: key.0.to_string(),
                name: key.1.to_string(),
                life: String::new(),
                address: member.address.to_string(),
                protocol: member.protocol.clone(),
                ttl_ms: millis(member.lease.terms().ttl()),
                epoch: member.epoch().0,
            }),
            condition: Some(member.condition.clone()),
            worker: Some(WorkerRef::from(&worker(&key, member))),
            remaining_ms: millis(member.lease.remaining(now)),
        };
        registrations.map(view).collect()
    }

    /// The registered workers of one pool, or of all, as those of agents are told of.
    pub(crate) fn registered_workers(&self, pool: &str, now: Tick) -> Vec<Worker> {
        let view = |(key, member): (Key, &Member)| Worker {
            worker: Some(WorkerRef::from(&worker(&key, member))),
            phase: WorkerPhase::Ready.into(),
            address: member.address.to_string(),
            uptime_ms: millis(now.since(member.since)),
            status: match member.condition.draining {
                true => format!("registered as {}, drains", key.1),
                false => format!("registered as {}", key.1),
            },
            ..Worker::default()
        };
        let mut workers: Vec<_> = self.registered(pool).map(view).collect();
        workers.sort_by_key(|worker| {
            let at = worker.worker.clone().unwrap_or_default();
            (at.pool, at.slot)
        });
        workers
    }

    /// Pools of registrations, as those of agents are told of.
    pub(crate) fn registered_pools(&self) -> Vec<wire_pool::Pool> {
        let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
        let pools = self.registry.pools().map(|(pool, members)| {
            let draining = |member: &&Member| member.condition.draining;
            let size = count(members.len());
            let drained = count(members.values().filter(draining).count());
            wire_pool::Pool {
                spec: Some(wire_pool::PoolSpec {
                    name: pool.to_string(),
                    mode: MODE.to_owned(),
                    size,
                    ..wire_pool::PoolSpec::default()
                }),
                mode_why: "its workers are registered by others".to_owned(),
                ready: size - drained,
                live: size,
                draining: size == drained,
                ..wire_pool::Pool::default()
            }
        });
        pools.collect()
    }

    /// A pool of either kind.
    ///
    /// # Errors
    /// When there is none of that name.
    pub(crate) fn any_pool(&self, name: &str) -> Result<wire_pool::Pool, Failure> {
        let named =
            |pool: &wire_pool::Pool| pool.spec.as_ref().is_some_and(|spec| spec.name == name);
        let registered = self.registered_pools().into_iter().find(named);
        registered.map_or_else(|| self.get_pool(name), Ok)
    }

    fn registered(&self, pool: &str) -> impl Iterator<Item = (Key, &Member)> {
        let pools = self.registry.pools();
        let wanted = pools.filter(move |(name, _)| pool.is_empty() || name.as_str() == pool);
        wanted.flat_map(|(pool, members)| {
            let members = members.iter();
            members.map(move |(name, member)| ((pool.clone(), name.clone()), member))
        })
    }
}

fn worker((pool, _): &Key, member: &Member) -> WorkerId {
    WorkerId {
        pool: pool.clone(),
        slot: member.slot,
        incarnation: member.incarnation,
    }
}

fn endpoint_of(key: &Key, member: &Member) -> Endpoint {
    let condition = &member.condition;
    Endpoint {
        worker: Some(WorkerRef::from(&worker(key, member))),
        address: member.address.to_string(),
        node: String::new(),
        draining: condition.draining,
        count_calls: false,
        zone: condition.zone.clone(),
        weight: condition.weight,
        capacity: condition.capacity,
        protocol: member.protocol.clone(),
        health: condition.health,
        epoch: member.epoch().0,
        fates: String::new(),
    }
}

fn record(member: &Member) -> RegistrationRecord {
    RegistrationRecord {
        life: member.life().to_owned(),
        slot: member.slot,
        incarnation: member.incarnation.0,
        address: member.address.to_string(),
        protocol: member.protocol.clone(),
        ttl_ms: millis(member.lease.terms().ttl()),
        condition: Some(member.condition.clone()),
    }
}
