//! What a gRPC status code says about the worker that sent it.

/// What became of a call, as far as the worker is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The worker did its part, whatever it answered.
    Success,
    /// Something speaks against the worker.
    Failure,
    /// Nothing is known: the caller gave up, or the deadline was too short.
    Silent,
}

const OK: u32 = 0;
const CANCELLED: u32 = 1;
const UNKNOWN: u32 = 2;
const DEADLINE_EXCEEDED: u32 = 4;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;
const DATA_LOSS: u32 = 15;

/// Which gRPC status codes count as failures of the worker.
///
/// A code that is the caller's doing or the application's answer (not found, permission denied,
/// cancelled ...) never counts, or one bad client could take a healthy worker away from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Codes {
    /// Whether DEADLINE_EXCEEDED counts. It does not by default, because callers choose deadlines.
    pub deadline_exceeded: bool,
}

impl Codes {
    /// What `code` says about the worker.
    pub const fn outcome(self, code: u32) -> Outcome {
        match code {
            OK => Outcome::Success,
            UNKNOWN | INTERNAL | UNAVAILABLE | DATA_LOSS => Outcome::Failure,
            DEADLINE_EXCEEDED if self.deadline_exceeded => Outcome::Failure,
            CANCELLED | DEADLINE_EXCEEDED => Outcome::Silent,
            // Any other answer shows a worker that answers.
            _ => Outcome::Success,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_that_speak_against_the_worker_count() {
        let failing = |codes: Codes| -> Vec<u32> {
            (0..=16)
                .filter(|&code| codes.outcome(code) == Outcome::Failure)
                .collect()
        };

        assert_eq!(failing(Codes::default()), [2, 13, 14, 15]);
        let strict = Codes {
            deadline_exceeded: true,
        };
        assert_eq!(failing(strict), [2, 4, 13, 14, 15]);
    }

    #[test]
    fn a_cancelled_call_proves_nothing() {
        assert_eq!(Codes::default().outcome(CANCELLED), Outcome::Silent);
    }
}
