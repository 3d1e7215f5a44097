//! The calls of one pool that wait for a worker with a credit: whose turn it is, and who waits in vain.
//!
//! A call that any worker may take waits in the lane of its party. Lanes of one priority take turns, so that a
//! party with a thousand calls and one with a single call are served alike. A call that only one worker may take
//! waits at that worker's slot.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tether_clock::Tick;
use tether_types::{OwnerName, Slot};

use crate::Target;

/// How much the last interval between two calls that went on counts in the mean: one part of this many.
const RECENT: u32 = 8;

/// Whose calls share one lane.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// An owner that named itself.
    Owner(OwnerName),
    /// Whoever is behind this connection.
    Connection(u64),
}

/// Which calls go first, and which are shed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Waits for all others, and is shed for them.
    Low,
    /// As most calls.
    #[default]
    Normal,
    /// Goes before all others.
    High,
}

/// A call that would wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Which worker it needs.
    pub target: Target,
    /// Whose call it is.
    pub party: Party,
    /// How much it matters.
    pub priority: Priority,
    /// When its caller gives up; `None` for never.
    pub deadline: Option<Tick>,
}

/// Why a call may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overload {
    /// As many wait as may.
    Full {
        /// How many that is.
        waiting: usize,
    },
    /// One that matters more took its place.
    Shed,
    /// Its turn would come after its deadline.
    TooLate {
        /// How long it would wait, as calls go on at present.
        expected: Duration,
    },
}

/// Stands for a waiting call within its pool; a later call has a higher number.
pub(crate) type Number = u64;

#[derive(Debug, Default)]
pub(crate) struct Waiting {
    calls: BTreeMap<Number, Ask>,
    /// Those that anyone may take, the lowest priority first.
    lanes: BTreeMap<Priority, Lanes>,
    bound: BTreeMap<Slot, BTreeSet<Number>>,
    /// Calls that lost their place to others and have not been told.
    shed: Vec<Number>,
    pace: Pace,
}

impl Waiting {
    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.shed.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether a call waits for the worker in `slot`, or for anyone where there is none.
    pub(crate) fn any_at(&self, slot: Option<Slot>) -> bool {
        match slot {
            Some(slot) => self.bound.contains_key(&slot),
            None => self.lanes.values().any(|lanes| lanes.first().is_some()),
        }
    }

    /// Lets call `number` wait, for the worker in `slot` alone where there is one, as one of at most `most`.
    pub(crate) fn push(
        &mut self,
        number: Number,
        ask: Ask,
        slot: Option<Slot>,
        most: usize,
        now: Tick,
    ) -> Result<(), Overload> {
        if let (None, Some(deadline)) = (slot, ask.deadline)
            && let Some(expected) = self.pace.expected(self.before(&ask), now)
            && now + expected > deadline
        {
            return Err(Overload::TooLate { expected });
        }
        if self.calls.len() >= most {
            let waiting = self.calls.len();
            let less = self.least_below(ask.priority);
            let less = less.ok_or(Overload::Full { waiting })?;
            self.remove(less);
            self.shed.push(less);
        }
        match slot {
            Some(slot) => drop(self.bound.entry(slot).or_default().insert(number)),
            None => {
                let lanes = self.lanes.entry(ask.priority).or_default();
                lanes.push(ask.party.clone(), number);
            }
        }
        self.calls.insert(number, ask);
        Ok(())
    }

    /// A call that lost its place, to be told so.
    pub(crate) fn shed(&mut self) -> Option<Number> {
        self.shed.pop()
    }

    /// The calls whose turn it is, whoever is free: the next of those that anyone may take, and for each slot
    /// that calls wait at the first of them. Who came first is first.
    pub(crate) fn heads(&self) -> Vec<(Number, Target)> {
        let free = self.lanes.values().rev().find_map(Lanes::first);
        let bound = self.bound.iter().filter_map(|(&slot, numbers)| {
            let number = *numbers.first()?;
            let target = match &self.calls.get(&number)?.target {
                Target::Affinity { .. } => Target::any_in(slot),
                target => target.clone(),
            };
            Some((number, target))
        });
        let free = free.map(|number| (number, Target::Any));
        let mut heads: Vec<_> = free.into_iter().chain(bound).collect();
        heads.sort_by_key(|(number, _)| *number);
        heads
    }

    /// A waiting call goes on at `now`; the next turn is another party's.
    pub(crate) fn take(&mut self, number: Number, now: Tick) {
        let lanes = self.calls.get(&number).map(|ask| ask.priority);
        let lanes = lanes.and_then(|priority| self.lanes.get_mut(&priority));
        if let Some(lanes) = lanes.filter(|lanes| lanes.first() == Some(number)) {
            lanes.turns.rotate_left(1);
        }
        if self.remove(number) {
            let more = self.any_at(None);
            self.pace.on_taken(more, now);
        }
    }

    /// A waiting call waits no more.
    pub(crate) fn forget(&mut self, number: Number) {
        self.remove(number);
        self.shed.retain(|shed| *shed != number);
        if !self.any_at(None) {
            self.pace = Pace::default();
        }
    }

    /// Workers came or went: each call that has a slot is to have the one that `home` names for its target now,
    /// if it names any.
    pub(crate) fn rebind(&mut self, home: impl Fn(&Target) -> Option<Slot>) {
        let bound = std::mem::take(&mut self.bound);
        for (slot, numbers) in bound {
            for number in numbers {
                let Some(ask) = self.calls.get(&number) else {
                    continue;
                };
                let slot = home(&ask.target).unwrap_or(slot);
                self.bound.entry(slot).or_default().insert(number);
            }
        }
    }

    /// How many calls go on before one that would come now.
    fn before(&self, ask: &Ask) -> usize {
        let above = self
            .lanes
            .range(ask.priority..)
            .skip_while(|(priority, _)| **priority == ask.priority);
        let above: usize = above.map(|(_, lanes)| lanes.len()).sum();
        let beside = self.lanes.get(&ask.priority);
        above + beside.map_or(0, |lanes| lanes.before(&ask.party))
    }

    /// The newest call of the longest lane of the lowest priority there is, if that is below `priority`.
    fn least_below(&self, priority: Priority) -> Option<Number> {
        let mut below = self.lanes.range(..priority);
        below.find_map(|(_, lanes)| lanes.newest())
    }

    /// Takes a call out; answers whether anyone could have taken it.
    fn remove(&mut self, number: Number) -> bool {
        let Some(ask) = self.calls.remove(&number) else {
            return false;
        };
        let lanes = self.lanes.get_mut(&ask.priority);
        if lanes.is_some_and(|lanes| lanes.remove(&ask.party, number)) {
            return true;
        }
        self.bound.retain(|_, numbers| {
            numbers.remove(&number);
            !numbers.is_empty()
        });
        false
    }
}

/// Calls of one priority, by party.
#[derive(Debug, Default)]
struct Lanes {
    lanes: BTreeMap<Party, BTreeSet<Number>>,
    /// Whose turn comes when; each party with a call is in it once.
    turns: VecDeque<Party>,
}

impl Lanes {
    fn len(&self) -> usize {
        self.lanes.values().map(BTreeSet::len).sum()
    }

    fn first(&self) -> Option<Number> {
        self.lanes.get(self.turns.front()?)?.first().copied()
    }

    fn newest(&self) -> Option<Number> {
        let longest = self.lanes.values().max_by_key(|lane| lane.len())?;
        longest.last().copied()
    }

    fn push(&mut self, party: Party, number: Number) {
        let lane = self.lanes.entry(party.clone()).or_default();
        if lane.is_empty() {
            self.turns.push_back(party);
        }
        lane.insert(number);
    }

    /// How many calls have their turn before a further one of `party`.
    fn before(&self, party: &Party) -> usize {
        let own = self.lanes.get(party).map_or(0, BTreeSet::len);
        let turns = self.lanes.iter().map(|(other, lane)| match other == party {
            true => own,
            false => lane.len().min(own + 1),
        });
        turns.sum()
    }

    fn remove(&mut self, party: &Party, number: Number) -> bool {
        let Some(lane) = self.lanes.get_mut(party) else {
            return false;
        };
        if !lane.remove(&number) {
            return false;
        }
        if lane.is_empty() {
            self.lanes.remove(party);
            self.turns.retain(|other| other != party);
        }
        true
    }
}

/// How fast waiting calls go on, measured while others wait: what was before says nothing of now.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Tick>,
    mean: Option<Duration>,
}

impl Pace {
    fn on_taken(&mut self, more: bool, now: Tick) {
        let gap = self.last.map(|last| now.since(last));
        self.mean = match (self.mean, gap) {
            (Some(mean), Some(gap)) => Some((mean * (RECENT - 1) + gap) / RECENT),
            (mean, gap) => mean.or(gap),
        };
        match more {
            true => self.last = Some(now),
            false => *self = Self::default(),
        }
    }

    /// How long a call waits that has so many before it; `None` where nothing was measured.
    fn expected(&self, before: usize, now: Tick) -> Option<Duration> {
        let mean = self.mean?.max(now.since(self.last?));
        let turns = u32::try_from(before + 1).unwrap_or(u32::MAX);
        Some(mean.saturating_mul(turns))
    }
}
