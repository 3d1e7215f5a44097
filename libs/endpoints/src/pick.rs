//! Choosing a worker within one pool.

use std::{cmp::Reverse, time::Duration};

use tether_breaker::{Admit, Permit};
use tether_clock::Tick;
use tether_types::{Address, Incarnation, PoolName, Slot, WorkerId, stable};

use crate::{
    Overload, affinity,
    pool::{Live, Place, Pool},
};

/// Which worker a caller would like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The one with the fewest calls under way.
    Any,
    /// The same one for the same key.
    Affinity {
        /// What calls that belong together have in common.
        key: Vec<u8>,
        /// What if that worker is not free.
        affinity: Affinity,
    },
    /// This one or none.
    Worker {
        /// Its place.
        slot: Slot,
        /// Which start of it; 0 means whichever lives.
        incarnation: Incarnation,
    },
}

/// How closely a call is tied to the worker of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Affinity {
    /// Another one may have it where that one cannot take it at once: the next in the key's order.
    #[default]
    Hint,
    /// It waits until that one is free.
    StrictQueue,
    /// It is refused unless that one is free.
    StrictFailFast,
}

impl Target {
    /// Whoever lives in this place.
    pub(crate) fn any_in(slot: Slot) -> Self {
        Self::Worker {
            slot,
            incarnation: Incarnation(0),
        }
    }

    /// Whether a call that nobody can take at once may wait.
    pub(crate) fn waits(&self) -> bool {
        !matches!(
            self,
            Self::Affinity {
                affinity: Affinity::StrictFailFast,
                ..
            }
        )
    }
}

/// A worker chosen for a call.
#[derive(Debug)]
pub struct Pick {
    /// Stands for the call; goes back through `release`.
    pub ticket: Ticket,
    /// Where the worker listens.
    pub address: Address,
}

/// One call under way.
#[derive(Debug)]
#[must_use = "a ticket that is not released counts its call as under way for ever"]
pub struct Ticket {
    pub(crate) worker: WorkerId,
    pub(crate) appearance: u64,
    /// There until the outcome is known.
    pub(crate) permit: Option<Permit>,
    /// When the call was sent, and the worker may have seen it.
    pub(crate) sent_at: Option<Tick>,
    /// When its answer began.
    pub(crate) answered: Option<Tick>,
}

impl Ticket {
    /// The worker that serves the call.
    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// The call was sent to the worker at `now`.
    pub fn on_sent(&mut self, now: Tick) {
        self.sent_at = Some(now);
    }

    /// Its answer began at `now`.
    pub fn on_answered(&mut self, now: Tick) {
        self.answered = Some(now);
    }

    /// Whether the call is a trial of a worker that has failed before, with its outcome still open.
    pub fn is_probe(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::is_probe)
    }
}

/// Why a call cannot be given to anyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No pool of that name.
    NoPool,
    /// The pool exists.
    NoWorker(Why),
    /// It may not even wait.
    Overloaded(Overload),
}

/// Why no worker of a pool can take a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// None is ready.
    NoneReady,
    /// Those that are ready take no new calls.
    Draining,
    /// Those that would take calls have failed too often of late.
    BreakersOpen {
        /// When the first of them is tried again.
        retry_after: Duration,
    },
    /// Those that would take calls serve as many as they can.
    Busy,
    /// The permission of those that are ready is over, as their agents said before they fell silent.
    Lapsed,
    /// Another one serves in the place of the incarnation asked for; no agent runs it, so which was first is not known.
    Replaced {
        /// The one that does.
        by: Incarnation,
    },
    /// The incarnation asked for is gone for good.
    Superseded {
        /// The lowest incarnation that may still live in its place.
        by: Incarnation,
    },
}

impl Pool {
    pub(crate) fn pick(
        &mut self,
        name: &PoolName,
        target: &Target,
        tried: &[WorkerId],
        random: u64,
        now: Tick,
    ) -> Result<Pick, Why> {
        let slot = self.prospect(target, tried, random, now)?;
        let live = self
            .slots
            .get_mut(&slot)
            .and_then(|place| place.live.as_mut());
        let live = live.ok_or(Why::NoneReady)?;
        match live.breaker.admit(now) {
            Admit::Refused { retry_after } => Err(Why::BreakersOpen { retry_after }),
            Admit::Yes(permit) => {
                live.in_flight += 1;
                Ok(Pick {
                    address: live.endpoint.address.clone(),
                    ticket: Ticket {
                        worker: WorkerId {
                            pool: name.clone(),
                            slot,
                            incarnation: live.incarnation(),
                        },
                        appearance: live.appearance,
                        permit: Some(permit),
                        sent_at: None,
                        answered: None,
                    },
                })
            }
        }
    }

    /// The place of the worker that would take a call now.
    pub(crate) fn prospect(
        &self,
        target: &Target,
        tried: &[WorkerId],
        random: u64,
        now: Tick,
    ) -> Result<Slot, Why> {
        let slot = match target {
            Target::Any => {
                return self.choose(tried, now, |slot, live| {
                    let chance = stable::finish(random ^ u64::from(slot));
                    (live.endpoint.standing, live.load(), chance)
                });
            }
            Target::Affinity {
                key,
                affinity: Affinity::Hint,
            } => return self.choose(tried, now, |slot, _| Reverse(affinity::bid(key, slot))),
            Target::Affinity { .. } => self.home(target).ok_or(Why::NoneReady)?,
            Target::Worker { slot, incarnation } => {
                self.check(*slot, *incarnation)?;
                *slot
            }
        };
        let live = self.slots.get(&slot).and_then(|place| place.live.as_ref());
        let live = live.filter(|live| !live.is_among(tried));
        match self.reluctance(live.ok_or(Why::NoneReady)?, now) {
            Some(why) => Err(why),
            None => Ok(slot),
        }
    }

    /// The place of the worker with the least cost among those that would take a call, or why there is none.
    fn choose<C: Ord>(
        &self,
        tried: &[WorkerId],
        now: Tick,
        cost: impl Fn(Slot, &Live) -> C,
    ) -> Result<Slot, Why> {
        match self.choose_among(false, tried, now, &cost) {
            // Another one will be free.
            Err(why) if why != Why::Busy && self.any_doubted() => {
                self.choose_among(true, tried, now, &cost)
            }
            chosen => chosen,
        }
    }

    /// The same among those that give signs of life, or among those that give none (E12).
    fn choose_among<C: Ord>(
        &self,
        doubted: bool,
        tried: &[WorkerId],
        now: Tick,
        cost: impl Fn(Slot, &Live) -> C,
    ) -> Result<Slot, Why> {
        let mut why = Why::NoneReady;
        let mut best = None;
        for (&slot, place) in &self.slots {
            let Some(live) = place.live.as_ref().filter(|live| !live.is_among(tried)) else {
                continue;
            };
            if live.fate.doubted != doubted {
                continue;
            }
            if let Some(reason) = self.reluctance(live, now) {
                why = why.or_milder(reason);
                continue;
            }
            let cost = cost(slot, live);
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, slot));
            }
        }
        best.map(|(_, slot)| slot).ok_or(why)
    }

    /// The one place whose worker a call needs, for a target that leaves no choice. For a key that is the highest
    /// bidder that does not drain.
    pub(crate) fn home(&self, target: &Target) -> Option<Slot> {
        let key = match target {
            Target::Any
            | Target::Affinity {
                affinity: Affinity::Hint,
                ..
            } => return None,
            Target::Worker { slot, .. } => return Some(*slot),
            Target::Affinity { key, .. } => key,
        };
        let stays = |place: &Place| {
            let live = place.live.as_ref();
            live.is_some_and(|live| !live.is_leaving())
        };
        let bidders = self.slots.iter().filter(|(_, place)| stays(place));
        let best = bidders.max_by_key(|(slot, _)| affinity::bid(key, **slot));
        best.map(|(slot, _)| *slot)
    }

    /// Why one would not take a call (E1, E8, E13).
    fn reluctance(&self, live: &Live, now: Tick) -> Option<Why> {
        let lapsed = live.fate.is_over(self.vouched, now);
        lapsed
            .then_some(Why::Lapsed)
            .or_else(|| live.reluctance(now))
    }

    fn any_doubted(&self) -> bool {
        let mut living = self.slots.values().filter_map(|place| place.live.as_ref());
        living.any(|live| live.fate.doubted)
    }

    /// Whether an incarnation that is asked for by its number may still be met; 0 is whichever lives.
    fn check(&self, slot: Slot, incarnation: Incarnation) -> Result<(), Why> {
        let place = self.slots.get(&slot).ok_or(Why::NoneReady)?;
        if incarnation == Incarnation(0) {
            return Ok(());
        }
        if let Some(live) = place.live.as_ref().filter(|live| live.endpoint.unordered) {
            // A number that is lower than one of before says nothing.
            let by = live.incarnation();
            return match by == incarnation {
                true => Ok(()),
                false => Err(Why::Replaced { by }),
            };
        }
        if incarnation < place.floor {
            return Err(Why::Superseded { by: place.floor });
        }
        let living = place.live.as_ref().map(Live::incarnation);
        match living == Some(incarnation) {
            true => Ok(()),
            false => Err(Why::NoneReady),
        }
    }
}

impl Live {
    /// Why it would not take a call (E1, E8).
    fn reluctance(&self, now: Tick) -> Option<Why> {
        if self.is_leaving() {
            return Some(Why::Draining);
        }
        if let Some(retry_after) = self.breaker.refusal(now) {
            return Some(Why::BreakersOpen { retry_after });
        }
        let capacity = self.endpoint.capacity;
        let is_full = capacity.is_some_and(|capacity| self.in_flight >= capacity.get());
        is_full.then_some(Why::Busy)
    }

    /// Calls that it would have under way with one more, per unit of its weight.
    fn load(&self) -> u64 {
        // As a whole number, which orders and needs no rounding: weights have 32 bits.
        let weight = u64::from(self.endpoint.weight.max(1));
        ((u64::from(self.in_flight) + 1) << 31) / weight
    }

    fn is_among(&self, tried: &[WorkerId]) -> bool {
        tried.contains(&self.endpoint.worker)
    }
}

impl Why {
    /// Of two reasons, the one that is over sooner: that is what a caller can wait for.
    fn or_milder(self, other: Self) -> Self {
        match (self, other) {
            (Self::Busy, _) | (_, Self::Busy) => Self::Busy,
            (Self::BreakersOpen { retry_after: a }, Self::BreakersOpen { retry_after: b }) => {
                Self::BreakersOpen {
                    retry_after: a.min(b),
                }
            }
            (open @ Self::BreakersOpen { .. }, _) | (_, open @ Self::BreakersOpen { .. }) => open,
            (_, other) => other,
        }
    }
}
