//! Choosing a worker within one pool.

use std::time::Duration;

use tether_breaker::{Admit, Permit};
use tether_clock::Tick;
use tether_types::{Address, Incarnation, PoolName, Slot, WorkerId};

use crate::{
    affinity,
    pool::{Live, Pool},
};

/// Which worker a caller would like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The one with the fewest calls under way.
    Any,
    /// The same one for the same key, as long as it can serve; else the next in the key's order.
    Affinity(Vec<u8>),
    /// This one or none.
    Worker {
        /// Its place.
        slot: Slot,
        /// Which start of it; 0 means whichever lives.
        incarnation: Incarnation,
    },
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
    /// Whether the worker may have seen the call.
    pub(crate) sent: bool,
}

impl Ticket {
    /// The worker that serves the call.
    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// The call was sent to the worker.
    pub fn on_sent(&mut self) {
        self.sent = true;
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
        let mut why = Why::NoneReady;
        let mut able: Vec<(Slot, u32)> = Vec::new();
        for (&slot, place) in &self.slots {
            if let Target::Worker {
                slot: wanted,
                incarnation,
            } = *target
            {
                if wanted != slot {
                    continue;
                }
                if incarnation != Incarnation(0) {
                    let living = place.live.as_ref();
                    match living.filter(|live| live.unordered) {
                        Some(live) if live.incarnation != incarnation => {
                            let by = live.incarnation;
                            return Err(Why::Replaced { by });
                        }
                        // A number that is lower than one of before says nothing.
                        Some(_) => {}
                        None if incarnation < place.floor => {
                            return Err(Why::Superseded { by: place.floor });
                        }
                        None if living.map(|live| live.incarnation) != Some(incarnation) => {
                            continue;
                        }
                        None => {}
                    }
                }
            }
            let Some(live) = &place.live else { continue };
            let is_it =
                |worker: &WorkerId| worker.slot == slot && worker.incarnation == live.incarnation;
            if tried.iter().any(is_it) {
                continue;
            }
            match live.reluctance(now) {
                None => able.push((slot, live.in_flight)),
                Some(reason) => why = why.or_milder(reason),
            }
        }
        let slot = choose(&able, target, random).ok_or(why)?;
        let live = self
            .slots
            .get_mut(&slot)
            .and_then(|place| place.live.as_mut());
        let live = live.ok_or(why)?;
        match live.breaker.admit(now) {
            Admit::Refused { retry_after } => Err(Why::BreakersOpen { retry_after }),
            Admit::Yes(permit) => {
                live.in_flight += 1;
                Ok(Pick {
                    address: live.address.clone(),
                    ticket: Ticket {
                        worker: WorkerId {
                            pool: name.clone(),
                            slot,
                            incarnation: live.incarnation,
                        },
                        appearance: live.appearance,
                        permit: Some(permit),
                        sent: false,
                    },
                })
            }
        }
    }
}

/// Chooses among slots that can take the call, each with its calls under way.
fn choose(able: &[(Slot, u32)], target: &Target, random: u64) -> Option<Slot> {
    match target {
        Target::Affinity(key) => {
            let best = able
                .iter()
                .max_by_key(|(slot, _)| affinity::bid(key, *slot));
            best.map(|(slot, _)| *slot)
        }
        Target::Any | Target::Worker { .. } => {
            let fewest = able.iter().map(|(_, in_flight)| *in_flight).min()?;
            let mut equals = able.iter().filter(|(_, in_flight)| *in_flight == fewest);
            let count = equals.clone().count() as u64;
            equals
                .nth(usize::try_from(random % count).unwrap_or(0))
                .map(|(slot, _)| *slot)
        }
    }
}

impl Live {
    /// Why it would not take a call (E1).
    fn reluctance(&self, now: Tick) -> Option<Why> {
        if self.draining {
            return Some(Why::Draining);
        }
        self.breaker
            .refusal(now)
            .map(|retry_after| Why::BreakersOpen { retry_after })
    }
}

impl Why {
    /// Of two reasons, the one that is over sooner: that is what a caller can wait for.
    fn or_milder(self, other: Self) -> Self {
        match (self, other) {
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
