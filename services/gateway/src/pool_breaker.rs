//! The configuration of the breaker that each pool gets.

use std::{num::NonZeroU32, time::Duration};

use serde::{Deserialize, Serialize};
use tether_breaker::Terms;
use tether_kit::config::duration;

use crate::bounds;

/// When a pool as a whole is left alone. Off unless `failure_percent` is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolBreaker {
    /// How many of a hundred of its last calls have to fail; 0 never leaves a pool alone.
    #[serde(deserialize_with = "bounds::percent")]
    pub failure_percent: u32,
    /// How many of its last calls are looked at.
    pub window: NonZeroU32,
    /// How many there have to be: a pool with fewer is never left alone.
    pub min_calls: u32,
    /// How long it is left alone at first; doubles each time a trial fails.
    #[serde(
        serialize_with = "duration::serialize",
        deserialize_with = "bounds::some_time"
    )]
    pub open_for: Duration,
    /// The longest it is left alone.
    #[serde(with = "duration")]
    pub max_open_for: Duration,
    /// Calls tried at once when that time is over.
    pub half_open_probes: NonZeroU32,
}

impl Default for PoolBreaker {
    fn default() -> Self {
        Self {
            failure_percent: 0,
            window: NonZeroU32::MIN.saturating_add(199),
            min_calls: 50,
            open_for: Duration::from_secs(5),
            max_open_for: Duration::from_secs(60),
            half_open_probes: NonZeroU32::MIN.saturating_add(2),
        }
    }
}

impl PoolBreaker {
    pub(crate) fn terms(&self) -> Option<Terms> {
        (self.failure_percent > 0).then(|| Terms {
            // Those in a row say nothing of a pool, nor does how long answers take.
            failure_threshold: u32::MAX,
            slow_percent: 0,
            open_for: self.open_for,
            max_open_for: self.max_open_for.max(self.open_for),
            half_open_probes: self.half_open_probes.get(),
            window: self.window.get(),
            min_calls: self.min_calls.min(self.window.get()),
            failure_percent: self.failure_percent,
        })
    }
}
