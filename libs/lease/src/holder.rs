//! The side that may work until its deadline and must be gone by then.

use std::time::Duration;

use tether_clock::Tick;

use crate::Terms;

/// How things stand with a holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// The lease is fresh: work.
    Valid,
    /// Two thirds of the time are over without an answer: work on, take nothing new, try every
    /// other way to the grantor.
    Jeopardy,
    /// What is left is needed to stop in good order: begin now. A late answer may still lift this;
    /// whatever has been told to stop by then stays told.
    Stopping,
    /// The work may already belong to someone else: kill, and refuse every further act.
    Expired,
}

/// One lease as its holder sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    terms: Terms,
    jeopardy_at: Tick,
    deadline: Tick,
    standing: Standing,
}

impl Holder {
    /// Starts a lease whose request went out at `sent`.
    pub fn granted(terms: Terms, sent: Tick) -> Self {
        Self {
            terms,
            jeopardy_at: sent + two_thirds(terms.ttl()),
            deadline: sent + terms.holder_span(terms.ttl()),
            standing: Standing::Valid,
        }
    }

    /// Records that the beat sent at `sent` was answered with `ttl`, zero meaning that it was
    /// seen and did not extend the lease.
    pub fn on_ack(&mut self, sent: Tick, ttl: Duration, now: Tick) -> Standing {
        if self.check(now) == Standing::Expired {
            return Standing::Expired;
        }
        // Nothing is answered before it is sent; counting from later would invent time (L2).
        let sent = sent.min(now);
        // Answers overtake each other and a grantor may shorten later terms, while it waits for
        // the furthest it ever gave: keep the furthest too (L2).
        self.jeopardy_at = self.jeopardy_at.max(sent + two_thirds(ttl));
        self.deadline = self.deadline.max(sent + self.terms.holder_span(ttl));
        self.check(now)
    }

    /// How things stand at `now`.
    pub fn check(&mut self, now: Tick) -> Standing {
        self.standing = if self.standing == Standing::Expired || now >= self.deadline {
            Standing::Expired
        } else if now >= self.stop_at() {
            Standing::Stopping
        } else if now >= self.jeopardy_at {
            Standing::Jeopardy
        } else {
            Standing::Valid
        };
        self.standing
    }

    /// When the holder must be gone.
    pub const fn deadline(&self) -> Tick {
        self.deadline
    }

    /// When to call [`Holder::check`] at the latest: the next change of standing, none after the end.
    pub fn next_deadline(&self) -> Option<Tick> {
        match self.standing {
            Standing::Valid => Some(self.jeopardy_at.min(self.stop_at())),
            Standing::Jeopardy => Some(self.stop_at()),
            Standing::Stopping => Some(self.deadline),
            Standing::Expired => None,
        }
    }

    fn stop_at(&self) -> Tick {
        self.deadline
            .saturating_sub(self.terms.margins().kill_budget)
    }
}

fn two_thirds(ttl: Duration) -> Duration {
    // Divided first: a time to live off the wire may be as large as a duration gets.
    ttl / 3 * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_without_answers_passes_through_every_standing_on_time() {
        let terms = Terms::usual(Duration::from_secs(60)).unwrap();
        let sent = Tick::ZERO + Duration::from_secs(100);
        let mut holder = Holder::granted(terms, sent);
        let mut seen = vec![(0, holder.check(sent))];

        while let Some(at) = holder.next_deadline() {
            seen.push((at.since(sent).as_millis(), holder.check(at)));
        }

        let expected = [
            (0, Standing::Valid),
            (40_000, Standing::Jeopardy),
            (49_700, Standing::Stopping),
            (59_700, Standing::Expired),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_answer_lifts_jeopardy_and_an_empty_one_does_not() {
        let terms = Terms::usual(Duration::from_secs(60)).unwrap();
        let mut holder = Holder::granted(terms, Tick::ZERO);
        let beat = Tick::ZERO + Duration::from_secs(45);
        let now = Tick::ZERO + Duration::from_secs(46);

        assert_eq!(holder.on_ack(beat, Duration::ZERO, now), Standing::Jeopardy);
        assert_eq!(holder.on_ack(beat, terms.ttl(), now), Standing::Valid);
    }
}
