//! What a lease is worth on either side, drift and kill time included.

use std::time::Duration;

/// Shorter leases end before a beat over a busy machine is answered.
const TTL_MIN: Duration = Duration::from_millis(100);

/// Longer leases keep the work of a dead holder from everyone for more than a month.
const TTL_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// A longer notice than this gains nobody anything: a job saves its work meanwhile, or will not.
const KILL_BUDGET_MAX: Duration = Duration::from_secs(300);

/// NTP may slew a clock by ten per cent; a worse one is broken and no margin repairs it.
const RHO_PPM_MAX: u32 = 100_000;

const MILLION: u32 = 1_000_000;

/// What is subtracted from or added to a time to live, so that both sides part safely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Margins {
    /// Largest error of either clock's rate, in parts per million.
    pub rho_ppm: u32,
    /// What the grantor waits on top: scheduling, and the kill itself.
    pub slack: Duration,
    /// How long before its deadline a holder begins to stop: SIGTERM, grace, SIGKILL and reaping.
    pub kill_budget: Duration,
}

impl Margins {
    /// The usual margins of a lease of `ttl`: clocks within 0.5 %, half a second of slack, and the
    /// last sixth to stop in, five minutes at most.
    pub fn usual(ttl: Duration) -> Self {
        Self {
            rho_ppm: 5_000,
            slack: Duration::from_millis(500),
            kill_budget: (ttl / 6).min(KILL_BUDGET_MAX),
        }
    }
}

/// Why a lease cannot be granted on such terms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTerms {
    /// The time to live is too short to be renewed, or too long to be of use.
    #[error(
        "a lease `ttl` of `{ttl:?}` is outside {TTL_MIN:?} to {TTL_MAX:?}: a shorter one ends before its first heartbeat is answered, a longer one keeps a dead holder's work from everyone else"
    )]
    Ttl {
        /// As asked for.
        ttl: Duration,
    },
    /// The assumed clock error is not one a working clock has.
    #[error(
        "a clock error of `{rho_ppm}` ppm is more than {RHO_PPM_MAX} ppm: such a clock is broken, and the lease would be all margin; use 5000 and repair the clock"
    )]
    Rho {
        /// As asked for.
        rho_ppm: u32,
    },
    /// Without slack the grantor would act in the instant in which the holder is still being killed.
    #[error(
        "a lease `slack` of zero lets work be given away in the instant in which its last holder is being killed; use 500ms"
    )]
    NoSlack,
    /// The holder would have to begin to stop before it had begun to work.
    #[error(
        "a `kill_budget` of `{kill_budget:?}` leaves no time to work: the holder of a lease of `{ttl:?}` is gone after `{usable:?}` and would begin to stop at once; lower the budget or raise the `ttl`"
    )]
    KillBudget {
        /// As asked for.
        kill_budget: Duration,
        /// The lease's time to live.
        ttl: Duration,
        /// What the holder has of it.
        usable: Duration,
    },
}

/// The terms of a lease; valid by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Terms {
    ttl: Duration,
    margins: Margins,
}

impl Terms {
    /// A lease of `ttl` with these margins.
    ///
    /// # Errors
    /// Says what would go wrong with a lease on such terms.
    pub fn new(ttl: Duration, margins: Margins) -> Result<Self, InvalidTerms> {
        if ttl < TTL_MIN || ttl > TTL_MAX {
            return Err(InvalidTerms::Ttl { ttl });
        }
        if margins.rho_ppm > RHO_PPM_MAX {
            return Err(InvalidTerms::Rho {
                rho_ppm: margins.rho_ppm,
            });
        }
        if margins.slack.is_zero() {
            return Err(InvalidTerms::NoSlack);
        }
        let terms = Self { ttl, margins };
        let usable = terms.holder_span(ttl);
        if margins.kill_budget >= usable {
            return Err(InvalidTerms::KillBudget {
                kill_budget: margins.kill_budget,
                ttl,
                usable,
            });
        }
        Ok(terms)
    }

    /// A lease of `ttl` with the usual margins.
    ///
    /// # Errors
    /// As [`Terms::new`].
    pub fn usual(ttl: Duration) -> Result<Self, InvalidTerms> {
        Self::new(ttl, Margins::usual(ttl))
    }

    /// The time to live as both sides speak of it on the wire.
    pub const fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The margins.
    pub const fn margins(&self) -> Margins {
        self.margins
    }

    /// How long a holder may go on, by its own clock, where it was granted `span` beyond its lease: what
    /// it may not do any more ends with the lease, and it itself with this.
    pub fn holder_beyond(&self, span: Duration) -> Duration {
        self.holder_span(span)
    }

    /// How long a grantor waits, by its own clock, beyond the moment in which the lease is free, where it
    /// granted `span` beyond it. The slack is in the lease already.
    pub fn grantor_beyond(&self, span: Duration) -> Duration {
        let rho = self.margins.rho_ppm;
        scale(span, MILLION + rho, MILLION - rho, Round::Up)
    }

    /// How long a holder may live, by its own clock, after it sent a beat that earned it `ttl`.
    pub(crate) fn holder_span(&self, ttl: Duration) -> Duration {
        // The time to live comes off the wire; an absurd one must not become unlimited life.
        scale(
            ttl.min(TTL_MAX),
            MILLION - self.margins.rho_ppm,
            MILLION,
            Round::Down,
        )
    }

    /// How long a grantor waits, by its own clock, after it received a beat it answered.
    pub(crate) fn grantor_span(&self) -> Duration {
        let rho = self.margins.rho_ppm;
        scale(self.ttl, MILLION + rho, MILLION - rho, Round::Up).saturating_add(self.margins.slack)
    }
}

/// Which side of a whole nanosecond is the safe one.
#[derive(Clone, Copy)]
enum Round {
    Down,
    Up,
}

fn scale(span: Duration, numerator: u32, denominator: u32, round: Round) -> Duration {
    let product = span.as_nanos() * u128::from(numerator);
    let nanos = match round {
        Round::Down => product / u128::from(denominator),
        Round::Up => product.div_ceil(u128::from(denominator)),
    };
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn terms_that_cannot_work_are_refused_with_their_consequence() {
        let usual = Margins::usual(60 * SECOND);
        let refused = [
            (Duration::ZERO, usual, "first heartbeat"),
            (Duration::MAX, usual, "dead holder's work"),
            (
                60 * SECOND,
                Margins {
                    rho_ppm: 100_001,
                    ..usual
                },
                "clock is broken",
            ),
            (
                60 * SECOND,
                Margins {
                    slack: Duration::ZERO,
                    ..usual
                },
                "being killed",
            ),
            (
                60 * SECOND,
                Margins {
                    kill_budget: 60 * SECOND,
                    ..usual
                },
                "no time to work",
            ),
        ];

        for (ttl, margins, consequence) in refused {
            let error = Terms::new(ttl, margins).unwrap_err().to_string();
            assert!(error.contains(consequence), "{error}");
        }
    }

    #[test]
    fn the_lease_of_a_job_is_a_lease_like_others_and_wastes_no_hours_on_stopping() {
        let day = Terms::usual(24 * 3_600 * SECOND).unwrap();

        assert_eq!(day.margins().kill_budget, 300 * SECOND);
        let lost = day.ttl().saturating_sub(day.holder_span(day.ttl()));
        assert_eq!(lost, 432 * SECOND);
    }

    #[test]
    fn a_minute_is_worth_less_to_the_holder_and_more_to_the_grantor() {
        let terms = Terms::usual(60 * SECOND).unwrap();

        assert_eq!(
            terms.holder_span(terms.ttl()),
            Duration::from_millis(59_700)
        );
        // 60 s * 1.005 / 0.995 + 0.5 s, rounded up.
        assert_eq!(terms.grantor_span(), Duration::from_nanos(61_103_015_076));
    }
}
