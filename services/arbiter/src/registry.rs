//! Workers that nobody of ours starts, registered by whoever knows them: who holds which name and which address, and
//! until when. Pure.
//!
//! A registration is a lease (`tether_lease`), held by one life of one name in one pool. It names an address, has a
//! place in its pool as workers of agents have, and the incarnation it gets with that is its fencing token: no number
//! is given out twice, and each is greater than all before.
//!
//! # Invariants
//!
//! - **R1** A name is held by one life at a time, an address by one registration at a time, over all pools.
//! - **R2** What is held is let go only when the lease is over by the grantor's clock, or on its holder's word.
//! - **R3** An incarnation registers once; a life that comes back while it holds its name has the slot and the
//!   incarnation that it had, also over a restart.
//! - **R4** Of two in one pool none has the slot of the other.
//! - **R5** Nothing is kept of what is no longer registered, but its death for a while ([`LINGER`]).
//! - **R6** A beat with an earlier epoch than the name is held under changes nothing, nor does one that a later one
//!   has overtaken.

mod ask;
mod crew;
#[cfg(test)]
mod properties;

use std::{collections::BTreeMap, time::Duration};

use tether_clock::Tick;
use tether_lease::{Beat, Fence, Grantor, Tenure, Terms};
use tether_proto::{Failure, registry as wire};
use tether_types::{Address, Epoch, Incarnation, InstanceName, PoolName, Reason, Slot};

use crew::{Crew, Vacated};

pub(crate) use ask::{Registrant, check_condition};

/// Most registrations of one pool, and of all: what is beyond is a mistake, and no reason to fill the memory of every
/// gateway.
const POOL_MAX: usize = 10_000;
const ALL_MAX: usize = 100_000;

/// A name in its pool.
pub(crate) type Key = (PoolName, InstanceName);

/// One registration.
#[derive(Debug)]
pub(crate) struct Member {
    life: String,
    pub(crate) slot: Slot,
    pub(crate) incarnation: Incarnation,
    pub(crate) address: Address,
    pub(crate) protocol: String,
    pub(crate) condition: wire::Condition,
    pub(crate) lease: Grantor,
    /// Whether the store has it for sure: until then its holder was told of nothing.
    is_written: bool,
    /// Since when this arbiter knows it.
    pub(crate) since: Tick,
    /// For when the wheel has its look at it; never for none.
    pub(crate) armed: Tick,
}

impl Member {
    /// Under which epoch it is held.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.incarnation.0)
    }

    pub(crate) fn life(&self) -> &str {
        &self.life
    }
}

/// A registration as somebody has it who holds it, or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) slot: Slot,
    pub(crate) incarnation: Incarnation,
    /// Whether the store has it for sure.
    pub(crate) is_written: bool,
}

/// What comes of a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The lease that it earned; none for none.
    pub(crate) ttl: Option<Duration>,
    /// Whether the worker is another than was told.
    pub(crate) is_changed: bool,
}

/// Everything that is registered.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pools: BTreeMap<PoolName, Crew>,
    /// Who has which address.
    addresses: BTreeMap<Address, Key>,
}

impl Registry {
    /// The registration of that name.
    pub(crate) fn get(&self, key: &Key) -> Option<&Member> {
        self.pools.get(&key.0)?.members.get(&key.1)
    }

    pub(crate) fn get_mut(&mut self, key: &Key) -> Option<&mut Member> {
        self.pools.get_mut(&key.0)?.members.get_mut(&key.1)
    }

    /// Pools with registrations, by name.
    pub(crate) fn pools(
        &self,
    ) -> impl Iterator<Item = (&PoolName, &BTreeMap<InstanceName, Member>)> {
        let pools = self.pools.iter().map(|(pool, crew)| (pool, &crew.members));
        pools.filter(|(_, members)| !members.is_empty())
    }

    /// Whether anything is known of a pool: registrations, or deaths of a while ago.
    pub(crate) fn knows(&self, pool: &PoolName) -> bool {
        self.pools.contains_key(pool)
    }

    /// How many are registered in a pool.
    pub(crate) fn count(&self, pool: &PoolName) -> usize {
        self.pools.get(pool).map_or(0, |crew| crew.members.len())
    }

    /// Who else has an address, or the name in the way of this one. Whether that is over is looked at first.
    pub(crate) fn in_the_way(&self, ask: &Registrant) -> Vec<Key> {
        let address = self.addresses.get(&ask.address.canonical());
        let name = self.get(&ask.key).map(|_| &ask.key);
        address.into_iter().chain(name).cloned().collect()
    }

    /// What this life holds already; none where it may register anew.
    ///
    /// # Errors
    /// When the name or the address is another's, or it believes to hold what it does not.
    pub(crate) fn admit(&self, ask: &Registrant, now: Tick) -> Result<Option<Seat>, Failure> {
        let (pool, name) = &ask.key;
        if let Some(member) = self.get(&ask.key) {
            if ask.epoch != Epoch(0) {
                admit_epoch(&ask.key, member, ask.epoch)?;
            }
            if member.life != ask.life {
                let text = format!(
                    "`{name}` is registered in pool `{pool}` by another life of that name, whose lease has {:.1?} left: give each a name of its own, or wait until that is over",
                    member.lease.remaining(now)
                );
                return Err(taken(text, member, now).fact("taken", "name"));
            }
            if (&member.address, &member.protocol) != (&ask.address, &ask.protocol) {
                let text = format!(
                    "`{name}` is registered in pool `{pool}` at `{}` ({}): one at another address is to be registered by another name, or after that was deregistered",
                    member.address, member.protocol
                );
                return Err(Failure::new(Reason::ConfigInvalid, text).fact("field", "address"));
            }
            return Ok(Some(Seat {
                slot: member.slot,
                incarnation: member.incarnation,
                is_written: member.is_written,
            }));
        }
        if ask.epoch != Epoch(0) {
            return Err(unknown(&ask.key, ask.epoch));
        }
        let holder = self.addresses.get(&ask.address.canonical());
        if let Some((key, member)) = holder.and_then(|key| Some((key, self.get(key)?))) {
            let text = format!(
                "`{}` is the address of `{}` in pool `{}`, whose lease has {:.1?} left: calls may go there for that one until it is over",
                ask.address,
                key.1,
                key.0,
                member.lease.remaining(now)
            );
            return Err(taken(text, member, now).fact("taken", "address"));
        }
        let (count, all) = (self.count(pool), self.addresses.len());
        if count >= POOL_MAX || all >= ALL_MAX {
            let text = format!(
                "pool `{pool}` has {count} registrations and all pools together have {all}: more than {POOL_MAX} and {ALL_MAX} are taken for a mistake"
            );
            return Err(Failure::new(Reason::ConfigInvalid, text));
        }
        Ok(None)
    }

    /// Registers one that was admitted. True where its pool was not there before.
    pub(crate) fn enter(
        &mut self,
        ask: &Registrant,
        condition: wire::Condition,
        terms: Terms,
        incarnation: Incarnation,
        now: Tick,
    ) -> bool {
        let is_new = !self.knows(&ask.key.0);
        let crew = self.pools.entry(ask.key.0.clone()).or_default();
        let place = (crew.take_slot(), incarnation);
        let lease = Grantor::grant(terms, now);
        self.insert(ask, place, condition, (lease, false), now);
        is_new
    }

    /// Takes up one of which nobody knows when it was heard last.
    pub(crate) fn restore(
        &mut self,
        ask: &Registrant,
        place: (Slot, Incarnation),
        condition: wire::Condition,
        terms: Terms,
        now: Tick,
    ) {
        let crew = self.pools.entry(ask.key.0.clone()).or_default();
        crew.claim_slot(place.0);
        let lease = Grantor::after_restart(terms, now);
        self.insert(ask, place, condition, (lease, true), now);
    }

    fn insert(
        &mut self,
        ask: &Registrant,
        (slot, incarnation): (Slot, Incarnation),
        condition: wire::Condition,
        (lease, is_written): (Grantor, bool),
        now: Tick,
    ) {
        let member = Member {
            life: ask.life.clone(),
            slot,
            incarnation,
            address: ask.address.clone(),
            protocol: ask.protocol.clone(),
            condition,
            lease,
            is_written,
            since: now,
            armed: Tick::NEVER,
        };
        let crew = self.pools.entry(ask.key.0.clone()).or_default();
        crew.members.insert(ask.key.1.clone(), member);
        self.addresses
            .insert(ask.address.canonical(), ask.key.clone());
    }

    /// The store has it.
    pub(crate) fn on_written(&mut self, key: &Key, incarnation: Incarnation) {
        if let Some(member) = self.get_mut(key)
            && member.incarnation == incarnation
        {
            member.is_written = true;
        }
    }

    /// A beat under `epoch`, with how the worker is where that is said.
    ///
    /// # Errors
    /// When it is not registered under that epoch.
    pub(crate) fn beat(
        &mut self,
        key: &Key,
        epoch: Epoch,
        (seq, ack_seen): (u64, u64),
        condition: Option<wire::Condition>,
        now: Tick,
    ) -> Result<Heard, Failure> {
        let member = self.get_mut(key).ok_or_else(|| unknown(key, epoch))?;
        admit_epoch(key, member, epoch)?;
        let ttl = match member.lease.on_beat(seq, ack_seen, now) {
            Beat::Extended => Some(member.lease.terms().ttl()),
            Beat::Unproven => None,
            // What it says was overtaken by what a later one has said.
            Beat::Stale => {
                return Ok(Heard {
                    ttl: None,
                    is_changed: false,
                });
            }
            Beat::Ended => return Err(unknown(key, epoch)),
        };
        let before = condition.map(|condition| {
            let before = std::mem::replace(&mut member.condition, condition);
            before != member.condition
        });
        Ok(Heard {
            ttl,
            is_changed: before.unwrap_or(false),
        })
    }

    /// Whether whoever says goodbye under `epoch` is who is registered.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn may_leave(&self, key: &Key, epoch: Epoch) -> Result<(), Failure> {
        let member = self.get(key).ok_or_else(|| unknown(key, epoch))?;
        admit_epoch(key, member, epoch)
    }

    /// Whether its lease is over; then it is to be taken out.
    pub(crate) fn is_over(&mut self, key: &Key, now: Tick) -> bool {
        let member = self.get_mut(key);
        member.is_some_and(|member| member.lease.check(now) == Tenure::Free)
    }

    /// Takes one out; `died` leaves its death at its place for a while.
    pub(crate) fn take_out(&mut self, key: &Key, died: bool, now: Tick) -> Option<Member> {
        let crew = self.pools.get_mut(&key.0)?;
        let member = crew.take_out(&key.1, died, now)?;
        self.addresses.remove(&member.address.canonical());
        Some(member)
    }

    /// What a pool keeps of those that are gone, and when to look at it.
    pub(crate) fn crew_mut(&mut self, pool: &PoolName) -> Option<&mut Crew> {
        self.pools.get_mut(pool)
    }

    /// Lets go of what was kept for long enough. What is to be deleted of it, and when to look again.
    pub(crate) fn vacate(&mut self, pool: &PoolName, now: Tick) -> Vacated {
        let Some(crew) = self.pools.get_mut(pool) else {
            return Vacated::default();
        };
        let vacated = crew.vacate(now);
        if vacated.is_all {
            self.pools.remove(pool);
        }
        vacated
    }

    /// Forgets a pool without registrations at once, as another kind of pool takes its name: the places that have a
    /// death.
    pub(crate) fn forget(&mut self, pool: &PoolName) -> Vec<Slot> {
        match self.count(pool) {
            0 => self
                .pools
                .remove(pool)
                .map_or_else(Vec::new, Crew::into_graves),
            _ => Vec::new(),
        }
    }
}

/// Whether whoever says an epoch is who holds the name.
fn admit_epoch((pool, name): &Key, member: &Member, epoch: Epoch) -> Result<(), Failure> {
    let mut fence = Fence::at(member.epoch());
    fence.admit(epoch).map_err(|fenced| {
        let text = format!("registration `{name}` in pool `{pool}`: {fenced}");
        Failure::new(Reason::LeaseFenced, text)
    })?;
    match member.epoch() == epoch {
        true => Ok(()),
        false => Err(unknown(&(pool.clone(), name.clone()), epoch)),
    }
}

fn unknown((pool, name): &Key, epoch: Epoch) -> Failure {
    let text = format!(
        "`{name}` is not registered in pool `{pool}` under epoch {epoch}: it was deregistered or its lease ran out; register it anew, as another life"
    );
    Failure::new(Reason::UnknownRegistration, text)
}

fn taken(text: String, member: &Member, now: Tick) -> Failure {
    Failure::new(Reason::RegistrationTaken, text).retry_after(member.lease.remaining(now))
}
