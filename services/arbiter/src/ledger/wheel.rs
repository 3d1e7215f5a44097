//! When to look at what: a lazy timer wheel.
//!
//! Each thing that has a deadline keeps the deadline itself; the wheel only remembers to look at it, no
//! later than that. A renewal moves a deadline later and leaves the wheel alone: the look that comes too
//! early arms another. So a beat costs nothing here, and a thing that is gone is met once more and left.
//!
//! Entries wait in turns of a quarter of a second, which take one in by a push and are looked through as a
//! whole when they begin; what is still due within its turn then waits in order of time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, binary_heap::PeekMut},
    time::Duration,
};

use tether_clock::Tick;

/// A turn has this many bits of nanoseconds: 268 ms.
const TURN_BITS: u32 = 28;

/// Nothing waits longer than this for a look, so that what is gone is not kept for as long as it might
/// have lived (A4).
pub(super) const HORIZON: Duration = Duration::from_secs(60);

/// Looks to come.
#[derive(Debug)]
pub(super) struct Wheel<K> {
    /// By turn; none of them is empty.
    far: BTreeMap<u64, Vec<(Tick, K)>>,
    /// Of turns that have begun.
    near: BinaryHeap<Reverse<(Tick, K)>>,
    /// The latest time it was told.
    now: Tick,
}

impl<K: Ord> Wheel<K> {
    pub(super) const fn new() -> Self {
        Self {
            far: BTreeMap::new(),
            near: BinaryHeap::new(),
            now: Tick::ZERO,
        }
    }

    /// Has `key` looked at no later than `at`. Tells for when it was noted: [`Wheel::pop`] says the same,
    /// so that whoever armed twice knows which look still counts.
    pub(super) fn arm(&mut self, key: K, at: Tick) -> Tick {
        let at = at.min(self.now + HORIZON);
        if turn(at) > turn(self.now) {
            self.far.entry(turn(at)).or_default().push((at, key));
        } else {
            self.near.push(Reverse((at, key)));
        }
        at
    }

    /// The next one to look at, with the time it was armed for: it is due, or its turn has begun. One
    /// that is not due after all is to be armed again.
    pub(super) fn pop(&mut self, now: Tick) -> Option<(Tick, K)> {
        self.now = self.now.max(now);
        if let Some(mut first) = self.far.first_entry()
            && *first.key() <= turn(now)
        {
            let entry = first.get_mut().pop();
            if first.get().is_empty() {
                first.remove();
            }
            return entry;
        }
        let first = self.near.peek_mut().filter(|first| first.0.0 <= now)?;
        let Reverse(entry) = PeekMut::pop(first);
        Some(entry)
    }

    /// When to call [`Wheel::pop`] next: never after a deadline, and before one by less than a turn or
    /// where a deadline has moved.
    pub(super) fn next(&self) -> Option<Tick> {
        let far = self.far.first_key_value();
        let far = far.map(|(&turn, _)| Tick::from_nanos(turn << TURN_BITS));
        let near = self.near.peek().map(|Reverse(first)| first.0);
        far.into_iter().chain(near).min()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.near.len() + self.far.values().map(Vec::len).sum::<usize>()
    }
}

fn turn(at: Tick) -> u64 {
    at.as_nanos() >> TURN_BITS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Things with deadlines as the ledger keeps them, and beside them a plain ordered set that is never
    /// late nor early.
    #[derive(Debug)]
    struct Model {
        wheel: Wheel<usize>,
        deadlines: [Option<Tick>; 8],
        armed: [Tick; 8],
        set: BTreeSet<(Tick, usize)>,
        now: Tick,
    }

    impl Model {
        fn change(&mut self, key: usize, deadline: Option<Tick>) {
            if let Some(before) = std::mem::replace(&mut self.deadlines[key], deadline) {
                self.set.remove(&(before, key));
            }
            if let Some(deadline) = deadline {
                self.set.insert((deadline, key));
                self.arm(key, deadline);
            }
        }

        fn arm(&mut self, key: usize, deadline: Tick) {
            if deadline < self.armed[key] {
                self.armed[key] = self.wheel.arm(key, deadline);
            }
        }

        /// What is due, by the wheel.
        fn look(&mut self) -> BTreeSet<(Tick, usize)> {
            let mut due = BTreeSet::new();
            while let Some((at, key)) = self.wheel.pop(self.now) {
                if self.armed[key] != at {
                    continue;
                }
                self.armed[key] = Tick::NEVER;
                match self.deadlines[key] {
                    Some(deadline) if deadline <= self.now => {
                        self.deadlines[key] = None;
                        due.insert((deadline, key));
                    }
                    Some(deadline) => self.arm(key, deadline),
                    None => {}
                }
            }
            due
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is renewed, shortened and given up, all that is due is met when it is, and nothing is
        /// kept of what is gone.
        #[test]
        fn a_look_is_never_late_and_meets_exactly_what_is_due(
            steps in vec((0..8_usize, prop::option::weighted(0.8, 0..200_000_u64), 0..20_000_u64), 1..80),
        ) {
            let start = Tick::ZERO + Duration::from_secs(1_000);
            let mut model = Model {
                wheel: Wheel::new(),
                deadlines: [None; 8],
                armed: [Tick::NEVER; 8],
                set: BTreeSet::new(),
                now: start,
            };
            model.look();
            for (key, after_ms, wait_ms) in steps {
                let deadline = after_ms.map(|ms| model.now + Duration::from_millis(ms));
                model.change(key, deadline);
                // As the timer does: it sleeps until the wheel says, and then looks.
                let until = model.now + Duration::from_millis(wait_ms);
                loop {
                    let next = model.wheel.next();
                    if let Some(&(first, _)) = model.set.first() {
                        prop_assert!(next.is_some_and(|next| next <= first), "late");
                    }
                    model.now = next.map_or(until, |next| next.clamp(model.now, until));
                    let later = model.set.split_off(&(model.now + Duration::from_nanos(1), 0));
                    let due = std::mem::replace(&mut model.set, later);
                    prop_assert_eq!(model.look(), due);
                    prop_assert!(model.wheel.next().is_none_or(|next| next > model.now), "it spins");
                    if model.now == until {
                        break;
                    }
                }
            }
            model.now = model.now + HORIZON;
            model.look();
            let alive = model.deadlines.iter().flatten().count();
            prop_assert_eq!(model.wheel.len(), alive, "looks at what is gone are kept");
        }
    }

    #[test]
    fn a_million_renewals_leave_the_wheel_as_it_is() {
        let mut wheel = Wheel::new();
        let start = Tick::ZERO + Duration::from_secs(1_000);
        wheel.pop(start);
        let (mut deadline, mut armed, mut looks) = (Tick::ZERO, Tick::NEVER, 0);
        for beat in 0..1_000_000_u64 {
            let now = start + Duration::from_millis(beat);
            while let Some((at, ())) = wheel.pop(now) {
                looks += 1;
                assert!(at == armed && deadline > now);
                armed = Tick::NEVER;
            }
            deadline = now + Duration::from_secs(20);
            if deadline < armed {
                armed = wheel.arm((), deadline);
            }
        }

        assert_eq!(wheel.len(), 1);
        assert!(looks <= 1_000_000 / 19_000, "{looks}");
    }
}
