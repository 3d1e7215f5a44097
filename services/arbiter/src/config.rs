//! The arbiter's part of the configuration.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tether_kit::config::duration;
use tether_lease::{InvalidTerms, Terms};

const SESSION_TTL: &str = "session_ttl";

/// What can be set under `[lease]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long a node's workers live without word from the arbiter.
    #[serde(with = "duration")]
    pub node_ttl: Duration,
    /// How often an agent beats, where no owner's policy asks for more.
    #[serde(with = "duration")]
    pub node_beat: Duration,
    /// How long an owner's session lives without a beat, where the owner does not say.
    #[serde(with = "duration")]
    pub session_ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_ttl: Duration::from_secs(20),
            node_beat: Duration::from_secs(5),
            session_ttl: Duration::from_secs(60),
        }
    }
}

/// Why leases cannot be granted as configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A lease nobody could hold.
    #[error("`lease.{field}` cannot be used")]
    Terms {
        /// The setting.
        field: &'static str,
        /// Why.
        source: InvalidTerms,
    },
    /// Agents would beat without a pause.
    #[error("lease.node_beat must be longer than 0s: agents would beat without a pause")]
    NoBeat,
    /// One lost beat would end a lease.
    #[error(
        "lease.node_ttl ({ttl:?}) must be more than twice lease.node_beat ({beat:?}), or one lost heartbeat ends every worker of a node"
    )]
    Beat {
        /// The lease.
        ttl: Duration,
        /// The beat.
        beat: Duration,
    },
}

impl Error {
    /// The settings that could be changed to mend it.
    pub fn keys(&self) -> &'static [&'static str] {
        match self {
            Self::Terms { field, .. } if *field == SESSION_TTL => &["lease.session_ttl"],
            Self::Terms { .. } => &["lease.node_ttl"],
            Self::NoBeat => &["lease.node_beat"],
            Self::Beat { .. } => &["lease.node_ttl", "lease.node_beat"],
        }
    }
}

/// The terms on which leases are granted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeaseTerms {
    pub(crate) node: Terms,
    pub(crate) node_beat: Duration,
    pub(crate) session: Terms,
}

impl Config {
    /// Whether leases can be granted as configured.
    ///
    /// # Errors
    /// Says which setting cannot be used, and why.
    pub fn check(&self) -> Result<(), Error> {
        self.terms().map(drop)
    }

    pub(crate) fn terms(&self) -> Result<LeaseTerms, Error> {
        let terms = |field, ttl| Terms::usual(ttl).map_err(|source| Error::Terms { field, source });
        if self.node_beat.is_zero() {
            return Err(Error::NoBeat);
        }
        if self.node_ttl <= self.node_beat.saturating_mul(2) {
            return Err(Error::Beat {
                ttl: self.node_ttl,
                beat: self.node_beat,
            });
        }
        Ok(LeaseTerms {
            node: terms("node_ttl", self.node_ttl)?,
            node_beat: self.node_beat,
            session: terms(SESSION_TTL, self.session_ttl)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_that_one_lost_beat_would_end_are_refused() {
        let config = |node_ttl, node_beat| Config {
            node_ttl: Duration::from_secs(node_ttl),
            node_beat: Duration::from_secs(node_beat),
            ..Config::default()
        };

        assert!(Config::default().check().is_ok());
        assert!(matches!(config(20, 10).check(), Err(Error::Beat { .. })));
        assert!(matches!(config(20, 0).check(), Err(Error::NoBeat)));
        assert!(matches!(
            config(20, u64::MAX).check(),
            Err(Error::Beat { .. })
        ));
    }
}
