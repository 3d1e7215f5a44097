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
};

use futures::task::AtomicWaker;

/// A call that has less waiting, in bytes, is not behind: whoever reads has less.
const FEW: usize = 16 << 10;

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
    calls: BTreeMap<u64, Arc<Mark>>,
    /// The one that was given up last, until it has gone: another one goes only where that was not enough.
    leaves: Option<u64>,
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
    place: Option<(u64, Arc<Mark>)>,
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
    fn give_up_one(&mut self) {
        if self.leaves.is_none()
            && let Some((place, oldest)) = self.calls.pop_first()
        {
            self.leaves = Some(place);
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
        if self.held > FEW && self.place.is_none() {
            let mark = Arc::new(Mark::default());
            let mut behind = self.budget.behind();
            behind.last += 1;
            let place = behind.last;
            behind.calls.insert(place, Arc::clone(&mark));
            self.place = Some((place, mark));
        }
        if all > self.budget.0.most {
            self.budget.behind().give_up_one();
        }
    }

    /// So many of them went on. One that has caught up is not behind any more.
    pub(crate) fn less(&mut self, bytes: usize) {
        self.held -= bytes;
        self.budget.0.held.fetch_sub(bytes, Ordering::Relaxed);
        if self.held == 0
            && let Some((place, _)) = self.place.take()
        {
            let mut behind = self.budget.behind();
            behind.calls.remove(&place);
            behind.leaves.take_if(|leaves| *leaves == place);
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

        comes.more(1);
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
    fn of_what_is_sent_no_more_is_kept_than_a_part_of_what_may_wait() {
        let budget = Budget::new(400);
        assert!(budget.copy(60));
        assert!(!budget.copy(41));
        assert!(budget.copy(40));
        budget.drop_copy(60);
        assert!(budget.copy(60));
    }

    #[test]
    fn whoever_holds_little_is_never_given_up_and_what_is_dropped_is_free() {
        let budget = Budget::new(FEW);
        let mut few: Vec<Seat> = (0..10).map(|_| budget.seat()).collect();
        for seat in &mut few {
            seat.more(FEW);
        }
        assert!(!few.iter().any(given_up));

        drop(few);
        assert_eq!(budget.0.held.load(Ordering::Relaxed), 0);
    }
}
