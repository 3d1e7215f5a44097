//! The side that must not give work away before its last holder is gone.

use std::time::Duration;

use tether_clock::Tick;

use crate::Terms;

/// How many beats the last answer a holder saw may lie behind. One is the normal case, as a beat
/// leaves before its own answer can arrive; the second forgives one lost or slow answer. A holder has no
/// more beats than this on their way at once.
pub const BEHIND_MAX: u64 = 2;

/// What became of a beat, and so how to answer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// The lease is extended: answer with its time to live.
    Extended,
    /// The holder did not show that it hears the answers: answer with a time to live of zero, so
    /// that its next beat can show it.
    Unproven,
    /// A later beat was already seen: answer with a time to live of zero, or not at all.
    Stale,
    /// The lease ended before the beat arrived: tell the holder that it has lost it.
    Ended,
}

/// Whether a lease is still somebody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tenure {
    /// The holder may still be alive: do not give its work away.
    Held,
    /// The holder is gone.
    Free,
}

/// One lease as its grantor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grantor {
    terms: Terms,
    until: Tick,
    last_seq: Option<u64>,
    tenure: Tenure,
}

impl Grantor {
    /// Grants a lease asked for in a request received at `received`.
    pub fn grant(terms: Terms, received: Tick) -> Self {
        Self {
            terms,
            until: received + terms.grantor_span(),
            last_seq: None,
            tenure: Tenure::Held,
        }
    }

    /// Takes over a lease whose last renewal is not known, after a restart or a failover.
    ///
    /// The last beat may have been answered just before `now`, so the lease is taken for one whole
    /// term; `terms` are to have the longest time to live that may have been granted (L1).
    pub fn after_restart(terms: Terms, now: Tick) -> Self {
        Self::grant(terms, now)
    }

    /// The holder begins to count its beats anew, as on another connection. It is granted nothing by that: who asks
    /// need not hear, and its first beat there shows that it does (L6).
    #[must_use]
    pub fn on_stream(self) -> Self {
        Self {
            last_seq: None,
            ..self
        }
    }

    /// Changes the terms for beats to come. What was promised before stays promised.
    pub fn retune(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// Records beat `seq` of a holder that has seen answers up to `ack_seen` (0 for none). The
    /// first beat extends; later ones only when they prove that the answers arrive (L5).
    pub fn on_beat(&mut self, seq: u64, ack_seen: u64, received: Tick) -> Beat {
        if self.check(received) == Tenure::Free {
            return Beat::Ended;
        }
        if self.last_seq.is_some_and(|last| seq <= last) {
            return Beat::Stale;
        }
        let first = self.last_seq.replace(seq).is_none();
        let behind = seq.checked_sub(ack_seen);
        if !first && !behind.is_some_and(|behind| (1..=BEHIND_MAX).contains(&behind)) {
            return Beat::Unproven;
        }
        // After a change of terms an earlier answer may reach further than this one (L1).
        self.until = self.until.max(received + self.terms.grantor_span());
        Beat::Extended
    }

    /// Frees the lease at once: the holder said goodbye, or is proven dead.
    pub fn release(&mut self) {
        self.tenure = Tenure::Free;
    }

    /// Whether the lease is still held at `now`; once free, it stays free.
    pub fn check(&mut self, now: Tick) -> Tenure {
        if now >= self.until {
            self.tenure = Tenure::Free;
        }
        self.tenure
    }

    /// Time until the lease is free if no beat arrives; zero when it is free.
    pub fn remaining(&self, now: Tick) -> Duration {
        match self.tenure {
            Tenure::Held => self.until.since(now),
            Tenure::Free => Duration::ZERO,
        }
    }

    /// The terms of beats to come.
    pub const fn terms(&self) -> Terms {
        self.terms
    }

    /// When to call [`Grantor::check`] at the latest; none when the lease is free.
    pub const fn next_deadline(&self) -> Option<Tick> {
        match self.tenure {
            Tenure::Held => Some(self.until),
            Tenure::Free => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Tick {
        Tick::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn a_holder_that_cannot_hear_is_extended_no_further_until_it_hears_again() {
        let mut lease = Grantor::grant(Terms::usual(Duration::from_secs(60)).unwrap(), at(0));

        let beats = [
            (1, 0),
            (2, 0),
            (3, 0),
            (4, 1),
            (5, 3),
            (6, 5),
            (6, 5),
            (7, 7),
        ];
        let answers: Vec<_> = beats
            .iter()
            .map(|&(seq, ack_seen)| lease.on_beat(seq, ack_seen, at(seq)))
            .collect();

        use Beat::{Extended, Stale, Unproven};
        let expected = [
            Extended, Extended, Unproven, Unproven, Extended, Extended, Stale, Unproven,
        ];
        assert_eq!(answers, expected);
    }

    #[test]
    fn a_proof_of_death_frees_at_once_and_a_beat_from_the_grave_changes_nothing() {
        let mut lease = Grantor::grant(Terms::usual(Duration::from_secs(60)).unwrap(), at(0));

        lease.release();

        assert_eq!(lease.on_beat(1, 0, at(1)), Beat::Ended);
        assert_eq!(lease.check(at(1)), Tenure::Free);
        assert_eq!(
            (lease.remaining(at(1)), lease.next_deadline()),
            (Duration::ZERO, None)
        );
    }
}
