//! When a worker that runs well is replaced all the same.

use std::time::Duration;

use crate::plan::{MILLION, splitmix64};

/// A worker's memory does not count before it was ready for this long: a limit below what it needs
/// anyway must not become a loop of restarts without a delay.
pub(crate) const SETTLE: Duration = Duration::from_secs(10);

/// How far a lifetime may be cut short, in parts per million.
const LIFETIME_JITTER_PPM: u64 = 100_000;

/// At what age and size, and after how many calls, a worker is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recycle {
    /// Its age. Up to a tenth is taken off, so that workers that were started together are not
    /// replaced together.
    pub max_lifetime: Option<Duration>,
    /// Calls that it has served.
    pub max_calls: Option<u64>,
    /// Memory of its tree.
    pub max_memory_bytes: Option<u64>,
}

impl Recycle {
    /// The lifetime of one worker; the same for the same seed.
    pub fn lifetime(&self, seed: u64) -> Option<Duration> {
        let cut = splitmix64(seed) % (LIFETIME_JITTER_PPM + 1);
        let ppm = u128::from(u64::from(MILLION) - cut);
        self.max_lifetime.map(|lifetime| {
            let nanos = lifetime.as_nanos() * ppm / u128::from(MILLION);
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        })
    }
}

/// Why a worker is to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Worn {
    /// It reached its age.
    Lifetime,
    /// It has served its calls.
    Calls,
    /// It reached its memory.
    Memory,
}

impl Worn {
    /// The key of the configuration that says so.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Lifetime => "max_lifetime",
            Self::Calls => "max_calls",
            Self::Memory => "max_memory",
        }
    }
}
