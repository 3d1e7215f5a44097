//! Choosing a worker within one pool.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use tether_breaker::{Admit, Permit};
use tether_clock::Tick;
use tether_types::{Address, Incarnation, PoolName, Slot, WorkerId, stable};

use crate::{
    Overload, Session, Verdict, affinity,
    bindings::{Mark, Seat},
    pool::{Live, Place, Pool},
    warmth,
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
        /// Whose key it is, where it ends with a session.
        session: Option<Arc<Session>>,
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
    /// It waits until that one is free. Refused where that one is gone, and with it what it knew of the key.
    StrictQueue,
    /// It is refused unless that one is free.
    StrictFailFast,
}

impl Target {
    /// The key of a call that has one, and what is to be kept of it.
    pub(crate) fn mark(&self) -> Option<Mark> {
        match self {
            Self::Affinity { key, session, .. } => Some(Mark::of(key, session.as_deref())),
            Self::Any | Self::Worker { .. } => None,
        }
    }

    pub(crate) fn is_hint(&self) -> bool {
        matches!(
            self,
            Self::Affinity {
                affinity: Affinity::Hint,
                ..
            }
        )
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
    pub address: Arc<Address>,
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
    /// That of the pool, where it has a breaker.
    pub(crate) pool_permit: Option<Box<Permit>>,
    /// When the call was sent, and the worker may have seen it.
    pub(crate) sent_at: Option<Tick>,
    /// When its answer began.
    pub(crate) answered: Option<Tick>,
    /// Whether it counts in what its worker can take, until its answer begins.
    pub(crate) is_limited: bool,
    /// There where the call has a key.
    pub(crate) tie: Option<Box<Tie>>,
}

/// How a call's key is bound to its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tie {
    pub(crate) mark: Mark,
    /// To whom it was bound before.
    pub(crate) before: Option<Seat>,
}

/// That a worker has a call, and would have the state of its key.
#[derive(Debug)]
pub struct Claim {
    pub(crate) worker: WorkerId,
    pub(crate) mark: Mark,
}

impl Ticket {
    /// The worker that serves the call.
    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// Whether the call has a key, so that it matters which worker serves it.
    pub fn has_key(&self) -> bool {
        self.tie.is_some()
    }

    /// Whether the key's last call was given to another worker.
    pub fn has_moved(&self) -> bool {
        let before = self.tie.as_ref().and_then(|tie| tie.before);
        before.is_some_and(|before| before != Seat::of(&self.worker))
    }

    /// What it comes to where another worker has the same call, and this one's answer counts.
    pub fn claim(&self) -> Option<Claim> {
        Some(Claim {
            worker: self.worker.clone(),
            mark: self.tie.as_ref()?.mark,
        })
    }

    /// The call was sent to the worker at `now`.
    pub fn on_sent(&mut self, now: Tick) {
        self.sent_at = Some(now);
    }

    /// Whether it matters to others that its answer has begun.
    pub fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// Its answer began at `now`.
    pub fn on_answered(&mut self, now: Tick) {
        self.answered = Some(now);
    }

    /// Whether the call is a trial of a worker that has failed before, or of a pool, with its outcome still open.
    pub fn is_probe(&self) -> bool {
        let of_pool = self.pool_permit.as_deref();
        self.permit.as_ref().is_some_and(Permit::is_probe) || of_pool.is_some_and(Permit::is_probe)
    }
}

impl Claim {
    /// Whose worker it is.
    pub fn pool(&self) -> &PoolName {
        &self.worker.pool
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
    /// Calls to the workers of the pool, whichever, have failed too often of late.
    PoolBreakerOpen {
        /// When the pool is tried again.
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
    /// The incarnation that was given the key's last call is gone for good, and with it what it knew of the key.
    SessionGone {
        /// Its place.
        slot: Slot,
        /// Which one it was.
        incarnation: Incarnation,
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
        let slot = self.turn(target, tried, random, now, |_, _| {})?;
        self.give(name, target, slot, now)
    }

    /// Who would have a call whose turn it is.
    fn turn(
        &self,
        target: &Target,
        tried: &[WorkerId],
        random: u64,
        now: Tick,
        see: impl FnMut(Slot, Verdict),
    ) -> Result<Slot, Why> {
        let slot = self.prospect(target, tried, random, now, see);
        if let Some(retry_after) = self.breaker.refusal(now) {
            return Err(Why::PoolBreakerOpen { retry_after });
        }
        slot.map_err(|why| self.or_expected(why, target, now))
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
        let slot = self.turn(target, tried, random, now, see)?;
        match self.others_wait(target, now) {
            true => Err(Why::Busy),
            false => Ok(slot),
        }
    }

    /// Counts a call on the worker in this place.
    pub(crate) fn give(
        &mut self,
        name: &PoolName,
        target: &Target,
        slot: Slot,
        now: Tick,
    ) -> Result<Pick, Why> {
        let live = self
            .slots
            .get_mut(&slot)
            .and_then(|place| place.live.as_mut());
        let live = live.ok_or(Why::NoneReady)?;
        let permit = match live.breaker.admit(now) {
            Admit::Refused { retry_after } => return Err(Why::BreakersOpen { retry_after }),
            Admit::Yes(permit) => permit,
        };
        let pool_permit = self.breaker.admit(now);
        live.in_flight += 1;
        let is_limited = live.limiter.is_some();
        if let Some(limiter) = &mut live.limiter {
            limiter.on_call(now);
        }
        let (incarnation, appearance) = (live.incarnation(), live.appearance);
        let (address, tls) = (Arc::clone(&live.address), live.endpoint.tls);
        let tie = self.tie(target, Seat { slot, incarnation }, now);
        Ok(Pick {
            address,
            tls,
            ticket: Ticket {
                worker: WorkerId {
                    pool: name.clone(),
                    slot,
                    incarnation,
                },
                appearance,
                permit: Some(permit),
                pool_permit,
                sent_at: None,
                answered: None,
                is_limited,
                tie,
            },
        })
    }

    /// A call is given to a worker, which has the state of its key from then on.
    fn tie(&mut self, target: &Target, to: Seat, now: Tick) -> Option<Box<Tie>> {
        let mark = target.mark()?;
        let before = self.bind(mark, to, now);
        // A hint may bind what others of the same key wait for elsewhere.
        self.moved |= before != Some(to) && target.is_hint() && self.waiting.has(mark);
        Some(Box::new(Tie { mark, before }))
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
                    (
                        live.endpoint.standing,
                        live.load(self.slow_start, now),
                        chance,
                    )
                });
            }
            Target::Affinity {
                key,
                affinity: Affinity::Hint,
                ..
            } => {
                let pin = self.pins.get(key);
                return self.choose(tried, now, see, |slot, live| {
                    let is_pinned = pin.is_some_and(|pin| *pin == live.endpoint.worker);
                    (!is_pinned, Reverse(affinity::bid(key, slot)))
                });
            }
            Target::Affinity { key, .. } => match (self.pinned(key), self.bound(target, now)) {
                (None, Some(bound)) => self.check_bound(bound)?,
                _ => self.home(target, now).ok_or(Why::NoneReady)?,
            },
            Target::Worker { slot, incarnation } => {
                self.meets(*slot, *incarnation)?;
                *slot
            }
        };
        let live = self.slots.get(&slot).and_then(|place| place.live.as_ref());
        let live = live.ok_or(Why::NoneReady)?;
        let verdict = match self.verdict(live, tried, now) {
            // Nobody knows whether it is free.
            Verdict::Eligible if live.fate.doubted && !target.waits() => {
                Verdict::Refused(Why::Busy)
            }
            verdict => verdict,
        };
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

    /// The one place whose worker a call needs, for a target that leaves no choice. For a key that is where its last call
    /// went, else the highest bidder that does not drain.
    pub(crate) fn home(&self, target: &Target, now: Tick) -> Option<Slot> {
        let key = match target {
            Target::Any
            | Target::Affinity {
                affinity: Affinity::Hint,
                ..
            } => return None,
            Target::Worker { slot, .. } => return Some(*slot),
            Target::Affinity { key, .. } => key,
        };
        if let Some(slot) = self.pinned(key) {
            return Some(slot);
        }
        if let Some(bound) = self.bound(target, now) {
            return Some(bound.slot);
        }
        let bidders = self.slots.iter().filter(|(_, place)| stays(place));
        let best = bidders.max_by_key(|(slot, _)| affinity::bid(key, **slot));
        best.map(|(slot, _)| *slot)
    }

    /// The place of the worker that an order ties this key to, where that one takes calls.
    fn pinned(&self, key: &[u8]) -> Option<Slot> {
        let pin = self.pins.get(key)?;
        let place = self.slots.get(&pin.slot).filter(|place| stays(place))?;
        let lives = place.live.as_ref().map(Live::incarnation) == Some(pin.incarnation);
        lives.then_some(pin.slot)
    }

    /// Who was given the last call with the key of this target.
    fn bound(&self, target: &Target, now: Tick) -> Option<Seat> {
        self.bindings.find(target.mark()?, now)
    }

    /// The place of one that has a key's state, unless that is lost (E16).
    fn check_bound(&self, Seat { slot, incarnation }: Seat) -> Result<Slot, Why> {
        match self.meets(slot, incarnation) {
            Ok(()) => Ok(slot),
            Err(Why::Superseded { .. } | Why::Replaced { .. }) => {
                Err(Why::SessionGone { slot, incarnation })
            }
            // One that left alive may come back.
            Err(why) => Err(why),
        }
    }

    /// What speaks against a worker for a call.
    pub(crate) fn verdict(&self, live: &Live, tried: &[WorkerId], now: Tick) -> Verdict {
        if live.is_among(tried) {
            return Verdict::Tried;
        }
        let lapsed = live.fate.is_over(self.vouched, now);
        let why = lapsed.then_some(Why::Lapsed);
        why.or_else(|| live.reluctance(now))
            .map_or(Verdict::Eligible, Verdict::Refused)
    }

    /// Whether an incarnation that is asked for by its number may still be met; 0 is whichever lives.
    fn meets(&self, slot: Slot, incarnation: Incarnation) -> Result<(), Why> {
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

/// Whether keys may be tied to who lives there: one that is left alone by order is so for long, and what is tied to it
/// would wait for as long.
fn stays(place: &Place) -> bool {
    let live = place.live.as_ref();
    live.is_some_and(|live| !live.drains() && live.bound.ejected.is_none())
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
        self.is_full().then_some(Why::Busy)
    }

    /// Calls that it would have under way with one more, per unit of its weight, as much of it as is due; one that is late
    /// gives way by another one (E18).
    fn load(&self, slow_start: Duration, now: Tick) -> u128 {
        // As a whole number, which orders and needs no rounding: weights have 32 bits.
        let due = warmth::due(now.since(self.since), slow_start);
        let weight = u128::from(self.endpoint.weight.max(1)) * u128::from(due);
        let more = 1 + u128::from(self.lag.gives_way(now));
        ((u128::from(self.in_flight) + more) << 42) / weight
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
