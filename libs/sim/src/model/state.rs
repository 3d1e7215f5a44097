//! The state of the small world.

use tether_clock::Tick;
use tether_lease::{Fence, Grantor, Holder, Offer, Standing};
use tether_types::Epoch;

use super::Budget;

/// Nanoseconds of a true second on a clock that goes at a tenth of true time.
const TENTH: u64 = 100_000_000;

/// A message. It carries with it when its sender said it, which stands for what a real one keeps in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Message {
    Ask {
        from: u8,
        sent: Tick,
    },
    Offer {
        to: u8,
        epoch: Epoch,
    },
    Accept {
        from: u8,
        epoch: Epoch,
        sent: Tick,
    },
    Granted {
        to: u8,
        epoch: Epoch,
        sent: Tick,
    },
    Beat {
        from: u8,
        epoch: Epoch,
        seq: u8,
        ack_seen: u8,
        sent: Tick,
    },
    Ack {
        to: u8,
        epoch: Epoch,
        seq: u8,
        extended: bool,
        sent: Tick,
    },
}

/// The slot as its grantor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Seat {
    Free,
    Offered {
        to: u8,
        offer: Offer,
    },
    Held {
        by: u8,
        epoch: Epoch,
        lease: Grantor,
        /// Whether a beat was seen: the first one extends on trust.
        beaten: bool,
    },
}

/// One holder, its worker and the timer beside it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Side {
    pub(super) holder: Option<Holder>,
    pub(super) epoch: Epoch,
    pub(super) seq: u8,
    pub(super) ack_seen: u8,
    /// The latest offer that reached it: for the oracle.
    pub(super) heard: Epoch,
    /// The offer it accepted, and when it first did.
    pub(super) accepted: Option<(Epoch, Tick)>,
    /// When the kernel ends its worker.
    pub(super) timer: Option<Tick>,
    /// Whether it said something in this second.
    pub(super) spoke: bool,
    pub(super) frozen: u8,
}

/// Everything there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) now: u8,
    holder_rate: u64,
    grantor_rate: u64,
    pub(super) left: Budget,
    pub(super) sides: [Side; 2],
    pub(super) seat: Seat,
    /// What is in the store.
    pub(super) owner: Option<(u8, Epoch)>,
    pub(super) revision: u64,
    pub(super) network: Vec<Message>,
    pub(super) fence: Fence,
    pub(super) highest: Epoch,
    pub(super) broken: Option<&'static str>,
}

impl State {
    pub(super) fn new(left: Budget, holder_rate: u64, grantor_rate: u64) -> Self {
        Self {
            now: 0,
            holder_rate,
            grantor_rate,
            left,
            sides: Default::default(),
            seat: Seat::Free,
            owner: None,
            revision: 0,
            network: Vec::new(),
            fence: Fence::default(),
            highest: Epoch(0),
            broken: None,
        }
    }

    /// A holder's clock: without the seconds its machine was paused in.
    pub(super) fn holder_tick(&self, holder: u8) -> Tick {
        let awake = u64::from(self.now - self.sides[usize::from(holder)].frozen);
        Tick::from_nanos(awake * self.holder_rate * TENTH)
    }

    pub(super) fn grantor_tick(&self) -> Tick {
        Tick::from_nanos(u64::from(self.now) * self.grantor_rate * TENTH)
    }

    pub(super) fn side(&mut self, holder: u8) -> &mut Side {
        &mut self.sides[usize::from(holder)]
    }

    /// Whether a holder's worker is alive: the kernel ends it at its timer.
    pub(super) fn lives(&self, holder: u8) -> bool {
        let timer = self.sides[usize::from(holder)].timer;
        timer.is_some_and(|timer| self.holder_tick(holder) < timer)
    }

    /// Once a second at most, and no more than there is room for.
    pub(super) fn may_speak(&self, holder: u8, budget: &Budget) -> bool {
        !self.sides[usize::from(holder)].spoke && self.network.len() < budget.messages
    }

    pub(super) fn pass(&mut self, without: Option<u8>) {
        self.now += 1;
        if let Some(holder) = without {
            self.side(holder).frozen += 1;
        }
        for holder in [0, 1] {
            let tick = self.holder_tick(holder);
            let alive = self.lives(holder);
            let side = self.side(holder);
            side.spoke = false;
            if side
                .holder
                .as_mut()
                .is_some_and(|held| held.check(tick) == Standing::Expired)
            {
                side.holder = None;
            }
            if !alive {
                side.timer = None;
            }
        }
    }

    /// P2, live: of those whose machines were never paused.
    pub(super) fn judge(&mut self) {
        let alive = |holder: u8| self.lives(holder) && self.sides[usize::from(holder)].frozen == 0;
        if alive(0) && alive(1) {
            self.broken.get_or_insert("two live holders");
        }
    }
}
