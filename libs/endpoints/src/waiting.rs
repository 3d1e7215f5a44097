//! The calls of one pool that wait for a worker with a credit: whose turn it is, and who waits in vain.
//!
//! A call that any worker may take waits in one line, a call that only one worker may take in the line at that worker's
//! slot. In a line each party has a lane. Lanes of one priority take turns, so that a party with a thousand calls and one
//! with a single call are served alike.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Bound::{Excluded, Unbounded},
    time::Duration,
};

use tether_clock::Tick;
use tether_types::{OwnerName, Slot, WorkerId};

use crate::{Target, bindings::Mark};

/// How much the last interval between two calls that went on counts in the mean: one part of this many.
const RECENT: u32 = 8;

/// Whose calls share one lane.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// Whoever is behind this connection.
    Connection(u64),
    /// An owner that named itself.
    Owner(OwnerName),
}

impl Party {
    /// The first in the order of all.
    const FIRST: Self = Self::Connection(0);
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
    /// Workers that have refused it already, and are not given it again.
    pub tried: Vec<WorkerId>,
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
    /// One that matters more took its place, or one of a party that has fewer.
    Shed,
    /// Its turn would come after its deadline.
    TooLate {
        /// How long it would wait, as calls go on at present.
        expected: Duration,
    },
}

/// Stands for a waiting call within its pool; a later call has a higher number.
pub(crate) type Number = u64;

/// One whose turn it is, and what it needs.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) number: Number,
    pub(crate) target: Target,
    pub(crate) tried: Vec<WorkerId>,
}

/// Where a call may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    slot: Option<Slot>,
    /// One that loses its place to it.
    instead_of: Option<Number>,
}

#[derive(Debug, Default)]
pub(crate) struct Waiting {
    calls: BTreeMap<Number, Call>,
    /// Those that anyone may take.
    free: Line,
    /// Those that only the worker in a slot may take.
    bound: BTreeMap<Slot, Line>,
    /// The numbers of each party in all lines.
    parties: BTreeMap<(Priority, Party), BTreeSet<Number>>,
    /// Calls that lost their place to others and have not been told.
    shed: Vec<Number>,
    /// How many wait for the worker of a key.
    marks: HashMap<Mark, usize>,
}

#[derive(Debug)]
struct Call {
    ask: Ask,
    slot: Option<Slot>,
}

impl Waiting {
    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.shed.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether a call waits for the worker of this key.
    pub(crate) fn has(&self, mark: Mark) -> bool {
        self.marks.contains_key(&mark)
    }

    /// Whether a call waits for the worker in `slot`, or for anyone where there is none.
    pub(crate) fn any_at(&self, slot: Option<Slot>) -> bool {
        match slot {
            Some(slot) => self.bound.contains_key(&slot),
            None => !self.free.is_empty(),
        }
    }

    /// Where a call may wait that comes now, for the worker in `slot` alone where there is one, as one of at most `most`.
    pub(crate) fn may_wait(
        &self,
        ask: &Ask,
        slot: Option<Slot>,
        most: usize,
        now: Tick,
    ) -> Result<Place, Overload> {
        let line = match slot {
            Some(slot) => self.bound.get(&slot),
            None => Some(&self.free),
        };
        if let (Some(line), Some(deadline)) = (line, ask.deadline)
            && let Some(expected) = line.pace.expected(line.before(ask), now)
            && now + expected > deadline
        {
            return Err(Overload::TooLate { expected });
        }
        let waiting = self.calls.len();
        let instead_of = match waiting >= most {
            true => Some(self.yields_to(ask).ok_or(Overload::Full { waiting })?),
            false => None,
        };
        Ok(Place { slot, instead_of })
    }

    /// Lets call `number` wait where it may.
    pub(crate) fn push(&mut self, number: Number, ask: Ask, place: Place) {
        let Place { slot, instead_of } = place;
        if let Some(less) = instead_of {
            self.remove(less);
            self.shed.push(less);
        }
        self.line(slot).push(&ask, number);
        let of_party = self.parties.entry((ask.priority, ask.party.clone()));
        of_party.or_default().insert(number);
        if let Some(mark) = strict_mark(&ask) {
            *self.marks.entry(mark).or_default() += 1;
        }
        self.calls.insert(number, Call { ask, slot });
    }

    /// A call that lost its place, to be told so.
    pub(crate) fn shed(&mut self) -> Option<Number> {
        self.shed.pop()
    }

    /// The calls whose turn it is, whoever is free: those that anyone may take, until the first that is not particular,
    /// and of each slot that calls wait at the first. What matters more is first, then who came first.
    pub(crate) fn heads(&self) -> Vec<Head> {
        let head = |number: Number| {
            let call = self.calls.get(&number)?;
            let target = call.ask.target.clone();
            let tried = call.ask.tried.clone();
            let order = (Reverse(call.ask.priority), number);
            Some((
                order,
                Head {
                    number,
                    target,
                    tried,
                },
            ))
        };
        let mut heads = Vec::new();
        for (order, free) in self.free.firsts().filter_map(head) {
            let is_particular = !free.tried.is_empty();
            heads.push((order, free));
            if !is_particular {
                break;
            }
        }
        let bound = self.bound.values().filter_map(|line| line.firsts().next());
        heads.extend(bound.filter_map(head));
        heads.sort_by_key(|(order, _)| *order);
        heads.into_iter().map(|(_, head)| head).collect()
    }

    /// A waiting call goes on at `now`; the next turn is another party's.
    pub(crate) fn take(&mut self, number: Number, now: Tick) {
        let Some(Call { ask, slot }) = self.calls.get(&number) else {
            return;
        };
        let (ask, slot) = (ask.clone(), *slot);
        let line = self.line(slot);
        line.turn(&ask);
        line.pace.on_taken(now);
        self.remove(number);
    }

    /// A waiting call waits no more.
    pub(crate) fn forget(&mut self, number: Number) {
        self.remove(number);
        self.shed.retain(|shed| *shed != number);
    }

    /// Workers came or went: each call is to have the slot that `home` names for its target now, if it names any.
    pub(crate) fn rebind(&mut self, home: impl Fn(&Target) -> Option<Slot>) {
        let mut before = std::mem::take(&mut self.bound);
        for (number, call) in &mut self.calls {
            let Some(slot) = home(&call.ask.target).or(call.slot) else {
                continue;
            };
            if call.slot.replace(slot).is_none() {
                // Nobody was there when it came.
                self.free.remove(&call.ask, *number);
            }
            let line = self.bound.entry(slot).or_insert_with(|| Line {
                pace: before.remove(&slot).unwrap_or_default().pace,
                ..Line::default()
            });
            line.push(&call.ask, *number);
        }
    }

    /// Which call has to go for this one: of those that matter least, and no more than it, the newest of the party that
    /// has the most; among those that matter as much only where that party would still have as many.
    fn yields_to(&self, ask: &Ask) -> Option<Number> {
        let own = (ask.priority, ask.party.clone());
        let own = self.parties.get(&own).map_or(0, BTreeSet::len);
        let lowest = self.parties.keys().next()?.0;
        let least = self.parties.range((lowest, Party::FIRST)..);
        let least = least.take_while(|((priority, _), _)| *priority == lowest);
        let (_, most) = least.max_by_key(|(_, numbers)| numbers.len())?;
        let may = lowest < ask.priority || (lowest == ask.priority && most.len() > own + 1);
        if may { most.last().copied() } else { None }
    }

    fn line(&mut self, slot: Option<Slot>) -> &mut Line {
        match slot {
            Some(slot) => self.bound.entry(slot).or_default(),
            None => &mut self.free,
        }
    }

    fn remove(&mut self, number: Number) {
        let Some(Call { ask, slot }) = self.calls.remove(&number) else {
            return;
        };
        self.line(slot).remove(&ask, number);
        if let Some(slot) = slot
            && self.bound.get(&slot).is_some_and(Line::is_empty)
        {
            self.bound.remove(&slot);
        }
        if let Some(mark) = strict_mark(&ask)
            && let Some(count) = self.marks.get_mut(&mark)
        {
            *count -= 1;
            if *count == 0 {
                self.marks.remove(&mark);
            }
        }
        let party = (ask.priority, ask.party);
        if let Some(numbers) = self.parties.get_mut(&party) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.parties.remove(&party);
            }
        }
    }
}

/// The key of a call that only the worker of its key may take.
fn strict_mark(ask: &Ask) -> Option<Mark> {
    ask.target.mark().filter(|_| !ask.target.is_hint())
}

/// Calls that wait for the same, by priority.
#[derive(Debug, Default)]
struct Line {
    lanes: BTreeMap<Priority, Lanes>,
    pace: Pace,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    fn push(&mut self, ask: &Ask, number: Number) {
        let lanes = self.lanes.entry(ask.priority).or_default();
        lanes.push(ask.party.clone(), number);
    }

    fn remove(&mut self, ask: &Ask, number: Number) {
        if let Some(lanes) = self.lanes.get_mut(&ask.priority) {
            lanes.remove(&ask.party, number);
            if lanes.turns.is_empty() {
                self.lanes.remove(&ask.priority);
            }
        }
        if self.is_empty() {
            self.pace = Pace::default();
        }
    }

    /// The party of this call has had its turn.
    fn turn(&mut self, ask: &Ask) {
        if let Some(lanes) = self.lanes.get_mut(&ask.priority) {
            lanes.turns.retain(|party| *party != ask.party);
            lanes.turns.push_back(ask.party.clone());
        }
    }

    /// The first call of each party, in the order of their turns.
    fn firsts(&self) -> impl Iterator<Item = Number> {
        self.lanes.values().rev().flat_map(Lanes::firsts)
    }

    /// How many calls go on before one that would come now.
    fn before(&self, ask: &Ask) -> usize {
        let above = self.lanes.range((Excluded(ask.priority), Unbounded));
        let above: usize = above.map(|(_, lanes)| lanes.len()).sum();
        let beside = self.lanes.get(&ask.priority);
        above + beside.map_or(0, |lanes| lanes.before(&ask.party))
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

    fn firsts(&self) -> impl Iterator<Item = Number> {
        let first = |party| self.lanes.get(party)?.first().copied();
        self.turns.iter().filter_map(first)
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

    fn remove(&mut self, party: &Party, number: Number) {
        let Some(lane) = self.lanes.get_mut(party) else {
            return;
        };
        lane.remove(&number);
        if lane.is_empty() {
            self.lanes.remove(party);
            self.turns.retain(|other| other != party);
        }
    }
}

/// How fast waiting calls go on, measured while others wait: what was before says nothing of now.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Tick>,
    mean: Option<Duration>,
}

impl Pace {
    fn on_taken(&mut self, now: Tick) {
        let gap = self.last.map(|last| now.since(last));
        self.mean = match (self.mean, gap) {
            (Some(mean), Some(gap)) => Some((mean * (RECENT - 1) + gap) / RECENT),
            (mean, gap) => mean.or(gap),
        };
        self.last = Some(now);
    }

    /// How long a call waits that has so many before it; `None` where nothing was measured.
    fn expected(&self, before: usize, now: Tick) -> Option<Duration> {
        let mean = self.mean?;
        // A lull is not what every turn will take, but it may last as long again.
        let lull = now.since(self.last?).saturating_sub(mean);
        let turns = u32::try_from(before + 1).unwrap_or(u32::MAX);
        Some(mean.saturating_mul(turns).saturating_add(lull))
    }
}
