//! What the parts of the small world do, by the real cores.

use tether_clock::Tick;
use tether_lease::{Beat, Fence, Grantor, Holder, Offer, Standing, Tenure};
use tether_types::Epoch;

use super::{
    Check,
    state::{Message, Seat, State},
};
use crate::Mutant;

impl Check {
    fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// A holder beats, also one that should know better; else it asks.
    pub(super) fn speak(&self, state: &mut State, holder: u8) {
        let sent = state.holder_tick(holder);
        let alive = state.lives(holder);
        let side = state.side(holder);
        side.spoke = true;
        let message = if side.holder.is_some() || (side.seq > 0 && alive) {
            side.seq += 1;
            let (epoch, seq, ack_seen) = (side.epoch, side.seq, side.ack_seen);
            Message::Beat {
                from: holder,
                epoch,
                seq,
                ack_seen,
                sent,
            }
        } else if !alive {
            // Only a mutant counts from it, and what makes no difference is to make no states.
            let sent = match self.has(Mutant::GrantWithoutAccept) {
                true => sent,
                false => Tick::ZERO,
            };
            Message::Ask { from: holder, sent }
        } else {
            return;
        };
        self.send(state, message);
    }

    pub(super) fn deliver(&self, state: &mut State, message: Message) {
        match message {
            Message::Ask { from, sent } => self.on_ask(state, from, sent),
            Message::Offer { to, epoch } => self.on_offer(state, to, epoch),
            Message::Accept { from, epoch, sent } => self.on_accept(state, from, epoch, sent),
            Message::Granted { to, epoch, sent } => self.on_granted(state, to, epoch, sent),
            Message::Beat { .. } => self.on_beat(state, message),
            Message::Ack { .. } => self.on_ack(state, message),
        }
    }

    fn on_ask(&self, state: &mut State, from: u8, sent: Tick) {
        let tick = state.grantor_tick();
        let is_free = match &mut state.seat {
            Seat::Free => true,
            Seat::Offered { offer, .. } => !offer.stands(tick),
            Seat::Held { lease, .. } => lease.check(tick) == Tenure::Free,
        };
        if !is_free || state.revision == self.budget.offers {
            return;
        }
        state.revision += 1;
        let epoch = Epoch(state.revision);
        if self.has(Mutant::GrantWithoutAccept) {
            let lease = Grantor::grant(self.terms, tick);
            return self.grant(state, from, epoch, lease, sent);
        }
        let offer = Offer::new(epoch, tick);
        state.seat = Seat::Offered { to: from, offer };
        self.send(state, Message::Offer { to: from, epoch });
    }

    fn on_offer(&self, state: &mut State, to: u8, epoch: Epoch) {
        let (tick, alive) = (state.holder_tick(to), state.lives(to));
        let side = state.side(to);
        side.heard = side.heard.max(epoch);
        if side.holder.is_some() || alive || epoch <= side.epoch {
            return;
        }
        let accepted = match side.accepted {
            Some((known, sent)) if known >= epoch => (known, sent),
            _ => (epoch, tick),
        };
        side.accepted = Some(accepted);
        if accepted.0 == epoch {
            self.send(
                state,
                Message::Accept {
                    from: to,
                    epoch,
                    sent: accepted.1,
                },
            );
        }
    }

    fn on_accept(&self, state: &mut State, from: u8, epoch: Epoch, sent: Tick) {
        let tick = state.grantor_tick();
        match &state.seat {
            Seat::Offered { to, offer } if *to == from => {
                if let Some(lease) = offer.accept(epoch, self.terms, tick) {
                    self.grant(state, from, epoch, lease, sent);
                }
            }
            Seat::Held {
                by, epoch: held, ..
            } if *by == from && *held == epoch => {
                self.send(
                    state,
                    Message::Granted {
                        to: from,
                        epoch,
                        sent,
                    },
                );
            }
            Seat::Free | Seat::Offered { .. } | Seat::Held { .. } => {}
        }
    }

    fn grant(&self, state: &mut State, to: u8, epoch: Epoch, lease: Grantor, sent: Tick) {
        if state.side(to).heard < epoch {
            state
                .broken
                .get_or_insert("granted to one who may not hear");
        }
        state.seat = Seat::Held {
            by: to,
            epoch,
            lease,
            beaten: false,
        };
        state.owner = Some((to, epoch));
        self.send(state, Message::Granted { to, epoch, sent });
    }

    fn on_granted(&self, state: &mut State, to: u8, epoch: Epoch, sent: Tick) {
        let (tick, alive) = (state.holder_tick(to), state.lives(to));
        let side = state.side(to);
        if side.holder.is_some() || alive || epoch <= side.epoch {
            return;
        }
        let from = if self.has(Mutant::ReceiptAnchor) {
            tick
        } else {
            sent
        };
        let mut holder = Holder::granted(self.terms, from);
        if holder.check(tick) == Standing::Expired {
            return;
        }
        side.timer = Some(holder.deadline());
        (side.epoch, side.seq, side.ack_seen) = (epoch, 0, 0);
        (side.accepted, side.holder) = (None, Some(holder));
    }

    fn on_beat(&self, state: &mut State, message: Message) {
        let Message::Beat {
            from,
            epoch,
            seq,
            ack_seen,
            sent,
        } = message
        else {
            return;
        };
        let tick = state.grantor_tick();
        let believed = if self.has(Mutant::NoAckSeen) {
            seq.saturating_sub(1)
        } else {
            ack_seen
        };
        let Seat::Held {
            by,
            epoch: held,
            lease,
            beaten,
        } = &mut state.seat
        else {
            return;
        };
        if *by != from || *held != epoch {
            return;
        }
        let beat = lease.on_beat(u64::from(seq), u64::from(believed), tick);
        if beat == Beat::Ended {
            return;
        }
        let was_beaten = std::mem::replace(beaten, true);
        let extended = beat == Beat::Extended;
        // Two more follow the last answer that was heard.
        if extended && was_beaten && seq > ack_seen + 2 {
            state.broken.get_or_insert("extended one who does not hear");
        }
        self.send(
            state,
            Message::Ack {
                to: from,
                epoch,
                seq,
                extended,
                sent,
            },
        );
    }

    fn on_ack(&self, state: &mut State, message: Message) {
        let Message::Ack {
            to,
            epoch,
            seq,
            extended,
            sent,
        } = message
        else {
            return;
        };
        let tick = state.holder_tick(to);
        let side = state.side(to);
        if epoch != side.epoch {
            return;
        }
        side.ack_seen = side.ack_seen.max(seq);
        let from = if self.has(Mutant::ReceiptAnchor) {
            tick
        } else {
            sent
        };
        let Some(holder) = side.holder.as_mut().filter(|_| extended) else {
            return;
        };
        match holder.on_ack(from, self.terms.ttl(), tick) {
            Standing::Expired => side.holder = None,
            _ => side.timer = Some(holder.deadline()),
        }
    }

    /// P2, effective: what is let through never goes back.
    pub(super) fn write(&self, state: &mut State, holder: u8) {
        let epoch = state.side(holder).epoch;
        if state.fence.admit(epoch).is_err() && !self.has(Mutant::NoFence) {
            return;
        }
        if epoch < state.highest {
            state.broken.get_or_insert("two effective holders");
        }
        state.highest = state.highest.max(epoch);
    }

    pub(super) fn restart_grantor(&self, state: &mut State) {
        state.left.grantor_restarts -= 1;
        let tick = state.grantor_tick();
        state.seat = match state.owner {
            Some((by, epoch)) if !self.has(Mutant::NewLeaderDoesNotWait) => {
                let lease = Grantor::after_restart(self.terms, tick);
                Seat::Held {
                    by,
                    epoch,
                    lease,
                    beaten: false,
                }
            }
            _ => Seat::Free,
        };
    }

    /// The new agent leaves the worker to its timer; a mutant's takes its lease for just renewed.
    pub(super) fn restart_agent(&self, state: &mut State, holder: u8) {
        state.left.agent_restarts -= 1;
        let tick = state.holder_tick(holder);
        let side = state.side(holder);
        side.holder = None;
        side.seq = 0;
        if self.has(Mutant::AgentRestartResetsClock) {
            let holder = Holder::granted(self.terms, tick);
            side.timer = Some(holder.deadline());
            side.holder = Some(holder);
        }
    }

    pub(super) fn restart_fence(&self, state: &mut State) {
        state.left.fence_restarts -= 1;
        state.fence = if self.has(Mutant::FenceNotPersisted) {
            Fence::default()
        } else {
            // What it has seen is on disk before it acts.
            Fence::at(state.fence.seen())
        };
    }
}
