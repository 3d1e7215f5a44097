//! How many calls of a pool may be made again: a share of those that are made, and some more each second, so that few
//! calls do not go without.
//!
//! Where every call fails, each of them made again would be twice the load for whoever fails already.
//!
//! # Invariant
//!
//! - **B8** In the last [`SPAN`] no more retries were granted than `percent` of a hundred of the calls that were made in it,
//!   and `per_second` for each of its seconds.

use std::time::Duration;

use tether_clock::Tick;

/// For how long a call and a retry count.
pub const SPAN: Duration = Duration::from_secs(SECONDS as u64);
const SECONDS: usize = 10;
const SECOND: u64 = 1_000_000_000;

/// How many retries there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryTerms {
    /// For a hundred calls.
    pub percent: u32,
    /// And for each second, whether there are calls or not.
    pub per_second: u32,
}

impl Default for RetryTerms {
    fn default() -> Self {
        Self {
            percent: 20,
            per_second: 10,
        }
    }
}

/// What was made of late, second by second.
#[derive(Debug, Default)]
pub struct Retries {
    seconds: [Count; SECONDS],
    /// The second that is counted now.
    now: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    calls: u64,
    retries: u64,
}

impl Retries {
    /// A call is made, for the first time.
    pub fn on_call(&mut self, now: Tick) {
        self.at(now).calls += 1;
    }

    /// Grants a retry, or does not.
    pub fn draw(&mut self, terms: RetryTerms, now: Tick) -> bool {
        self.at(now);
        let sum = |of: fn(&Count) -> u64| self.seconds.iter().map(of).sum::<u64>();
        let share = sum(|second| second.calls) * u64::from(terms.percent) / 100;
        let most = share + u64::from(terms.per_second) * SECONDS as u64;
        let granted = sum(|second| second.retries) < most;
        if granted {
            self.at(now).retries += 1;
        }
        granted
    }

    /// The count of this second, with those that are over forgotten.
    fn at(&mut self, now: Tick) -> &mut Count {
        let second = now.as_nanos() / SECOND;
        while self.now < second {
            // Of a long silence nothing is left but the last seconds, and those are empty.
            self.now = (self.now + 1).max(second.saturating_sub(SECONDS as u64 - 1));
            self.seconds[slot(self.now)] = Count::default();
        }
        &mut self.seconds[slot(self.now)]
    }
}

fn slot(second: u64) -> usize {
    usize::try_from(second % SECONDS as u64).unwrap_or_default()
}
