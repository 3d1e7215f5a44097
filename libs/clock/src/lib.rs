//! Time as every core of Tether is told it: a [`Tick`], never a wall clock.
//!
//! A tick counts nanoseconds of [`BootClock`], `CLOCK_BOOTTIME`, which goes on while a machine sleeps: a
//! laptop that wakes up finds its leases expired instead of young (design, section 5). Where a lease hangs
//! on it, more than one clock is asked ([`rule`]): a holder counts in ticks of its `HolderClock`, a grantor
//! in those of its `GrantorClock`. Two ticks of one clock may be compared; a tick never crosses the wire.
//!
//! Without the feature `std` it is what a shim needs: no locks, no threads.

#![no_std]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

#[cfg(any(feature = "std", test))]
mod clocks;
pub mod rule;
#[cfg(any(feature = "std", test))]
mod sandwich;
#[cfg(any(feature = "std", test))]
pub mod source;
#[cfg(any(feature = "std", test))]
pub mod wall;

use alloc::sync::Arc;
use core::{
    fmt, ops,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

#[cfg(any(feature = "std", test))]
pub use clocks::{GrantorClock, HolderClock};
pub use rule::{GrantorTime, HolderTime, Reading};

/// A point in time on this machine, in nanoseconds since it booted, sleep included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(u64);

impl Tick {
    /// The moment of boot: earlier than anything a clock reports.
    pub const ZERO: Self = Self(0);
    /// Later than anything: a deadline that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The tick `nanos` nanoseconds after boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`, zero where `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The tick `by` earlier, but not before boot.
    pub fn saturating_sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(by)))
    }
}

/// A duration as nanoseconds; 584 years and more are all one.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl ops::Add<Duration> for Tick {
    type Output = Self;

    /// Saturates at [`Tick::NEVER`].
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}

impl fmt::Display for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} after boot", Duration::from_nanos(self.0))
    }
}

/// Tells the time.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Tick;
}

/// The machine's own clock, `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Tick {
        #[cfg(any(feature = "std", test))]
        if let Some(shown) = source::shown() {
            return Tick(shown.boot);
        }
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let secs = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        Tick(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
    }
}

/// A clock that stands still until a test moves it. Clones share one time.
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: Tick) -> Self {
        Self(Arc::new(AtomicU64::new(now.as_nanos())))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) -> Tick {
        Tick(self.0.fetch_add(nanos(by), Ordering::SeqCst) + nanos(by))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Tick {
        Tick(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_never_goes_back() {
        let mut last = BootClock.now();
        for _ in 0..1000 {
            let now = BootClock.now();
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Tick::NEVER + Duration::from_secs(1), Tick::NEVER);
        assert_eq!(
            Tick::from_nanos(5).saturating_sub(Duration::from_secs(1)),
            Tick::ZERO
        );
        assert_eq!(Tick::ZERO.since(Tick::NEVER), Duration::ZERO);
    }
}
