//! The places of one pool of registrations: who has which, and what is kept of those that are gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tether_clock::Tick;
use tether_types::{InstanceName, Slot};

use super::Member;

/// How long a death is kept at its place, and a pool without registrations is known: callers of one whose only
/// worker is being replaced are to hear that none is ready, and not that there is no such pool.
pub(crate) const LINGER: Duration = Duration::from_secs(60);

/// The registrations of one pool.
#[derive(Debug)]
pub(crate) struct Crew {
    pub(super) members: BTreeMap<InstanceName, Member>,
    /// Places below `next` that nobody has.
    free: BTreeSet<Slot>,
    next: Slot,
    /// Places with a death, and until when.
    graves: BTreeMap<Slot, Tick>,
    /// When the last one left.
    emptied: Tick,
    /// For when the wheel has its look at it; never for none.
    pub(crate) armed: Tick,
}

impl Default for Crew {
    fn default() -> Self {
        Self {
            members: BTreeMap::new(),
            free: BTreeSet::new(),
            next: 0,
            graves: BTreeMap::new(),
            emptied: Tick::ZERO,
            armed: Tick::NEVER,
        }
    }
}

/// What is to be forgotten of a pool.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Vacated {
    /// Deaths at these places.
    pub(crate) graves: Vec<Slot>,
    /// The pool itself.
    pub(crate) is_all: bool,
    /// When to look again.
    pub(crate) next: Option<Tick>,
}

impl Crew {
    /// The lowest place that is free.
    pub(super) fn take_slot(&mut self) -> Slot {
        self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// A place that an earlier arbiter gave out.
    pub(super) fn claim_slot(&mut self, slot: Slot) {
        self.free.remove(&slot);
        self.free.extend(self.next..slot);
        self.next = self.next.max(slot.saturating_add(1));
    }

    pub(super) fn take_out(
        &mut self,
        name: &InstanceName,
        died: bool,
        now: Tick,
    ) -> Option<Member> {
        let member = self.members.remove(name)?;
        self.free.insert(member.slot);
        if died {
            self.bury(member.slot, now);
        }
        if self.members.is_empty() {
            (self.next, self.emptied) = (0, now);
            self.free.clear();
        }
        Some(member)
    }

    /// Whether somebody has a place.
    pub(crate) fn has(&self, slot: Slot) -> bool {
        slot < self.next && !self.free.contains(&slot)
    }

    /// A death was recorded at a place.
    pub(crate) fn bury(&mut self, slot: Slot, now: Tick) {
        self.graves.insert(slot, now + LINGER);
    }

    pub(super) fn vacate(&mut self, now: Tick) -> Vacated {
        let over: Vec<_> = self
            .graves
            .iter()
            .filter(|&(_, &until)| until <= now)
            .map(|(&slot, _)| slot)
            .collect();
        self.graves.retain(|_, until| *until > now);
        let next = self.next_look();
        let is_all = self.members.is_empty()
            && self.graves.is_empty()
            && next.is_none_or(|next| next <= now);
        Vacated {
            graves: over,
            is_all,
            next: next.filter(|_| !is_all),
        }
    }

    /// When something is to be forgotten next.
    pub(crate) fn next_look(&self) -> Option<Tick> {
        let empty = self.members.is_empty().then(|| self.emptied + LINGER);
        self.graves.values().copied().chain(empty).min()
    }

    pub(super) fn into_graves(self) -> Vec<Slot> {
        self.graves.into_keys().collect()
    }
}
