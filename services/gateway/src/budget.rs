//! What waits in all calls for receivers that do not read, and who has to go when it is too much.
//!
//! A call that waits for its receiver takes a seat in the order in which they began to wait. Where too much waits in
//! all, the call that has been behind for longest is given up: whoever reads, if slowly, catches up now and then and has
//! a later place.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Context,
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;

/// A call that has less waiting, in bytes, goes only after those that have more: whoever reads has less.
const FEW: usize = 16 << 10;

/// Those are known by their order too once one part in this many of what may wait is taken.
const CROWDED: usize = 2;

/// How long one that was given up has to go, before another one goes in its stead.
const GOES: Duration = Duration::from_millis(100);

/// As much as one part in this many of what may wait is kept of requests beside it, to send them again.
const COPIES: usize = 4;

/// What may wait in all calls.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    held: AtomicUsize,
    /// Bytes that are kept to be sent again.
    copied: AtomicUsize,
    most: usize,
    behind: Mutex<Behind>,
}

/// Calls that are behind, in the order in which they fell behind.
#[derive(Debug, Default)]
struct Behind {
    last: u64,
    calls: BTreeMap<Place, Arc<Mark>>,
    /// The one that was given up last, and when, until it has gone: another one goes only where that was not enough.
    leaves: Option<(Place, Instant)>,
}

/// Whose turn to go it is: first those that have much waiting, by when they fell behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    has_few: bool,
    number: u64,
}

/// Tells a call that it is given up.
#[derive(Debug, Default)]
struct Mark {
    given_up: AtomicBool,
    waker: AtomicWaker,
}

/// What one call holds of it.
#[derive(Debug)]
pub(crate) struct Seat {
    budget: Budget,
    held: usize,
    /// There while it is behind.
    place: Option<(Place, Arc<Mark>)>,
}

impl Budget {
    /// One of so many bytes.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Shared {
            held: AtomicUsize::new(0),
            copied: AtomicUsize::new(0),
            most,
            behind: Mutex::default(),
        }))
    }

    /// For one direction of a call, which holds nothing yet.
    pub(crate) fn seat(&self) -> Seat {
        Seat {
            budget: self.clone(),
            held: 0,
            place: None,
        }
    }

    /// So many bytes more are kept to be sent again, unless that would be more than a part of all that may wait.
    pub(crate) fn copy(&self, bytes: usize) -> bool {
        let copied = self.0.copied.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let may = copied <= self.0.most / COPIES;
        if !may {
            self.0.copied.fetch_sub(bytes, Ordering::Relaxed);
        }
        may
    }

    /// So many of them are kept no more.
    pub(crate) fn drop_copy(&self, bytes: usize) {
        self.0.copied.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn behind(&self) -> MutexGuard<'_, Behind> {
        self.0.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Behind {
    /// The last place there is for now.
    fn place(&mut self, has_few: bool, mark: &Arc<Mark>) -> Place {
        self.last += 1;
        let number = self.last;
        let place = Place { has_few, number };
        self.calls.insert(place, Arc::clone(mark));
        place
    }

    fn give_up_one(&mut self, now: Instant) {
        // One that stays where it is must not keep all others in their places.
        let leaves = self
            .leaves
            .is_some_and(|(_, since)| now.saturating_duration_since(since) < GOES);
        if !leaves && let Some((place, oldest)) = self.calls.pop_first() {
            self.leaves = Some((place, now));
            oldest.given_up.store(true, Ordering::Release);
            oldest.waker.wake();
        }
    }
}

impl Seat {
    /// What it is a part of.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// So many more bytes wait.
    pub(crate) fn more(&mut self, bytes: usize) {
        self.held += bytes;
        let all = self.budget.0.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let most = self.budget.0.most;
        self.take_place(all > most / CROWDED);
        if all > most {
            self.budget.behind().give_up_one(Instant::now());
        }
    }

    fn take_place(&mut self, crowded: bool) {
        let has_few = self.held <= FEW;
        let mark = match &self.place {
            None if has_few && !crowded => return,
            None => Arc::default(),
            // One that had few and has more now has its place among those.
            Some((place, mark)) if place.has_few && !has_few => Arc::clone(mark),
            Some(_) => return,
        };
        let mut behind = self.budget.behind();
        if let Some((place, _)) = &self.place
            && behind.calls.remove(place).is_none()
        {
            // It is given up already.
            return;
        }
        let place = behind.place(has_few, &mark);
        drop(behind);
        self.place = Some((place, mark));
    }

    /// So many of them went on. One that has caught up is not behind any more.
    pub(crate) fn less(&mut self, bytes: usize) {
        if bytes == 0 && self.place.is_none() {
            return;
        }
        self.held -= bytes;
        self.budget.0.held.fetch_sub(bytes, Ordering::Relaxed);
        if self.held == 0
            && let Some((place, _)) = self.place.take()
        {
            let mut behind = self.budget.behind();
            behind.calls.remove(&place);
            let left = behind.leaves.take_if(|(leaves, _)| *leaves == place);
            // Nobody may come any more who would have the next one go.
            if left.is_some() && self.budget.0.held.load(Ordering::Relaxed) > self.budget.0.most {
                behind.give_up_one(Instant::now());
            }
        }
    }

    /// Whether this call has to go; where not, the task is woken when it has to.
    pub(crate) fn is_given_up(&self, cx: &mut Context<'_>) -> bool {
        self.place.as_ref().is_some_and(|(_, mark)| {
            mark.waker.register(cx.waker());
            mark.given_up.load(Ordering::Acquire)
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.less(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given_up(seat: &Seat) -> bool {
        seat.is_given_up(&mut Context::from_waker(futures::task::noop_waker_ref()))
    }

    #[test]
    fn the_one_that_is_behind_for_longest_has_to_go_and_not_the_one_that_comes() {
        let budget = Budget::new(4 * FEW + 10);
        let mut seats: Vec<Seat> = (0..3).map(|_| budget.seat()).collect();
        for seat in &mut seats {
            seat.more(FEW + 1);
        }
        let mut catches_up = seats.remove(0);
        catches_up.less(FEW + 1);
        catches_up.more(FEW + 1);

        let mut comes = budget.seat();
        comes.more(2 * FEW);

        assert!(given_up(&seats[0]));
        assert!(![&seats[1], &catches_up, &comes].into_iter().any(given_up));
        drop(seats.remove(0));
        comes.more(1);
        assert!(
            ![&seats[0], &catches_up, &comes].into_iter().any(given_up),
            "it is enough"
        );
    }

    #[test]
    fn when_one_has_left_and_too_much_still_waits_the_next_has_to_go_though_nobody_comes() {
        let budget = Budget::new(2 * FEW);
        let mut seats: Vec<Seat> = (0..4).map(|_| budget.seat()).collect();
        for seat in &mut seats {
            seat.more(FEW + 1);
        }
        assert!(given_up(&seats[0]) && !given_up(&seats[1]));

        drop(seats.remove(0));
        assert!(given_up(&seats[0]) && !given_up(&seats[1]));
        drop(seats.remove(0));
        assert!(given_up(&seats[0]) && !given_up(&seats[1]));
        drop(seats.remove(0));
        assert!(!given_up(&seats[0]), "it is enough");
    }

    #[test]
    fn of_what_is_sent_no_more_is_kept_than_a_part_of_what_may_wait() {
        let budget = Budget::new(400);
        assert!(budget.copy(60));
        assert!(!budget.copy(41));
        assert!(budget.copy(40));
        budget.drop_copy(60);
        assert!(budget.copy(60));
    }

    #[test]
    fn whoever_holds_little_goes_after_all_who_hold_much_and_what_is_dropped_is_free() {
        let budget = Budget::new(8 * FEW);
        let mut few: Vec<Seat> = (0..7).map(|_| budget.seat()).collect();
        for seat in &mut few {
            seat.more(FEW);
        }
        let mut much = budget.seat();
        much.more(FEW + 1);
        assert!(given_up(&much) && !few.iter().any(given_up));
        drop(much);

        let mut comes = budget.seat();
        comes.more(FEW);
        assert!(!few.iter().any(given_up), "there is room");
        comes.more(1);
        assert!(given_up(&comes), "it holds much now");
        drop(comes);
        let mut small = budget.seat();
        small.more(FEW);
        let mut last = budget.seat();
        last.more(1);
        let gone: Vec<bool> = few.iter().map(given_up).collect();
        // The first of those that came when it was crowded.
        assert_eq!(gone.iter().position(|gone| *gone), Some(4), "{gone:?}");
        assert!(!given_up(&small) && !given_up(&last));

        drop((few, small, last));
        assert_eq!(budget.0.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_that_stays_where_it_is_keeps_no_other_in_its_place() {
        let mut behind = Behind::default();
        let marks: [Arc<Mark>; 3] = Default::default();
        for mark in &marks {
            behind.place(false, mark);
        }
        let gone = || {
            marks
                .each_ref()
                .map(|mark| mark.given_up.load(Ordering::Acquire))
        };
        let start = Instant::now();

        behind.give_up_one(start);
        behind.give_up_one(start + GOES / 2);
        assert_eq!(gone(), [true, false, false]);
        behind.give_up_one(start + GOES);
        assert_eq!(gone(), [true, true, false]);
    }
}
