//! How a failure travels: a gRPC status with a `google.rpc.ErrorInfo` reason, and `RetryInfo` where
//! waiting helps. The one place where a [`Reason`] meets a status code.

use std::{collections::HashMap, time::Duration};

use tether_types::Reason;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Domain of our reasons in `ErrorInfo`.
const DOMAIN: &str = "tether";

/// A failure on its way to a client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    reason: Reason,
    text: String,
    retry_after: Option<Duration>,
    facts: Vec<(&'static str, String)>,
}

impl Failure {
    /// A failure for this reason; `text` says what was attempted, on what, and what to do.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
            retry_after: None,
            facts: Vec::new(),
        }
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Adds a fact for programs, carried as metadata of `ErrorInfo`.
    #[must_use]
    pub fn fact(mut self, key: &'static str, value: impl ToString) -> Self {
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
            | Reason::ArbiterUnreachable
            | Reason::DiscoveryUnreachable
            | Reason::AgentUnreachable => Code::Unavailable,
            Reason::NodeTaken
            | Reason::LeaseExpired
            | Reason::LeaseFenced
            | Reason::ModeForbids
            | Reason::SpawnFailed => Code::FailedPrecondition,
            Reason::ConfigInvalid | Reason::MetadataInvalid => Code::InvalidArgument,
            Reason::UnknownPool
            | Reason::UnknownTemplate
            | Reason::UnknownWorker
            | Reason::UnknownSession
            | Reason::UnknownJob => Code::NotFound,
            Reason::NotOwner => Code::PermissionDenied,
            Reason::StoreFailed => Code::Internal,
            Reason::MessageTooLarge => Code::ResourceExhausted,
            Reason::DeadlineExceeded => Code::DeadlineExceeded,
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let facts: HashMap<String, String> = failure
            .facts
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let mut details = ErrorDetails::with_error_info(failure.reason.word(), DOMAIN, facts);
        if let Some(delay) = failure.retry_after {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(Failure::code(failure.reason), failure.text, details)
    }
}

/// The reason a status carries, where it is one of ours.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    (info.domain == DOMAIN)
        .then(|| Reason::from_word(&info.reason))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

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
