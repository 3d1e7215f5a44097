//! Why something failed, as the BEAM is told.

use http::HeaderMap;
use tether_port::{Meaningless, NIL, Term};
use tether_proto::{Failure, reason_of};
use tether_types::Reason;
use tonic::{
    Code, Status,
    metadata::{KeyAndValueRef, MetadataMap},
};
use tonic_types::StatusExt as _;

use super::out::worker;

/// How far a call got that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// No worker has seen it, or the one that did has not begun and will not.
    NotSent,
    /// It was sent, and nothing came back.
    Unknown,
    /// Its answer had begun, or it was answered with a failure.
    Failed,
}

/// A failed call, with how far it got.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    status: Status,
    outcome: Outcome,
}

impl Failed {
    /// Of a call that this program itself gave up, or never made.
    pub(crate) fn here(failure: Failure, outcome: Outcome) -> Self {
        Self {
            status: failure.into(),
            outcome,
        }
    }

    /// Of a call that was answered so.
    pub(crate) fn answered(status: Status) -> Self {
        let outcome = match status
            .metadata()
            .get("tether-outcome")
            .map(|value| value.as_bytes())
        {
            Some(b"never_sent" | b"refused") => Outcome::NotSent,
            Some(b"sent_unknown") => Outcome::Unknown,
            _ => Outcome::Failed,
        };
        Self { status, outcome }
    }

    pub(crate) fn meaningless(why: &Meaningless) -> Self {
        Self::here(
            Failure::new(Reason::ConfigInvalid, why.to_string()),
            Outcome::NotSent,
        )
    }

    pub(crate) fn too_large(text: &str) -> Self {
        Self::here(Failure::new(Reason::MessageTooLarge, text), Outcome::Failed)
    }

    pub(crate) fn deadline(outcome: Outcome) -> Self {
        let text = match outcome {
            Outcome::NotSent => "the deadline passed before the call could be sent",
            Outcome::Unknown | Outcome::Failed => "the deadline passed",
        };
        Self::here(Failure::new(Reason::DeadlineExceeded, text), outcome)
    }

    pub(crate) fn cancelled(outcome: Outcome) -> Self {
        Self {
            status: Status::cancelled("it was cancelled"),
            outcome,
        }
    }

    pub(crate) fn broken(text: String, outcome: Outcome) -> Self {
        Self {
            status: Status::unavailable(text),
            outcome,
        }
    }

    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self {
            status: Status::internal(text),
            outcome: Outcome::Failed,
        }
    }

    /// The same of a call that got so far.
    pub(crate) fn after(self, outcome: Outcome) -> Self {
        Self { outcome, ..self }
    }

    /// The same of an operation: no answer of it begins before it is done. What was refused has changed nothing, of all
    /// else that nobody here gave up it is not known whether it is done, or will be.
    pub(crate) fn of_operation(self) -> Self {
        let outcome = match self.outcome {
            Outcome::Failed if self.reason().is_some_and(is_refusal) => Outcome::NotSent,
            Outcome::Failed => Outcome::Unknown,
            known => known,
        };
        Self { outcome, ..self }
    }

    /// The code of the failure.
    pub(crate) fn code(&self) -> Code {
        self.status.code()
    }

    /// The reason of it, where it is one of ours.
    pub(crate) fn reason(&self) -> Option<Reason> {
        reason_of(&self.status)
    }
}

/// Whether who says so has looked at an operation, and left everything as it was.
const fn is_refusal(reason: Reason) -> bool {
    match reason {
        Reason::NoWorkerReady
        | Reason::Overloaded
        | Reason::LeaseExpired
        | Reason::LeaseFenced
        | Reason::Draining
        | Reason::ModeForbids
        | Reason::ConfigInvalid
        | Reason::UnknownPool
        | Reason::UnknownTemplate
        | Reason::UnknownWorker
        | Reason::UnknownSession
        | Reason::UnknownJob
        | Reason::NotOwner
        | Reason::NodeTaken
        | Reason::RegistrationTaken
        | Reason::UnknownRegistration
        | Reason::MetadataInvalid => true,
        // It may be decided, and written later; or it was the answer that was lost, or too large.
        Reason::WorkerDied
        | Reason::CallReset
        | Reason::BreakerOpen
        | Reason::SessionWorkerGone
        | Reason::SpawnFailed
        | Reason::NotLeader
        | Reason::ArbiterUnreachable
        | Reason::DiscoveryUnreachable
        | Reason::AgentUnreachable
        | Reason::StoreFailed
        | Reason::MessageTooLarge
        | Reason::DeadlineExceeded => false,
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::answered(status)
    }
}

impl From<Failed> for Term {
    fn from(failed: Failed) -> Self {
        let status = failed.status;
        let shown = |key| {
            let value = status.metadata().get(key)?;
            value.to_str().ok()
        };
        let retry = status
            .get_details_retry_info()
            .and_then(|retry| retry.retry_delay);
        let retry = retry.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        let outcome = match failed.outcome {
            Outcome::NotSent => "not_sent",
            Outcome::Unknown => "unknown",
            Outcome::Failed => "failed",
        };
        let attempts = shown("tether-attempts").and_then(|text| text.parse::<u64>().ok());
        let reason = reason_of(&status).map_or("", Reason::word);
        Self::map([
            ("code", i32::from(status.code()).into()),
            ("reason", reason.into()),
            ("message", status.message().into()),
            ("retry_after", Term::maybe(retry)),
            ("outcome", Term::Atom(outcome)),
            ("worker", worker(shown("tether-worker"))),
            ("attempts", Term::maybe(attempts)),
            ("details", Term::Binary(status.details().to_vec().into())),
            ("trailers", metadata(status.metadata())),
        ])
    }
}

/// Metadata as pairs; what is binary is told as it is, and not as it was written.
pub(crate) fn metadata(metadata: &MetadataMap) -> Term {
    let pairs = metadata.iter().filter_map(|pair| {
        let (key, value) = match pair {
            KeyAndValueRef::Ascii(key, value) => (
                key.as_str(),
                Some(bytes::Bytes::copy_from_slice(value.as_bytes())),
            ),
            KeyAndValueRef::Binary(key, value) => (key.as_str(), value.to_bytes().ok()),
        };
        if OWN.contains(&key) {
            return None;
        }
        Some(Term::Tuple(vec![key.into(), Term::Binary(value?)]))
    });
    Term::List(pairs.collect())
}

/// Headers that are gRPC's own, and not the call's.
const OWN: [&str; 6] = [
    "content-type",
    "date",
    "grpc-encoding",
    "grpc-accept-encoding",
    "grpc-message",
    "grpc-status",
];

/// The same of headers.
pub(crate) fn headers(headers: HeaderMap) -> Term {
    metadata(&MetadataMap::from_headers(headers))
}

/// The worker that an answer's head names.
pub(crate) fn worker_of(headers: &HeaderMap) -> Option<Term> {
    let text = headers.get("tether-worker")?.to_str().ok()?;
    let worker = worker(Some(text));
    (worker != NIL).then_some(worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_that_was_refused_was_not_sent_and_one_whose_answer_was_lost_is_unknown() {
        let answered = |reason| Failed::answered(Failure::new(reason, "odd").into());
        let outcome = |reason| answered(reason).of_operation().outcome;

        assert_eq!(outcome(Reason::NoWorkerReady), Outcome::NotSent);
        assert_eq!(outcome(Reason::ConfigInvalid), Outcome::NotSent);
        assert_eq!(outcome(Reason::ArbiterUnreachable), Outcome::Unknown);
        assert_eq!(outcome(Reason::StoreFailed), Outcome::Unknown);

        let broke = Failed::answered(Status::unavailable("the connection broke"));
        assert_eq!(broke.of_operation().outcome, Outcome::Unknown);
        let late = Failed::deadline(Outcome::NotSent);
        assert_eq!(late.of_operation().outcome, Outcome::NotSent);
        // A worker may have begun with a call that it refuses.
        assert_eq!(answered(Reason::ConfigInvalid).outcome, Outcome::Failed);
    }
}
