//! The arbiter's part of the configuration.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tether_kit::config::duration;
use tether_lease::{InvalidLeaderTerms, InvalidTerms, LeaderTerms, Terms};

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
    /// Whether other arbiters may be on the same store.
    pub ha: Ha,
    /// How long an arbiter that was elected leads without a commit of the store; another one takes over
    /// a little after that.
    #[serde(with = "duration")]
    pub leader_ttl: Duration,
    /// How often it commits a sign that it still leads.
    #[serde(with = "duration")]
    pub leader_renew: Duration,
    /// How long before the end of its time it decides no more: what carrying out a decision may take.
    #[serde(with = "duration")]
    pub leader_guard: Duration,
}

/// Whether an arbiter is one of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ha {
    /// On a store that several can share it is, else not.
    #[default]
    Auto,
    /// It is alone on its store, always leads, and goes on renewing leases while the store is away. A
    /// second one on the same store would not be noticed.
    Single,
    /// One of those on its store is elected, and leads for as long as the store takes its commits.
    Elected,
}

/// However often agents beat, those who look for the new leader are given this long to find it.
const FOUND_WITHIN: Duration = Duration::from_secs(2);

/// Schemes of stores that several arbiters can share.
const SHARED_STORES: [&str; 1] = ["etcd"];

impl Default for Config {
    fn default() -> Self {
        Self {
            node_ttl: Duration::from_secs(20),
            node_beat: Duration::from_secs(5),
            session_ttl: Duration::from_secs(60),
            ha: Ha::Auto,
            leader_ttl: Duration::from_secs(5),
            leader_renew: Duration::from_secs(1),
            leader_guard: Duration::from_millis(500),
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
    /// Nobody could lead on such terms.
    #[error("lease.leader_ttl cannot be used with lease.leader_renew and lease.leader_guard")]
    Leader(#[from] InvalidLeaderTerms),
    /// A change of leader would end workers that nobody lost.
    #[error(
        "lease.{field} ({ttl:?}) must be more than {least:.1?}, or a change of leader ends what lives on such leases: lease.leader_ttl ({leader_ttl:?}) with its margin, and two heartbeats (2s where those are more frequent)"
    )]
    Change {
        /// The setting.
        field: &'static str,
        /// What it is.
        ttl: Duration,
        /// What it must be more than.
        least: Duration,
        /// The leader's term.
        leader_ttl: Duration,
    },
    /// There is nobody to elect among.
    #[error(
        "lease.ha is `elected`, and only one arbiter can use the store `{store}`: use `etcd://host:2379`, or leave lease.ha out"
    )]
    NotShared {
        /// The store.
        store: String,
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
            Self::Leader(_) => &[
                "lease.leader_ttl",
                "lease.leader_renew",
                "lease.leader_guard",
            ],
            Self::Change { field, .. } if *field == SESSION_TTL => {
                &["lease.session_ttl", "lease.leader_ttl"]
            }
            Self::Change { .. } => &["lease.node_ttl", "lease.leader_ttl", "lease.node_beat"],
            Self::NotShared { .. } => &["lease.ha", "store"],
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
    /// Whether leases can be granted as configured, by an arbiter on this store.
    ///
    /// # Errors
    /// Says which setting cannot be used, and why.
    pub fn check(&self, store: &str) -> Result<(), Error> {
        self.terms()?;
        self.leader_terms()?;
        if self.is_elected(store)? {
            self.check_change()?;
        }
        Ok(())
    }

    /// Whether an arbiter on this store is one of several.
    ///
    /// # Errors
    /// When it is to be, and cannot.
    pub fn is_elected(&self, store: &str) -> Result<bool, Error> {
        let scheme = store.split_once(':').map_or(store, |(scheme, _)| scheme);
        let shared = SHARED_STORES.contains(&scheme);
        match self.ha {
            Ha::Single => Ok(false),
            Ha::Auto => Ok(shared),
            Ha::Elected if shared => Ok(true),
            Ha::Elected => Err(Error::NotShared {
                store: store.to_owned(),
            }),
        }
    }

    /// Whether leases outlast a change of leader.
    fn check_change(&self) -> Result<(), Error> {
        let takeover = self.leader_terms()?.takeover_span();
        let beats = self.node_beat.saturating_mul(2).max(FOUND_WITHIN);
        let session_beats = self.session_ttl / 3;
        for (field, ttl, least) in [
            ("node_ttl", self.node_ttl, takeover.saturating_add(beats)),
            (
                SESSION_TTL,
                self.session_ttl,
                takeover.saturating_add(session_beats),
            ),
        ] {
            if ttl <= least {
                return Err(Error::Change {
                    field,
                    ttl,
                    least,
                    leader_ttl: self.leader_ttl,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn leader_terms(&self) -> Result<LeaderTerms, InvalidLeaderTerms> {
        LeaderTerms::new(self.leader_ttl, self.leader_renew, self.leader_guard)
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

        let check = |config: Config| config.check("redb:/s");
        assert!(check(Config::default()).is_ok());
        assert!(matches!(check(config(20, 10)), Err(Error::Beat { .. })));
        assert!(matches!(check(config(20, 0)), Err(Error::NoBeat)));
        assert!(matches!(
            check(config(20, u64::MAX)),
            Err(Error::Beat { .. })
        ));
    }

    #[test]
    fn an_arbiter_is_elected_where_others_can_be_on_its_store() {
        let elected = |ha, store| {
            let config = Config {
                ha,
                ..Config::default()
            };
            config.is_elected(store)
        };

        assert!(elected(Ha::Auto, "etcd://a:2379").unwrap());
        assert!(!elected(Ha::Auto, "redb:/s").unwrap());
        assert!(!elected(Ha::Single, "etcd://a:2379").unwrap());
        let refused = elected(Ha::Elected, "memory:").unwrap_err();
        assert!(refused.to_string().contains("lease.ha is `elected`"));
    }

    #[test]
    fn leases_that_a_change_of_leader_would_end_are_refused_where_there_can_be_one() {
        let refused = |config: Config| config.check("etcd://a:2379").unwrap_err().to_string();
        let short = || Config {
            node_ttl: Duration::from_secs(6),
            node_beat: Duration::from_secs(1),
            ..Config::default()
        };

        assert!(Config::default().check("etcd://a:2379").is_ok());
        assert!(short().check("redb:/s").is_ok());
        let text = refused(short());
        assert!(
            text.starts_with("lease.node_ttl (6s) must be more than 7.6s"),
            "{text}"
        );
        let text = refused(Config {
            node_ttl: Duration::from_secs(7),
            node_beat: Duration::from_millis(100),
            ..Config::default()
        });
        assert!(
            text.starts_with("lease.node_ttl (7s) must be more than 7.6s"),
            "{text}"
        );
        let text = refused(Config {
            session_ttl: Duration::from_secs(8),
            ..Config::default()
        });
        assert!(text.starts_with("lease.session_ttl (8s)"), "{text}");
        let error = Config {
            leader_renew: Duration::from_secs(4),
            ..Config::default()
        };
        let error = error.check("redb:/s").unwrap_err();
        assert_eq!(error.keys()[0], "lease.leader_ttl");
    }
}
