//! How many workers may be started within a second.

use std::{collections::VecDeque, time::Duration};

use tether_clock::Tick;

const SECOND: Duration = Duration::from_secs(1);

/// A bucket with one token for each start that a second may see. Each token comes back one second
/// after it was taken: a burst takes all of them, and no second, wherever it begins, sees more starts
/// than the limit. A bucket that filled drop by drop would let twice as many through.
#[derive(Debug, Clone, Default)]
pub struct Starts {
    limit: usize,
    /// When tokens were taken, the oldest first; no more than the limit.
    taken: VecDeque<Tick>,
}

impl Starts {
    /// A full bucket; a `limit` of zero is no limit.
    pub fn new(limit: u32) -> Self {
        let mut starts = Self::default();
        starts.change(limit);
        starts
    }

    /// Changes the limit; what was taken stays taken.
    pub fn change(&mut self, limit: u32) {
        self.limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let surplus = self.taken.len().saturating_sub(self.limit);
        self.taken.drain(..surplus);
    }

    /// Takes a token; false when there is none, and [`Starts::next_deadline`] says when there will be.
    pub fn try_take(&mut self, now: Tick) -> bool {
        while self.taken.front().is_some_and(|&at| at + SECOND <= now) {
            self.taken.pop_front();
        }
        let free = self.taken.len() < self.limit;
        if free {
            self.taken.push_back(now);
        }
        free || self.limit == 0
    }

    /// When the next token comes back, where all were taken.
    pub fn next_deadline(&self) -> Option<Tick> {
        let oldest = self.taken.front().map(|&at| at + SECOND);
        oldest.filter(|_| self.taken.len() >= self.limit)
    }
}
