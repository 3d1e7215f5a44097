//! Whether the BEAM still runs, by its beats. The end of its pipe tells its death, and nothing tells that it hangs.
//!
//! A renewal is as good as a word of the BEAM: whoever hears it counts from then. So where a lease is as long as the
//! timeout it goes out right after a beat, or waits for the next one.
//!
//! # Invariants
//!
//! - **V1** Before the first beat it is not taken for hung, as it may never beat. One that says that it will has beaten
//!   by that.
//! - **V2** No renewal is allowed once the last beat is older than the patience; after the next beat it is again.

use std::time::Duration;

use tether_clock::Tick;

/// This part of the timeout a renewal may be later than the beat that it speaks of, however long the lease.
const PART: u32 = 20;

/// So much at most, however long the timeout.
const LATER: Duration = Duration::from_millis(500);

/// The rule by which a session is renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulse {
    patience: Duration,
    last: Option<Tick>,
}

impl Pulse {
    /// For a BEAM whose session is to be over `timeout` after its last beat, with a lease of `ttl`: what is renewed
    /// last is over a lease later.
    pub fn new(timeout: Duration, ttl: Duration) -> Self {
        let least = (timeout / PART).min(LATER);
        Self {
            patience: timeout.saturating_sub(ttl).max(least),
            last: None,
        }
    }

    /// It beats.
    pub fn on_beat(&mut self, now: Tick) {
        self.last = self.last.max(Some(now));
    }

    /// Whether the session may be renewed at `now`.
    pub fn check(&self, now: Tick) -> bool {
        self.last.is_none_or(|last| now < last + self.patience)
    }

    /// When to ask again at the latest.
    pub fn next_deadline(&self) -> Option<Tick> {
        self.last.map(|last| last + self.patience)
    }

    /// For how long it has said nothing; never before the first beat.
    pub fn silence(&self, now: Tick) -> Duration {
        self.last.map_or(Duration::ZERO, |last| now.since(last))
    }
}
