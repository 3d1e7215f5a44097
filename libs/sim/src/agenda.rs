//! What happens, in the order of true time; what happens in one instant, in the order it was added.

use std::{cmp::Ordering, collections::BinaryHeap};

use tether_lease::Seen;
use tether_types::Epoch;

use tether_clock::Tick;

/// What a node says to an arbiter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Up {
    /// It would like to have its slot.
    Ask,
    /// It takes the offer.
    Accept(Epoch),
    /// Its agent is new and found this worker.
    Hello(Epoch),
    /// A beat.
    Beat {
        epoch: Epoch,
        seq: u64,
        ack_seen: u64,
    },
}

/// What an arbiter says to a node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Down {
    /// The slot is to be had for it.
    Offer(Epoch),
    /// The slot is its.
    Granted(Epoch),
    /// It may beat for what it found.
    Welcome(Epoch),
    /// A beat was seen, and extended the lease or not. The last says whether a leader spoke that could not know
    /// better, as its machine had been paused.
    Ack {
        epoch: Epoch,
        seq: u64,
        extended: bool,
        excused: bool,
    },
    /// The lease is over.
    Lost(Epoch),
}

/// One event.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// A node's next beat or question is due.
    Beat { node: u8, at_life: u32 },
    /// The timer beside a node's worker may have run out.
    Timer { node: u8 },
    /// A worker that was killed is gone.
    Gone { node: u8, epoch: Epoch },
    /// A message arrives at an arbiter.
    Arrives { node: u8, arbiter: u8, said: Up },
    /// An answer arrives at the agent that was asked for it.
    Answers { node: u8, at_life: u32, said: Down },
    /// An arbiter looks after its leadership, or at its clock.
    Lead { arbiter: u8, at_life: u32 },
    /// A slow renewal is committed, or not.
    Renewal {
        arbiter: u8,
        at_life: u32,
        reign: u64,
        sent: Tick,
    },
    /// And answered.
    Renewed {
        arbiter: u8,
        at_life: u32,
        reign: u64,
        sent: Tick,
        committed: bool,
    },
    /// A late write arrives.
    Write { node: u8, epoch: Epoch },
    /// A machine is long enough awake to have ended what was over.
    Awake { node: u8 },
    /// A fault begins.
    Fault(u8),
    /// A fault ends.
    Heals(u8),
    /// What a fault did to the nodes is over.
    Settled(u8),
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Time above, order below.
    key: u64,
    event: Event,
}

/// Bits of a key that keep the order of one instant.
const ORDER_BITS: u32 = 24;

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key.cmp(&self.key)
    }
}

/// The events to come.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    entries: BinaryHeap<Entry>,
    pub(crate) added: u64,
}

impl Agenda {
    pub(crate) fn add(&mut self, at: u64, event: Event) {
        self.added += 1;
        let key = (at << ORDER_BITS) | self.added;
        self.entries.push(Entry { key, event });
    }

    pub(crate) fn next(&mut self) -> Option<(u64, Event)> {
        let entry = self.entries.pop()?;
        Some((entry.key >> ORDER_BITS, entry.event))
    }
}

/// The two keys of leadership and the owners of slots, behind a log that has one order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    pub(crate) revision: u64,
    pub(crate) reign: u64,
    pub(crate) renewal: u64,
    /// Who leads: arbiter, its life, and the attempt that won.
    pub(crate) leader: (u8, u32, u64),
    pub(crate) owners: [Option<Owner>; 2],
}

/// Who a slot was granted to, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) node: u8,
    pub(crate) epoch: Epoch,
    pub(crate) granted: u64,
}

impl Store {
    pub(crate) fn commit(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// The keys as one life of an arbiter sees them.
    pub(crate) fn seen(&self, arbiter: u8, life: u32) -> Seen {
        let (leader, its_life, attempt) = self.leader;
        let own = self.reign > 0 && leader == arbiter && its_life == life;
        Seen {
            reign: self.reign,
            renewal: self.renewal,
            own: own.then_some(attempt),
        }
    }
}
