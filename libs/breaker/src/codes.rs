//! What a gRPC status code says about the worker that sent it.

/// What became of a call, as far as the worker is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The worker did its part, whatever it answered.
    Success,
    /// It did so, and took too long.
    Slow,
    /// Something speaks against the worker.
    Failure,
    /// Nothing is known: the caller gave up, or the deadline was too short.
    Silent,
}

const CANCELLED: u32 = 1;
const DEADLINE_EXCEEDED: u32 = 4;

/// The codes that may count as failures of a worker, by their names in gRPC.
///
/// A code that is the caller's doing or the application's answer (OK, not found, permission denied, cancelled ...) is
/// none of them, or one bad client could take a healthy worker away from all others.
pub const CODES: [(&str, u32); 8] = [
    ("UNKNOWN", 2),
    ("DEADLINE_EXCEEDED", DEADLINE_EXCEEDED),
    ("RESOURCE_EXHAUSTED", 8),
    ("ABORTED", 10),
    ("UNIMPLEMENTED", 12),
    ("INTERNAL", 13),
    ("UNAVAILABLE", 14),
    ("DATA_LOSS", 15),
];

/// Which gRPC status codes count as failures of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codes(u32);

impl Default for Codes {
    /// DEADLINE_EXCEEDED does not count, because callers choose deadlines.
    fn default() -> Self {
        Self::of(["UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"]).unwrap_or(Self(0))
    }
}

impl Codes {
    /// Those with these names.
    ///
    /// # Errors
    /// The first that is no name of one that may count.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        let mut codes = 0;
        for name in names {
            let known = CODES.iter().find(|(known, _)| *known == name);
            codes |= 1 << known.ok_or(name)?.1;
        }
        Ok(Self(codes))
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let counts = move |code: u32| self.0 & (1 << code) != 0;
        let counting = CODES.iter().filter(move |(_, code)| counts(*code));
        counting.map(|(name, _)| *name)
    }

    /// What `code` says about the worker.
    pub const fn outcome(self, code: u32) -> Outcome {
        match code {
            code if code < u32::BITS && self.0 & (1 << code) != 0 => Outcome::Failure,
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
            (0..=40)
                .filter(|&code| codes.outcome(code) == Outcome::Failure)
                .collect()
        };

        assert_eq!(failing(Codes::default()), [2, 13, 14, 15]);
        let strict = Codes::of(["DEADLINE_EXCEEDED", "ABORTED"]).unwrap();
        assert_eq!(failing(strict), [4, 10]);
    }

    #[test]
    fn what_is_the_callers_doing_never_counts() {
        for name in [
            "OK",
            "CANCELLED",
            "INVALID_ARGUMENT",
            "NOT_FOUND",
            "internal",
        ] {
            assert_eq!(Codes::of(["INTERNAL", name]), Err(name));
        }
        let all = Codes::of(CODES.map(|(name, _)| name)).unwrap();
        for code in [0, 1, 3, 5, 6, 7, 9, 11, 16] {
            assert_ne!(all.outcome(code), Outcome::Failure, "{code}");
        }
    }

    #[test]
    fn names_are_told_as_they_were_given() {
        let names: Vec<_> = Codes::default().names().collect();
        assert_eq!(names, ["UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"]);
    }

    #[test]
    fn a_cancelled_call_proves_nothing() {
        assert_eq!(Codes::default().outcome(CANCELLED), Outcome::Silent);
    }
}
