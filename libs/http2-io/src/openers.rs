//! Who waits for a stream to open, in order.

use std::{
    collections::BTreeMap,
    task::{Context, Waker},
};

/// A place among those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// Those who wait, and were promised nothing yet.
#[derive(Debug, Default)]
pub(crate) struct Openers {
    waiting: BTreeMap<Ticket, Waker>,
    next: u64,
}

impl Openers {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Waits behind all others.
    pub(crate) fn join(&mut self, cx: &Context<'_>) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.insert(ticket, cx.waker().clone());
        ticket
    }

    /// Whether it was this one's turn.
    pub(crate) fn had_turn(&self, ticket: Ticket) -> bool {
        !self.waiting.contains_key(&ticket)
    }

    /// Still waits, and is to be woken so.
    pub(crate) fn wait(&mut self, ticket: Ticket, cx: &Context<'_>) {
        if let Some(waker) = self.waiting.get_mut(&ticket) {
            waker.clone_from(cx.waker());
        }
    }

    /// Waits no more.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
    }

    /// Gives the first so many their turn; answers with how many there were.
    pub(crate) fn wake(&mut self, most: u32) -> u32 {
        let mut woken = 0;
        while woken < most
            && let Some((_, waker)) = self.waiting.pop_first()
        {
            waker.wake();
            woken += 1;
        }
        woken
    }
}
