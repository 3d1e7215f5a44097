//! Who waits for a stream to open, in order.

use std::{
    collections::VecDeque,
    task::{Context, Waker},
};

/// A place among those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// Those who wait, and were promised nothing yet.
#[derive(Debug, Default)]
pub(crate) struct Openers {
    /// In the order of their tickets.
    waiting: VecDeque<(Ticket, Waker)>,
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
        self.waiting.push_back((ticket, cx.waker().clone()));
        ticket
    }

    /// Whether it was this one's turn. They have it in their order, so it was where only later ones wait.
    pub(crate) fn had_turn(&self, ticket: Ticket) -> bool {
        self.waiting
            .front()
            .is_none_or(|(first, _)| *first > ticket)
    }

    /// Still waits, and is to be woken so.
    pub(crate) fn wait(&mut self, ticket: Ticket, cx: &Context<'_>) {
        if let Some(at) = self.find(ticket) {
            self.waiting[at].1.clone_from(cx.waker());
        }
    }

    /// Waits no more.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        if let Some(at) = self.find(ticket) {
            self.waiting.remove(at);
        }
    }

    /// Gives the first so many their turn; answers with how many there were.
    pub(crate) fn wake(&mut self, most: u32) -> u32 {
        let mut woken = 0;
        while woken < most
            && let Some((_, waker)) = self.waiting.pop_front()
        {
            waker.wake();
            woken += 1;
        }
        woken
    }

    fn find(&self, ticket: Ticket) -> Option<usize> {
        let found = self.waiting.binary_search_by_key(&ticket, |(one, _)| *one);
        found.ok()
    }
}
