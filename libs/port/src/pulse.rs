//! Whether the BEAM still runs, by its beats. The end of its pipe tells its death, and nothing tells that it hangs.
//!
//! # Invariants
//!
//! - **V1** Before the first beat it is not taken for hung: it may never beat.
//! - **V2** No renewal is allowed once the last beat is older than the patience; after the next beat it is again.

use std::time::Duration;

use tether_clock::Tick;

/// Beyond so much of silence a session is not renewed, however short its lease.
const PATIENCE: Duration = Duration::from_secs(2);

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
        let least = (timeout / 2).min(PATIENCE);
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
}
