//! Choosing a worker within one pool.

use std::{cmp::Reverse, time::Duration};

use tether_breaker::{Admit, Permit};
use tether_clock::Tick;
use tether_types::{Address, Incarnation, PoolName, Slot, WorkerId, stable};

use crate::{
    Overload, Verdict, affinity,
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
    /// Whether TLS is spoken there.
    pub tls: bool,
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
    /// Those that would take calls are left alone by order.
    Ejected {
        /// When the first of them is given calls again.
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
        let slot = self.prospect(target, tried, random, now, |_, _| {})?;
        self.give(name, slot, now)
    }

    /// Who would have a call that comes now: nobody while others wait for the same. Tells `see` what speaks against
    /// each worker that it looks at.
    pub(crate) fn decide(
        &self,
        target: &Target,
        tried: &[WorkerId],
        random: u64,
        now: Tick,
        see: impl FnMut(Slot, Verdict),
    ) -> Result<Slot, Why> {
        let slot = self.prospect(target, tried, random, now, see)?;
        match self.others_wait(target) {
            true => Err(Why::Busy),
            false => Ok(slot),
        }
    }

    /// Counts a call on the worker in this place.
    pub(crate) fn give(&mut self, name: &PoolName, slot: Slot, now: Tick) -> Result<Pick, Why> {
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
                    tls: live.endpoint.tls,
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

    /// The place of the worker that would take a call now. Tells `see` of each that it looks at.
    pub(crate) fn prospect(
        &self,
        target: &Target,
        tried: &[WorkerId],
        random: u64,
        now: Tick,
        mut see: impl FnMut(Slot, Verdict),
    ) -> Result<Slot, Why> {
        let slot = match target {
            Target::Any => {
                return self.choose(tried, now, see, |slot, live| {
                    let chance = stable::finish(random ^ u64::from(slot));
                    (live.endpoint.standing, live.load(), chance)
                });
            }
            Target::Affinity {
                key,
                affinity: Affinity::Hint,
            } => {
                let pin = self.pins.get(key);
                return self.choose(tried, now, see, |slot, live| {
                    let is_pinned = pin.is_some_and(|pin| *pin == live.endpoint.worker);
                    (!is_pinned, Reverse(affinity::bid(key, slot)))
                });
            }
            Target::Affinity { .. } => self.home(target).ok_or(Why::NoneReady)?,
            Target::Worker { slot, incarnation } => {
                self.check(*slot, *incarnation)?;
                *slot
            }
        };
        let live = self.slots.get(&slot).and_then(|place| place.live.as_ref());
        let verdict = self.verdict(live.ok_or(Why::NoneReady)?, tried, now);
        see(slot, verdict);
        match verdict {
            Verdict::Eligible => Ok(slot),
            Verdict::Tried | Verdict::NotMeant => Err(Why::NoneReady),
            Verdict::Refused(why) => Err(why),
        }
    }

    /// The place of the worker with the least cost among those that would take a call, or why there is none.
    fn choose<C: Ord>(
        &self,
        tried: &[WorkerId],
        now: Tick,
        mut see: impl FnMut(Slot, Verdict),
        cost: impl Fn(Slot, &Live) -> C,
    ) -> Result<Slot, Why> {
        // Of those that give no sign of life the best one is last of all (E14).
        let mut others_busy = false;
        let mut why = Why::NoneReady;
        let mut best = None;
        for (&slot, place) in &self.slots {
            let Some(live) = &place.live else { continue };
            let verdict = self.verdict(live, tried, now);
            see(slot, verdict);
            match verdict {
                Verdict::Eligible => {}
                Verdict::Tried | Verdict::NotMeant => continue,
                Verdict::Refused(reason) => {
                    others_busy |= reason == Why::Busy && !live.fate.doubted;
                    why = why.or_milder(reason);
                    continue;
                }
            }
            let cost = (live.fate.doubted, cost(slot, live));
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, slot));
            }
        }
        match best {
            // Another one will be free.
            Some(((true, _), _)) if others_busy => Err(Why::Busy),
            best => best.map(|(_, slot)| slot).ok_or(why),
        }
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
        // One that is left alone by order is so for long, and what is tied to it would wait for as long.
        let stays = |place: &Place| {
            let live = place.live.as_ref();
            live.is_some_and(|live| !live.drains() && live.bound.ejected.is_none())
        };
        if let Some(pin) = self.pins.get(key)
            && let Some(place) = self.slots.get(&pin.slot).filter(|place| stays(place))
            && place.live.as_ref().map(Live::incarnation) == Some(pin.incarnation)
        {
            return Some(pin.slot);
        }
        let bidders = self.slots.iter().filter(|(_, place)| stays(place));
        let best = bidders.max_by_key(|(slot, _)| affinity::bid(key, **slot));
        best.map(|(slot, _)| *slot)
    }

    /// What speaks against a worker for a call.
    fn verdict(&self, live: &Live, tried: &[WorkerId], now: Tick) -> Verdict {
        if live.is_among(tried) {
            return Verdict::Tried;
        }
        let lapsed = live.fate.is_over(self.vouched, now);
        let why = lapsed.then_some(Why::Lapsed);
        why.or_else(|| live.reluctance(now))
            .map_or(Verdict::Eligible, Verdict::Refused)
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
    /// Why it would not take a call (E1, E8, E11).
    fn reluctance(&self, now: Tick) -> Option<Why> {
        if self.drains() {
            return Some(Why::Draining);
        }
        if let Some(until) = self.bound.ejected {
            let retry_after = until.since(now);
            return Some(Why::Ejected { retry_after });
        }
        if let Some(retry_after) = self.breaker.refusal(now) {
            return Some(Why::BreakersOpen { retry_after });
        }
        let capacity = self.capacity();
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
            (Self::Ejected { retry_after: a }, Self::Ejected { retry_after: b }) => Self::Ejected {
                retry_after: a.min(b),
            },
            (ejected @ Self::Ejected { .. }, _) | (_, ejected @ Self::Ejected { .. }) => ejected,
            (_, other) => other,
        }
    }
}
