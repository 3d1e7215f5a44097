//! How a slot is to be run: how long to wait, how often to try, when to give up.

use std::time::Duration;

use crate::Recycle;

pub(crate) const MILLION: u32 = 1_000_000;

/// How a worker starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartTerms {
    /// How long after it was spawned a worker has to be ready.
    pub timeout: Duration,
}

/// How a worker is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopTerms {
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// After which ends a worker is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RestartPolicy {
    /// After every end.
    Always,
    /// After an unclean end only: it failed, was killed, or never became ready.
    Transient,
    /// After none.
    Never,
}

impl RestartPolicy {
    /// All of them, in the order the documentation lists them.
    pub const ALL: &'static [Self] = &[Self::Always, Self::Transient, Self::Never];

    /// The word in configuration and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Transient => "transient",
            Self::Never => "never",
        }
    }

    /// The policy with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|policy| policy.name() == name)
    }
}

/// How long a restart waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// Before the first restart.
    pub initial: Duration,
    /// By how much each further wait is longer than the one before.
    pub factor: u32,
    /// Waits grow no longer than this.
    pub max: Duration,
    /// How far a wait may lie from that, either way, in parts per million; keeps the workers of a
    /// pool that failed together from starting together.
    pub jitter_ppm: u32,
    /// A worker that was ready for this long has recovered: the next wait is `initial` again.
    pub reset_after: Duration,
}

impl Delay {
    /// The wait before restart number `restart` (from 0) in a row, without jitter.
    pub fn base(&self, restart: u32) -> Duration {
        // Past 32 doublings the maximum has long been reached, or `factor` is 1.
        self.initial
            .saturating_mul(self.factor.saturating_pow(restart.min(32)))
            .min(self.max)
    }

    /// The wait before restart number `restart` in a row; the same for the same seed.
    pub fn after(&self, restart: u32, seed: u64) -> Duration {
        let jitter = u64::from(self.jitter_ppm.min(MILLION));
        let shift = splitmix64(seed.wrapping_add(u64::from(restart))) % (2 * jitter + 1);
        let ppm = u64::from(MILLION) - jitter + shift;
        let nanos = self.base(restart).as_nanos() * u128::from(ppm) / u128::from(MILLION);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// One step of splitmix64: turns neighbouring seeds into unrelated numbers.
pub(crate) const fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How often a worker may fail before its slot is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intensity {
    /// This many restarts are tried: within `window`, and in a row without ever becoming ready.
    pub max_restarts: u32,
    /// What counts as recent.
    pub window: Duration,
}

/// How a slot is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How a worker starts.
    pub start: StartTerms,
    /// How it is stopped.
    pub stop: StopTerms,
    /// After which ends it is started again.
    pub restart: RestartPolicy,
    /// How long a restart waits.
    pub delay: Delay,
    /// How often a worker may fail before its slot is given up.
    pub intensity: Intensity,
    /// When a worker that runs well is replaced.
    pub recycle: Recycle,
}

impl Default for Plan {
    /// A minute to start, ten seconds to stop, and five restarts a minute, half a second apart at
    /// first.
    fn default() -> Self {
        Self {
            start: StartTerms {
                timeout: Duration::from_secs(60),
            },
            stop: StopTerms {
                grace: Duration::from_secs(10),
            },
            restart: RestartPolicy::Always,
            delay: Delay {
                initial: Duration::from_millis(500),
                factor: 2,
                max: Duration::from_secs(10),
                jitter_ppm: 200_000,
                reset_after: Duration::from_secs(30),
            },
            intensity: Intensity {
                max_restarts: 5,
                window: Duration::from_secs(60),
            },
            recycle: Recycle::default(),
        }
    }
}

/// No worker is replaced more often than this.
const LIFETIME_MIN: Duration = Duration::from_secs(1);

/// Why a slot cannot be run this way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlan {
    /// No worker is ready in no time.
    #[error("a start `timeout` of zero stops every worker before it can be ready; set it to `60s`")]
    NoStartTimeout,
    /// Restarts would come faster and faster, or at once.
    #[error(
        "a restart delay that starts at `{initial:?}`, grows {factor} times and ends at `{max:?}` does not slow down a worker that keeps failing; `initial` and `factor` must not be zero and `max` not below `initial`"
    )]
    Delay {
        /// As asked for.
        initial: Duration,
        /// As asked for.
        factor: u32,
        /// As asked for.
        max: Duration,
    },
    /// A wait would be less than nothing.
    #[error("a restart jitter of `{jitter_ppm}` ppm is more than the whole delay; use 200000")]
    Jitter {
        /// As asked for.
        jitter_ppm: u32,
    },
    /// Nothing would ever count as recent, so a crash loop would go on for ever.
    #[error("a restart `window` of zero never sees a crash loop; set it to `60s`")]
    NoWindow,
    /// The pool would do little else than start workers.
    #[error(
        "a `max_lifetime` of `{lifetime:?}` replaces workers all the time; set it to `1s` or more"
    )]
    Lifetime {
        /// As asked for.
        lifetime: Duration,
    },
}

impl Plan {
    /// Checks that the parts make sense together.
    ///
    /// # Errors
    /// Says what would go wrong.
    pub fn validate(&self) -> Result<(), InvalidPlan> {
        let Delay {
            initial,
            factor,
            max,
            jitter_ppm,
            ..
        } = self.delay;
        if self.start.timeout.is_zero() {
            return Err(InvalidPlan::NoStartTimeout);
        }
        if initial.is_zero() || factor == 0 || max < initial {
            return Err(InvalidPlan::Delay {
                initial,
                factor,
                max,
            });
        }
        if jitter_ppm > MILLION {
            return Err(InvalidPlan::Jitter { jitter_ppm });
        }
        if self.intensity.window.is_zero() {
            return Err(InvalidPlan::NoWindow);
        }
        let lifetime = self.recycle.max_lifetime;
        if let Some(lifetime) = lifetime.filter(|&lifetime| lifetime < LIFETIME_MIN) {
            return Err(InvalidPlan::Lifetime { lifetime });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_would_never_work_or_never_give_up_is_refused() {
        let plan = Plan::default();
        let refused = [
            Plan {
                start: StartTerms {
                    timeout: Duration::ZERO,
                },
                ..plan
            },
            Plan {
                delay: Delay {
                    initial: Duration::ZERO,
                    ..plan.delay
                },
                ..plan
            },
            Plan {
                delay: Delay {
                    factor: 0,
                    ..plan.delay
                },
                ..plan
            },
            Plan {
                delay: Delay {
                    max: Duration::ZERO,
                    ..plan.delay
                },
                ..plan
            },
            Plan {
                delay: Delay {
                    jitter_ppm: 1_000_001,
                    ..plan.delay
                },
                ..plan
            },
            Plan {
                intensity: Intensity {
                    window: Duration::ZERO,
                    ..plan.intensity
                },
                ..plan
            },
            Plan {
                recycle: Recycle {
                    max_lifetime: Some(Duration::from_millis(999)),
                    ..Recycle::default()
                },
                ..plan
            },
        ];

        assert_eq!(plan.validate(), Ok(()));
        for plan in refused {
            assert!(plan.validate().is_err(), "{plan:?}");
        }
    }
}
