//! Which worker has the state of a key: the one that was given its last call.
//!
//! The bids of [`affinity`](crate::affinity) say where a key belongs, and not where it was: a slot that comes may win it,
//! and one that starts anew keeps it with nothing left. What a strict call needs is the very incarnation that served the
//! one before.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use tether_clock::Tick;
use tether_types::{Epoch, Incarnation, OwnerName, Slot, WorkerId};

/// In whose name a call is made, where it was seen that this session holds: the keys of a session end with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Session {
    /// Whose session it is.
    pub owner: OwnerName,
    /// Which of them.
    pub epoch: Epoch,
}

/// How long and of how many keys it is remembered who served them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// From the last call that was given to a worker.
    pub keep_for: Duration,
    /// Of each pool; beyond that the key goes that was used least recently.
    pub most: usize,
}

impl Default for Keeping {
    fn default() -> Self {
        Self {
            keep_for: Duration::from_secs(60 * 60),
            most: 100_000,
        }
    }
}

/// Stands for a key in one session: keys are as long as their callers like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Mark(u64, u64);

impl Mark {
    pub(crate) fn of(key: &[u8], session: Option<&Session>) -> Self {
        let half = |which: u8| {
            let mut hasher = DefaultHasher::new();
            (which, key, session).hash(&mut hasher);
            hasher.finish()
        };
        Self(half(0), half(1))
    }
}

/// The incarnation that a key is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) slot: Slot,
    pub(crate) incarnation: Incarnation,
}

impl Seat {
    pub(crate) fn of(worker: &WorkerId) -> Self {
        Self {
            slot: worker.slot,
            incarnation: worker.incarnation,
        }
    }
}

#[derive(Debug)]
struct Binding {
    to: Seat,
    /// The number of its last use; a later one has a higher number.
    used: u64,
    until: Tick,
}

#[derive(Debug, Default)]
pub(crate) struct Bindings {
    by_mark: HashMap<Mark, Binding>,
    by_use: BTreeMap<u64, Mark>,
    uses: u64,
}

impl Bindings {
    pub(crate) fn find(&self, mark: Mark, now: Tick) -> Option<Seat> {
        let binding = self.by_mark.get(&mark);
        let binding = binding.filter(|binding| now < binding.until);
        binding.map(|binding| binding.to)
    }

    /// A call of this key is given to a worker; answers whom it was bound to before.
    pub(crate) fn bind(
        &mut self,
        mark: Mark,
        to: Seat,
        keeping: Keeping,
        now: Tick,
    ) -> Option<Seat> {
        self.uses += 1;
        let binding = Binding {
            to,
            used: self.uses,
            until: now + keeping.keep_for,
        };
        let before = self.by_mark.insert(mark, binding);
        if let Some(before) = &before {
            self.by_use.remove(&before.used);
        }
        self.by_use.insert(self.uses, mark);
        before.map(|before| before.to)
    }

    /// A key is bound to this worker no more, but to whom it was before: its call was never sent there.
    pub(crate) fn restore(&mut self, mark: Mark, from: Seat, before: Option<Seat>) {
        let binding = self.by_mark.get_mut(&mark);
        let Some(binding) = binding.filter(|binding| binding.to == from) else {
            return;
        };
        match before {
            Some(before) => binding.to = before,
            None => {
                self.by_use.remove(&binding.used);
                self.by_mark.remove(&mark);
            }
        }
    }

    /// Forgets what is not to be remembered any more; answers whether that was a key that somebody waits for.
    pub(crate) fn expire(
        &mut self,
        keeping: Keeping,
        now: Tick,
        is_waited_for: impl Fn(Mark) -> bool,
    ) -> bool {
        let mut any = false;
        while let Some((_, mark)) = self.by_use.first_key_value() {
            let is_over = self.by_mark.get(mark).is_none_or(|at| at.until <= now);
            if !is_over && self.by_mark.len() <= keeping.most {
                break;
            }
            if let Some((_, mark)) = self.by_use.pop_first() {
                self.by_mark.remove(&mark);
                any |= is_waited_for(mark);
            }
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEPING: Keeping = Keeping {
        keep_for: Duration::from_secs(10),
        most: 3,
    };

    fn at(seconds: u64) -> Tick {
        Tick::ZERO + Duration::from_secs(seconds)
    }

    fn to(slot: Slot) -> Seat {
        Seat {
            slot,
            incarnation: Incarnation(1),
        }
    }

    fn key(text: &str) -> Mark {
        Mark::of(text.as_bytes(), None)
    }

    #[test]
    fn the_key_that_was_used_least_recently_goes_first_and_each_in_its_time() {
        let expire = |bindings: &mut Bindings, second| {
            bindings.expire(KEEPING, at(second), |mark| mark != key("c"))
        };
        let mut bindings = Bindings::default();
        for (second, text) in (0..).zip(["a", "b", "c"]) {
            assert_eq!(bindings.bind(key(text), to(0), KEEPING, at(second)), None);
        }
        let before = bindings.bind(key("a"), to(1), KEEPING, at(3));
        assert_eq!(before, Some(to(0)));
        bindings.bind(key("d"), to(0), KEEPING, at(4));

        assert!(expire(&mut bindings, 4), "there are too many");
        assert_eq!(bindings.find(key("b"), at(4)), None);
        assert_eq!(bindings.find(key("c"), at(12)), None, "its time is over");
        assert!(!expire(&mut bindings, 11));
        assert!(!expire(&mut bindings, 12), "nobody waits for it");
        assert_eq!(
            (
                bindings.find(key("c"), at(12)),
                bindings.find(key("a"), at(12))
            ),
            (None, Some(to(1)))
        );
        assert!(expire(&mut bindings, 14));
        assert!(bindings.by_mark.is_empty() && bindings.by_use.is_empty());
    }

    #[test]
    fn each_session_has_keys_of_its_own() {
        let session = |epoch| Session {
            owner: "beam@a".parse().unwrap(),
            epoch: Epoch(epoch),
        };
        let marks = [
            Mark::of(b"k", None),
            Mark::of(b"k", Some(&session(1))),
            Mark::of(b"k", Some(&session(2))),
            Mark::of(b"l", None),
        ];
        for (at, mark) in marks.iter().enumerate() {
            assert_eq!(marks.iter().position(|other| other == mark), Some(at));
        }
    }
}
