//! Who leads: an arbiter does what its candidacy asks of the store, which answers at once, late or never.

use tether_clock::Tick;
use tether_lease::Move;

use crate::{
    Mutant,
    agenda::Event,
    world::{SECOND, World, nanos},
};

/// How often an arbiter looks at the clock, if only for its own sake.
const LOOK: u64 = 2 * SECOND;

/// The store is asked again after this when it cannot be reached.
const RETRY: u64 = SECOND / 2;

impl World {
    /// An arbiter looks after its leadership, or only at the clock.
    pub(crate) fn on_lead(&mut self, at: usize, at_life: u32) {
        let (now, arbiter) = (self.now, &mut self.arbiters[at]);
        if arbiter.life != at_life || arbiter.crashed {
            return;
        }
        let event = Event::Lead {
            arbiter: arbiter.id,
            at_life,
        };
        if arbiter.runs_at() > now {
            return self.agenda.add(arbiter.runs_at(), event);
        }
        arbiter.grantor_tick(now);
        let pause = match self.arbiters.len() {
            1 => LOOK,
            _ => self.lead(at),
        };
        self.agenda.add(now + pause, event);
    }

    /// Does what leadership needs done; how long until the next time.
    fn lead(&mut self, at: usize) -> u64 {
        let tick = self.arbiters[at].holder_tick(self.now);
        for _ in 0..4 {
            let arbiter = &mut self.arbiters[at];
            let (id, life) = (arbiter.id, arbiter.life);
            match arbiter.candidate.next(tick) {
                Move::Wait(until) => return nanos(until.since(tick)).max(1_000_000),
                Move::Look if arbiter.cut > 0 => return RETRY,
                Move::Look => arbiter.candidate.on_seen(self.store.seen(id, life), tick),
                Move::Campaign { attempt, over } => {
                    let keys = (self.store.reign, self.store.renewal);
                    if arbiter.cut > 0 {
                        return RETRY;
                    } else if keys == (over.reign, over.renewal) {
                        let reign = self.store.commit();
                        (self.store.reign, self.store.renewal) = (reign, reign);
                        self.store.leader = (id, life, attempt);
                        arbiter.proved = self.now;
                        // Now and then the answer is lost, and looked up.
                        if !self.chance.one_in(8) {
                            arbiter.candidate.on_won(attempt, reign, tick);
                        }
                    } else {
                        arbiter.candidate.on_lost(attempt);
                    }
                }
                Move::Renew { reign } => self.renew(at, reign, tick),
            }
        }
        RETRY
    }

    fn renew(&mut self, at: usize, reign: u64, sent: Tick) {
        let arbiter = &self.arbiters[at];
        let (id, at_life) = (arbiter.id, arbiter.life);
        if arbiter.cut > 0 && self.mutant == Some(Mutant::KeepAliveAsLeadership) {
            // The member it is connected to does not know that it is cut off itself.
            self.arbiters[at].candidate.on_renewed(reign, sent, sent);
        } else if self.chance.one_in(8) {
            let at = self.now + self.chance.span(3 * SECOND);
            self.agenda.add(
                at,
                Event::Renewal {
                    arbiter: id,
                    at_life,
                    reign,
                    sent,
                },
            );
        } else {
            self.on_renewal(at, at_life, reign, sent);
        }
    }

    /// A renewal arrives at the store.
    pub(crate) fn on_renewal(&mut self, at: usize, at_life: u32, reign: u64, sent: Tick) {
        let arbiter = &mut self.arbiters[at];
        if arbiter.cut > 0 || arbiter.life != at_life {
            return;
        }
        let committed = self.store.reign == reign;
        if committed {
            self.store.renewal = self.store.commit();
            arbiter.proved = self.now;
            self.tell_standby(1 - at);
        }
        let arbiter = self.arbiters[at].id;
        if self.chance.one_in(8) {
            let at = self.now + self.chance.span(SECOND);
            self.agenda.add(
                at,
                Event::Renewed {
                    arbiter,
                    at_life,
                    reign,
                    sent,
                    committed,
                },
            );
        } else {
            self.on_renewed(at, at_life, (reign, sent, committed));
        }
    }

    /// The other one, which watches the keys, sees a renewal.
    fn tell_standby(&mut self, at: usize) {
        let (now, arbiter) = (self.now, &mut self.arbiters[at]);
        if arbiter.crashed || arbiter.cut > 0 || arbiter.runs_at() > now {
            return;
        }
        let (tick, seen) = (
            arbiter.holder_tick(now),
            self.store.seen(arbiter.id, arbiter.life),
        );
        arbiter.candidate.on_seen(seen, tick);
    }

    /// The store's answer arrives.
    pub(crate) fn on_renewed(
        &mut self,
        at: usize,
        at_life: u32,
        (reign, sent, committed): (u64, Tick, bool),
    ) {
        let (now, arbiter) = (self.now, &mut self.arbiters[at]);
        if arbiter.life != at_life || arbiter.crashed {
            return;
        }
        if arbiter.runs_at() > now {
            let event = Event::Renewed {
                arbiter: arbiter.id,
                at_life,
                reign,
                sent,
                committed,
            };
            return self.agenda.add(arbiter.runs_at(), event);
        }
        let tick = arbiter.holder_tick(now);
        if committed {
            arbiter.candidate.on_renewed(reign, sent, tick);
        } else {
            arbiter.candidate.on_deposed(reign);
        }
    }
}
