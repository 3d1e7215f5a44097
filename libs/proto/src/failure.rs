//! How a failure travels: a gRPC status with a `google.rpc.ErrorInfo` reason, and `RetryInfo` where
//! waiting helps. The one place where a [`Reason`] meets a status code.

use std::{collections::HashMap, time::Duration};

use tether_types::{Address, Reason};
use tonic::{
    Code, Status,
    metadata::{MetadataKey, MetadataMap},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::SHARD;

/// Domain of our reasons in `ErrorInfo`.
const DOMAIN: &str = "tether";

/// Fact of a [`Reason::NotLeader`]: where the leader is.
const LEADER: &str = "leader";

/// Fact of a refusal that names a node which nobody knows: its name.
pub const UNKNOWN_NODE: &str = "unknown_node";

/// Facts that a call's trailers show by themselves too, as `tether-KEY`: whoever decides whether to call again needs
/// no library to read them.
const SHOWN: [&str; 3] = ["outcome", "worker", "attempts"];

/// When to ask again while nobody leads.
const ELECTION: Duration = Duration::from_secs(1);

/// A failure on its way to a client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    reason: Reason,
    /// Where it is another than the reason's.
    code: Option<Code>,
    text: String,
    retry_after: Option<Duration>,
    facts: Vec<(&'static str, String)>,
}

impl Failure {
    /// A failure for this reason; `text` says what was attempted, on what, and what to do.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            code: None,
            text: text.into(),
            retry_after: None,
            facts: Vec::new(),
        }
    }

    /// Has this gRPC code, and not the one of its reason.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = Some(code);
        self
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Adds a fact for programs, carried as metadata of `ErrorInfo`. Of two with one key the later one stands.
    #[must_use]
    pub fn fact(mut self, key: &'static str, value: impl ToString) -> Self {
        self.facts.retain(|(known, _)| *known != key);
        self.facts.push((key, value.to_string()));
        self
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The gRPC code of a reason.
    pub const fn code(reason: Reason) -> Code {
        match reason {
            Reason::NoWorkerReady
            | Reason::WorkerDied
            | Reason::BreakerOpen
            | Reason::Draining
            | Reason::NotLeader
            | Reason::ArbiterUnreachable
            | Reason::DiscoveryUnreachable
            | Reason::AgentUnreachable => Code::Unavailable,
            Reason::NodeTaken
            | Reason::RegistrationTaken
            | Reason::SessionWorkerGone
            | Reason::LeaseExpired
            | Reason::LeaseFenced
            | Reason::ModeForbids
            | Reason::SpawnFailed => Code::FailedPrecondition,
            Reason::ConfigInvalid | Reason::MetadataInvalid => Code::InvalidArgument,
            Reason::UnknownPool
            | Reason::UnknownTemplate
            | Reason::UnknownWorker
            | Reason::UnknownSession
            | Reason::UnknownRegistration
            | Reason::UnknownJob => Code::NotFound,
            Reason::NotOwner => Code::PermissionDenied,
            Reason::StoreFailed | Reason::CallReset => Code::Internal,
            Reason::MessageTooLarge | Reason::Overloaded => Code::ResourceExhausted,
            Reason::DeadlineExceeded => Code::DeadlineExceeded,
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut shown = MetadataMap::new();
        for (key, value) in &failure.facts {
            if SHOWN.contains(key)
                && let Ok(name) = MetadataKey::from_bytes(format!("tether-{key}").as_bytes())
                && let Ok(value) = value.parse()
            {
                shown.insert(name, value);
            }
        }
        let facts: HashMap<String, String> = failure
            .facts
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let mut details = ErrorDetails::with_error_info(failure.reason.word(), DOMAIN, facts);
        if let Some(delay) = failure.retry_after {
            details.set_retry_info(Some(delay));
        }
        let usual = Failure::code(failure.reason);
        let code = failure.code.unwrap_or(usual);
        Self::with_error_details_and_metadata(code, failure.text, details, shown)
    }
}

/// The reason a status carries, where it is one of ours.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    (info.domain == DOMAIN)
        .then(|| Reason::from_word(&info.reason))
        .flatten()
}

/// Said by an arbiter that does not lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotLeader {
    /// Where the leader is, as far as it knows.
    pub leader: Option<Address>,
}

impl NotLeader {
    /// What a status says of leadership; none where it says something else.
    pub fn of(status: &Status) -> Option<Self> {
        if reason_of(status) != Some(Reason::NotLeader) {
            return None;
        }
        let info = status.get_details_error_info()?;
        let leader = info.metadata.get(LEADER);
        Some(Self {
            leader: leader.and_then(|leader| leader.parse().ok()),
        })
    }
}

impl From<NotLeader> for Failure {
    fn from(NotLeader { leader }: NotLeader) -> Self {
        match leader {
            Some(leader) => {
                let text = format!("this arbiter does not lead: ask the one at `{leader}`");
                Self::new(Reason::NotLeader, text)
                    .fact(LEADER, leader)
                    .fact("shard", SHARD)
            }
            None => {
                let text = "this arbiter does not lead, and knows of none that does: one is elected within seconds while the store answers, so ask again";
                Self::new(Reason::NotLeader, text)
                    .retry_after(ELECTION)
                    .fact("shard", SHARD)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_that_a_standby_names_is_found_again() {
        let named = NotLeader {
            leader: Some("10.0.0.1:7438".parse().unwrap()),
        };
        let nobody = NotLeader { leader: None };

        for said in [named, nobody] {
            let status = Status::from(Failure::from(said.clone()));
            assert_eq!(status.code(), Code::Unavailable);
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.metadata["shard"], "0");
            assert_eq!(NotLeader::of(&status), Some(said));
        }
        let other = Failure::new(Reason::StoreFailed, "text").fact(LEADER, "10.0.0.1:7438");
        assert_eq!(NotLeader::of(&Status::from(other)), None);
    }

    #[test]
    fn every_reason_survives_the_wire() {
        for &reason in Reason::ALL {
            let status = Status::from(Failure::new(reason, "text").fact("worker", "a/1.2"));
            assert_eq!(reason_of(&status), Some(reason));
            assert_eq!(
                status.get_details_error_info().unwrap().metadata["worker"],
                "a/1.2"
            );
        }
    }
}
