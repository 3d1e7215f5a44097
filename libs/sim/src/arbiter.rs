//! An arbiter: offers, grants and extends while it leads.

use std::time::Duration;

use tether_clock::{GrantorTime, HolderTime, Tick};
use tether_lease::{Beat, Candidate, Grantor, LeaderTerms, Offer, Tenure};
use tether_types::Epoch;

use crate::{
    Mutant,
    agenda::{Down, Event, Owner, Up},
    machine::Machine,
    world::{World, nanos},
};

/// A grantor that looked away for longer was not there.
const ATTENTION: Duration = Duration::from_secs(3);

/// A slot as an arbiter sees it.
#[derive(Debug, Clone)]
enum Seat {
    Free,
    Offered {
        to: u8,
        offer: Offer,
        /// In truth: for the oracle.
        made: u64,
    },
    Held {
        by: u8,
        epoch: Epoch,
        lease: Grantor,
    },
}

/// One of those who may grant.
#[derive(Debug)]
pub(crate) struct Arbiter {
    pub(crate) id: u8,
    pub(crate) machine: Machine,
    holder_time: HolderTime,
    grantor_time: GrantorTime,
    pub(crate) candidate: Candidate,
    pub(crate) life: u32,
    /// Until when it hangs, or is not there at all.
    pub(crate) away_until: u64,
    pub(crate) crashed: bool,
    /// How many faults cut it off the store.
    pub(crate) cut: u32,
    /// The reign its seats are of.
    loaded: u64,
    seats: [Seat; 2],
    /// When its last renewal was committed.
    pub(crate) proved: u64,
}

impl Arbiter {
    pub(crate) fn new(id: u8, machine: Machine, terms: LeaderTerms) -> Self {
        Self {
            id,
            holder_time: HolderTime::new(machine.reading(0)),
            grantor_time: GrantorTime::new(machine.reading(0), ATTENTION),
            machine,
            candidate: Candidate::new(terms),
            life: 1,
            away_until: 0,
            crashed: false,
            cut: 0,
            loaded: 0,
            seats: [Seat::Free, Seat::Free],
            proved: 0,
        }
    }

    /// A new process: what was in memory is gone.
    pub(crate) fn restart(&mut self, terms: LeaderTerms, now: u64) {
        self.life += 1;
        self.crashed = false;
        self.candidate = Candidate::new(terms);
        self.loaded = 0;
        self.holder_time = HolderTime::new(self.machine.reading(now));
        self.grantor_time = GrantorTime::new(self.machine.reading(now), ATTENTION);
    }

    pub(crate) fn runs_at(&self) -> u64 {
        let up = if self.machine.is_up() {
            0
        } else {
            self.machine.up_at
        };
        up.max(self.away_until)
    }

    pub(crate) fn holder_tick(&mut self, now: u64) -> Tick {
        self.holder_time.on_reading(self.machine.reading(now))
    }

    pub(crate) fn grantor_tick(&mut self, now: u64) -> Tick {
        self.grantor_time.on_reading(self.machine.reading(now))
    }
}

impl World {
    /// The reign of an arbiter while it is its own to decide; where there is one arbiter, each life is a reign.
    fn reign(&mut self, at: usize) -> Option<u64> {
        let (now, alone) = (self.now, self.arbiters.len() == 1);
        let arbiter = &mut self.arbiters[at];
        if alone {
            return Some(u64::from(arbiter.life));
        }
        let tick = arbiter.holder_tick(now);
        arbiter.candidate.leads(tick).map(|reign| reign.number)
    }

    /// Commits under the guard of a reign; none when the store refuses or cannot be reached.
    fn commit(&mut self, at: usize, reign: u64) -> Option<u64> {
        let alone = self.arbiters.len() == 1;
        let allowed = alone || (self.arbiters[at].cut == 0 && self.store.reign == reign);
        allowed.then(|| self.store.commit())
    }

    /// A message arrives at an arbiter.
    pub(crate) fn on_message(&mut self, at: usize, from: u8, said: Up) {
        let (now, arbiter) = (self.now, &mut self.arbiters[at]);
        if arbiter.crashed {
            return;
        }
        if arbiter.runs_at() > now {
            let event = Event::Arrives {
                node: from,
                arbiter: arbiter.id,
                said,
            };
            return self.agenda.add(arbiter.runs_at(), event);
        }
        let Some(reign) = self.reign(at) else { return };
        let tick = self.arbiters[at].grantor_tick(now);
        self.load(at, reign, tick);
        let answer = match said {
            Up::Ask => self.on_ask(at, from, reign, tick),
            Up::Accept(epoch) => self.on_accept(at, from, epoch, reign, tick),
            Up::Hello(epoch) => self.on_hello(at, from, epoch, (reign, tick)),
            Up::Beat {
                epoch,
                seq,
                ack_seen,
            } => self.on_beat(at, from, (epoch, seq, ack_seen), (reign, tick)),
        };
        if let Some(answer) = answer {
            self.send_down(at, usize::from(from), answer);
        }
    }

    /// Takes over what the store says of slots, with the first message of a reign.
    fn load(&mut self, at: usize, reign: u64, tick: Tick) {
        if self.arbiters[at].loaded == reign {
            return;
        }
        self.note(|| format!("arbiter {at} leads, reign {reign}"));
        let waits = self.mutant != Some(Mutant::NewLeaderDoesNotWait);
        for (slot, owner) in self.store.owners.into_iter().enumerate() {
            self.arbiters[at].seats[slot] = match owner {
                Some(owner) if waits => Seat::Held {
                    by: owner.node,
                    epoch: owner.epoch,
                    lease: Grantor::after_restart(self.setup.terms, tick),
                },
                _ => Seat::Free,
            };
        }
        for node in &mut self.nodes {
            node.anew = self.now;
        }
        self.arbiters[at].loaded = reign;
    }

    fn slot_of(&self, node: u8) -> usize {
        self.nodes[usize::from(node)].slot
    }

    fn on_ask(&mut self, at: usize, from: u8, reign: u64, tick: Tick) -> Option<Down> {
        let slot = self.slot_of(from);
        let arbiter = &mut self.arbiters[at];
        match &mut arbiter.seats[slot] {
            Seat::Offered { offer, made, .. } if offer.stands(tick) => {
                let made = *made;
                self.check_offer(slot, made);
                return None;
            }
            // Nothing remains of a lease that is free.
            Seat::Held { lease, .. } if !lease.remaining(tick).is_zero() => {
                let left = nanos(lease.remaining(tick));
                let (id, until) = (arbiter.id, self.now + arbiter.machine.until(left));
                self.wait_in_line(id, from, until);
                return None;
            }
            Seat::Free | Seat::Offered { .. } | Seat::Held { .. } => {}
        }
        // From the store, so that no other arbiter ever offers or grants the same.
        let epoch = Epoch(self.commit(at, reign)?);
        if self.mutant == Some(Mutant::GrantWithoutAccept) {
            let lease = Grantor::grant(self.setup.terms, tick);
            return self.seat(at, from, epoch, lease);
        }
        let offer = Offer::new(epoch, tick);
        self.arbiters[at].seats[slot] = Seat::Offered {
            to: from,
            offer,
            made: self.now,
        };
        Some(Down::Offer(epoch))
    }

    /// Who asks shortly before a slot is free has it the moment it is: the most that a margin has to stand.
    fn wait_in_line(&mut self, arbiter: u8, node: u8, until: u64) {
        if until < self.now + self.setup.beat * 2 {
            let said = Up::Ask;
            let event = Event::Arrives {
                node,
                arbiter,
                said,
            };
            self.agenda.add(until + 1_000, event);
        }
    }

    fn on_accept(
        &mut self,
        at: usize,
        from: u8,
        epoch: Epoch,
        reign: u64,
        tick: Tick,
    ) -> Option<Down> {
        let slot = self.slot_of(from);
        match &self.arbiters[at].seats[slot] {
            Seat::Offered { to, offer, .. } if *to == from => {
                let lease = offer.accept(epoch, self.setup.terms, tick)?;
                self.commit(at, reign)?;
                self.seat(at, from, epoch, lease)
            }
            // The answer was lost, or it accepted twice.
            Seat::Held {
                by, epoch: held, ..
            } if *by == from && *held == epoch => Some(Down::Granted(epoch)),
            Seat::Free | Seat::Offered { .. } | Seat::Held { .. } => None,
        }
    }

    fn seat(&mut self, at: usize, node: u8, epoch: Epoch, lease: Grantor) -> Option<Down> {
        let slot = self.slot_of(node);
        self.note(|| format!("arbiter {at} grants slot {slot} to node {node}, epoch {epoch}"));
        let granted = self.now;
        self.arbiters[at].seats[slot] = Seat::Held {
            by: node,
            epoch,
            lease,
        };
        self.store.owners[slot] = Some(Owner {
            node,
            epoch,
            granted,
        });
        self.grants += 1;
        self.announce(slot, epoch);
        self.check_deaf_grant(usize::from(node));
        Some(Down::Granted(epoch))
    }

    fn on_hello(
        &mut self,
        at: usize,
        from: u8,
        epoch: Epoch,
        (reign, tick): (u64, Tick),
    ) -> Option<Down> {
        let slot = self.slot_of(from);
        match &mut self.arbiters[at].seats[slot] {
            Seat::Held {
                by,
                epoch: held,
                lease,
            } if *by == from && *held == epoch => {
                if lease.check(tick) == Tenure::Free {
                    return self.lost(at, epoch, reign);
                }
                *lease = Grantor::grant(self.setup.terms, tick);
                Some(Down::Welcome(epoch))
            }
            Seat::Free | Seat::Offered { .. } | Seat::Held { .. } => self.lost(at, epoch, reign),
        }
    }

    /// An end is told once it is committed: a leader of yesterday, whose machine was paused, must not tell one.
    fn lost(&mut self, at: usize, epoch: Epoch, reign: u64) -> Option<Down> {
        self.commit(at, reign).map(|_| Down::Lost(epoch))
    }

    fn on_beat(
        &mut self,
        at: usize,
        from: u8,
        (epoch, seq, seen): (Epoch, u64, u64),
        (reign, tick): (u64, Tick),
    ) -> Option<Down> {
        let slot = self.slot_of(from);
        let believed = match self.mutant {
            Some(Mutant::NoAckSeen) => seq.saturating_sub(1),
            _ => seen,
        };
        let arbiter = &mut self.arbiters[at];
        let beat = match &mut arbiter.seats[slot] {
            Seat::Held {
                by,
                epoch: held,
                lease,
            } if *by == from && *held == epoch => lease.on_beat(seq, believed, tick),
            Seat::Free | Seat::Offered { .. } | Seat::Held { .. } => {
                return self.lost(at, epoch, reign);
            }
        };
        let extended = match beat {
            Beat::Extended => true,
            Beat::Unproven | Beat::Stale => false,
            Beat::Ended => return self.lost(at, epoch, reign),
        };
        // A leader whose machine was paused since it proved to lead cannot know better.
        let excused = arbiter
            .machine
            .paused
            .is_some_and(|paused| paused > arbiter.proved);
        if extended {
            self.check_deaf_beat(usize::from(from));
        }
        Some(Down::Ack {
            epoch,
            seq,
            extended,
            excused,
        })
    }
}
