//! A failed call, as a person or a program wants to know it.

use std::time::Duration;

use tether_types::Reason;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}{}", self.reason.map(|reason| format!(" [{}]", reason.word())).unwrap_or_default())]
pub struct Problem {
    /// Machine-readable reason, where Tether gave one.
    pub reason: Option<Reason>,
    /// The gRPC code.
    pub code: Code,
    /// What was attempted, on what, and what to do.
    pub text: String,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
    /// Facts for programs: worker, cause and so on.
    pub facts: Vec<(String, String)>,
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let mut facts: Vec<_> = details
            .error_info()
            .map(|info| info.metadata.clone().into_iter().collect())
            .unwrap_or_default();
        facts.sort();
        let reason = tether_proto::reason_of(&status);
        let text = match (reason, status.code()) {
            // The transport's own words say that nobody answered, not who should have.
            (None, Code::Unavailable) if !status.message().contains("gateway") => format!(
                "cannot reach the gateway ({}): is `tether up` running, and is the address right (`--gateway`, TETHER_GATEWAY)?",
                status.message()
            ),
            _ => status.message().to_owned(),
        };
        Self {
            reason,
            code: status.code(),
            text,
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            facts,
        }
    }
}
