//! Which of a machine's clocks counts: for a holder the fastest, for a grantor the slowest.
//!
//! Linux has three that matter, and each is wrong in a way of its own:
//!
//! | clock | goes wrong by | while the machine sleeps |
//! | --- | --- | --- |
//! | `MONOTONIC_RAW` | the crystal, some ten parts in a million | stands still |
//! | `MONOTONIC` | what NTP slews it, up to ten per cent | stands still |
//! | `BOOTTIME` | the same slew | goes on |
//!
//! Between two readings a holder counts the *most* that any of raw time plus sleep, `MONOTONIC` and
//! `BOOTTIME` went on; a grantor counts the *least* of raw time plus sleep and `MONOTONIC`. So it takes
//! all of a machine's clocks to be wrong the same way before a holder lives too long or a grantor gives
//! away too early, and what sleep does to either is on the safe side: a holder wakes up old, a grantor young.

use core::time::Duration;

use crate::{Tick, nanos};

/// What the clocks of a machine show in one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// Raw time and the time asleep.
    steady: u64,
    monotonic: u64,
    pub(crate) boot: u64,
}

impl Reading {
    /// `MONOTONIC_RAW`, `MONOTONIC` and `BOOTTIME` in nanoseconds.
    pub const fn new(raw: u64, monotonic: u64, boot: u64) -> Self {
        Self {
            steady: raw.saturating_add(boot.saturating_sub(monotonic)),
            monotonic,
            boot,
        }
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            steady: self.steady.saturating_sub(earlier.steady),
            monotonic: self.monotonic.saturating_sub(earlier.monotonic),
            boot: self.boot.saturating_sub(earlier.boot),
        }
    }

    /// Of each clock the later: two threads may have read in one order and tell in the other, and time
    /// that was counted is not to be counted again.
    fn latest(self, other: Self) -> Self {
        Self {
            steady: self.steady.max(other.steady),
            monotonic: self.monotonic.max(other.monotonic),
            boot: self.boot.max(other.boot),
        }
    }
}

/// The time of one who must have stopped by a deadline: never less than any clock of its machine went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HolderTime {
    last: Reading,
    now: u64,
}

impl HolderTime {
    /// Begins with `first`; the first tick is that of `BOOTTIME`.
    pub const fn new(first: Reading) -> Self {
        Self {
            now: first.boot,
            last: first,
        }
    }

    /// The time at a reading.
    pub fn on_reading(&mut self, reading: Reading) -> Tick {
        let passed = reading.since(self.last);
        let most = passed.steady.max(passed.monotonic).max(passed.boot);
        self.now = self.now.saturating_add(most);
        self.last = self.last.latest(reading);
        Tick(self.now)
    }

    /// The tick of `BOOTTIME` at which a deadline of this time is reached, for a timer of the kernel's.
    ///
    /// From the last reading on it is `BOOTTIME` alone that counts, so whoever can asks again at each beat.
    pub fn on_boot(&self, deadline: Tick) -> Tick {
        if deadline == Tick::NEVER {
            return deadline;
        }
        Tick(deadline.0.saturating_sub(self.ahead()))
    }

    /// How much further this time has come than `BOOTTIME`.
    fn ahead(&self) -> u64 {
        self.now.saturating_sub(self.last.boot)
    }
}

/// The time of one who must not act before a deadline: never more than any clock of its machine went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantorTime {
    last: Reading,
    now: u64,
    attention: u64,
}

impl GrantorTime {
    /// Begins with `first`. No two readings are further apart than `attention` in this time: whoever did
    /// not look for longer did not hear either, and silence it slept through is nobody's fault. Its owner
    /// therefore looks at the clock more often than that.
    pub fn new(first: Reading, attention: Duration) -> Self {
        Self {
            now: first.boot,
            last: first,
            attention: nanos(attention),
        }
    }

    /// The time at a reading.
    pub fn on_reading(&mut self, reading: Reading) -> Tick {
        let passed = reading.since(self.last);
        let least = passed.steady.min(passed.monotonic).min(self.attention);
        self.now = self.now.saturating_add(least);
        self.last = self.last.latest(reading);
        Tick(self.now)
    }
}
