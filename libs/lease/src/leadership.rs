//! Who of several may decide: one leads for as long as it has proved in time that it still does, the
//! others wait for as long as it may believe so.
//!
//! All they share is a store with guarded commits and two keys in it. Winning writes both; the
//! revision of the **leader key** is the number of the reign, and does not change until the next one.
//! A renewal writes the **renewal key** under the guard that the leader key is unchanged: committed it
//! proves that nobody else had won by then, and whoever watches sees that the leader lives. Every
//! write of the leader carries the same guard, and needs no more to be refused once it was deposed.
//!
//! ```text
//! leader     |<------ ttl * (1 - rho) - guard ------>| decides no more
//!            sent (a renewal that was committed)
//! candidate     |<------- ttl * (1 + rho) / (1 - rho) + slack ------->| may campaign
//!               saw it
//! ```
//!
//! A renewal is committed after it was sent and seen after it was committed, so a leader has stopped
//! before anybody campaigns, by the arithmetic of [`Terms`] and on the same assumption about clocks.
//!
//! A commit without an answer may have happened. A renewal like that counts for nothing, and the next
//! one tells; a campaign like that is looked up: each attempt has a number of its own in the key.
//!
//! # Invariants
//!
//! - **K1** No two candidates lead at the same time.
//! - **K2** After a reign has begun, nothing is committed under the guard of an earlier one.
//! - **K3** The key of another is taken over only after it was seen unchanged for a whole padded term;
//!   one that is not there, or the candidate's own, at once.
//! - **K4** A reign lasts from the sending of what is known to be committed, never from an answer to it.
//! - **K5** A reign that is over is never led again; its leader may only win another.
//!
//! K1 rests on clocks that keep within `rho`, as L1 does; K2 on the store alone.

use std::time::Duration;

use tether_clock::Tick;

use crate::{InvalidTerms, Margins, Terms};

/// Why leadership cannot be held on such terms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLeaderTerms {
    /// The term itself is none.
    #[error(transparent)]
    Term(#[from] InvalidTerms),
    /// A leader would do nothing but renew.
    #[error("a pause of `0s` between two renewals would have the leader do nothing else")]
    NoPause,
    /// One lost renewal would depose a leader.
    #[error(
        "a leader that renews every {renew:?} and leads for {usable:?} after a renewal is deposed by a single one that is lost: renew at least twice within that time"
    )]
    TooSeldom {
        /// As asked for.
        renew: Duration,
        /// How long it leads after the last renewal.
        usable: Duration,
    },
}

/// The terms of leadership; valid by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderTerms {
    terms: Terms,
    renew: Duration,
}

impl LeaderTerms {
    /// A term of `ttl`, renewed every `renew`; the leader stops deciding `guard` before its end, which
    /// is what carrying a decision out may take.
    ///
    /// # Errors
    /// Says what would go wrong.
    pub fn new(
        ttl: Duration,
        renew: Duration,
        guard: Duration,
    ) -> Result<Self, InvalidLeaderTerms> {
        let margins = Margins {
            kill_budget: guard,
            ..Margins::usual(ttl)
        };
        let terms = Self {
            terms: Terms::new(ttl, margins)?,
            renew,
        };
        if renew.is_zero() {
            return Err(InvalidLeaderTerms::NoPause);
        }
        let usable = terms.lead_span();
        if renew.saturating_mul(2) >= usable {
            return Err(InvalidLeaderTerms::TooSeldom { renew, usable });
        }
        Ok(terms)
    }

    /// How long a leader leads, by its own clock, after it sent a renewal that was committed.
    pub fn lead_span(&self) -> Duration {
        let span = self.terms.holder_span(self.terms.ttl());
        span.saturating_sub(self.terms.margins().kill_budget)
    }

    /// How long another waits, by its own clock, after it saw the last renewal.
    pub fn takeover_span(&self) -> Duration {
        self.terms.grantor_span()
    }

    /// The pause between two renewals.
    pub const fn renew(&self) -> Duration {
        self.renew
    }
}

/// The two keys as they were seen at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Revision of the leader key; 0 where there is none.
    pub reign: u64,
    /// Revision of the renewal key; 0 where there is none.
    pub renewal: u64,
    /// Which attempt of this very candidate wrote the leader key; none where another's did.
    pub own: Option<u64>,
}

/// What a candidate is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Read both keys, and tell [`Candidate::on_seen`].
    Look,
    /// Commit both keys, if they are as in `over`, with the number of this attempt in the leader key.
    /// Then tell [`Candidate::on_won`] or [`Candidate::on_lost`], or nothing where that is not known.
    Campaign {
        /// Number of this attempt.
        attempt: u64,
        /// What the guards expect.
        over: Seen,
    },
    /// Commit the renewal key, if the leader key is still of this revision. Then tell
    /// [`Candidate::on_renewed`] or [`Candidate::on_deposed`], or nothing where that is not known.
    Renew {
        /// Revision of the leader key.
        reign: u64,
    },
    /// Nothing, until then.
    Wait(Tick),
}

/// A reign as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reign {
    /// Revision of the leader key: what every write is guarded by.
    pub number: u64,
    /// From when on nothing may be decided any more, unless a renewal is committed before.
    pub until: Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Standby,
    /// An attempt is under way, or its outcome is not known.
    Campaigning {
        attempt: u64,
        sent: Tick,
    },
    Leading {
        reign: Reign,
        renew_at: Tick,
    },
}

/// One who leads or would like to.
#[derive(Debug, Clone)]
pub struct Candidate {
    terms: LeaderTerms,
    attempts: u64,
    /// What the keys were last seen to be, and since when they have been that.
    seen: Option<(Seen, Tick)>,
    state: State,
}

impl Candidate {
    /// A candidate that knows nothing yet.
    pub const fn new(terms: LeaderTerms) -> Self {
        Self {
            terms,
            attempts: 0,
            seen: None,
            state: State::Standby,
        }
    }

    /// What to do at `now`. Every campaign and renewal this answers with counts as sent at `now`.
    pub fn next(&mut self, now: Tick) -> Move {
        match self.state {
            State::Leading { reign, renew_at } => {
                if now >= reign.until {
                    self.stand_by();
                    return Move::Look;
                }
                if now < renew_at {
                    return Move::Wait(renew_at.min(reign.until));
                }
                let renew_at = now + self.terms.renew;
                self.state = State::Leading { reign, renew_at };
                Move::Renew {
                    reign: reign.number,
                }
            }
            State::Campaigning { .. } => Move::Look,
            State::Standby => match self.seen {
                None => Move::Look,
                Some((seen, since)) => self.challenge(seen, since, now),
            },
        }
    }

    fn challenge(&mut self, seen: Seen, since: Tick, now: Tick) -> Move {
        // Nobody leads under a key that is not there, nor under one's own when one does not (K3).
        let vacant = seen.reign == 0 || seen.own.is_some();
        let free_at = since + self.terms.takeover_span();
        if !vacant && now < free_at {
            return Move::Wait(free_at);
        }
        self.attempts += 1;
        let attempt = self.attempts;
        self.state = State::Campaigning { attempt, sent: now };
        Move::Campaign {
            attempt,
            over: seen,
        }
    }

    /// The keys were seen like this at `now`, by reading or by watching them. No news is no reason to
    /// begin waiting anew.
    pub fn on_seen(&mut self, seen: Seen, now: Tick) {
        if self.seen.is_none_or(|(known, _)| known != seen) {
            self.seen = Some((seen, now));
        }
        match self.state {
            State::Campaigning { attempt, sent } if seen.own == Some(attempt) => {
                self.begin(seen.reign, sent, now);
            }
            State::Campaigning { .. } => self.state = State::Standby,
            State::Standby | State::Leading { .. } => {}
        }
    }

    /// An attempt was committed as revision `reign`.
    pub fn on_won(&mut self, attempt: u64, reign: u64, now: Tick) {
        if let State::Campaigning {
            attempt: last,
            sent,
        } = self.state
            && last == attempt
        {
            self.begin(reign, sent, now);
        }
    }

    /// An attempt was refused: the keys are not what they were.
    pub fn on_lost(&mut self, attempt: u64) {
        if matches!(self.state, State::Campaigning { attempt: last, .. } if last == attempt) {
            self.stand_by();
        }
    }

    /// A renewal sent at `sent` was committed. It comes too late for a reign that is over (K5).
    pub fn on_renewed(&mut self, number: u64, sent: Tick, now: Tick) {
        if let State::Leading { reign, .. } = &mut self.state
            && reign.number == number
            && now < reign.until
        {
            // Answers overtake each other, and none is to one of the future (K4).
            let until = sent.min(now) + self.terms.lead_span();
            reign.until = reign.until.max(until);
        }
    }

    /// A guard on the leader key did not hold: another reign has begun.
    pub fn on_deposed(&mut self, number: u64) {
        if matches!(self.state, State::Leading { reign, .. } if reign.number == number) {
            self.stand_by();
        }
    }

    /// The reign, while it is this candidate's to decide.
    pub fn leads(&self, now: Tick) -> Option<Reign> {
        match self.state {
            State::Leading { reign, .. } if now < reign.until => Some(reign),
            State::Leading { .. } | State::Standby | State::Campaigning { .. } => None,
        }
    }

    /// Leads no more, from now on. Tells which reign it was; where both keys are then deleted under
    /// its guard, another candidate need not wait.
    pub fn resign(&mut self) -> Option<u64> {
        let State::Leading { reign, .. } = self.state else {
            return None;
        };
        self.stand_by();
        Some(reign.number)
    }

    fn begin(&mut self, number: u64, sent: Tick, now: Tick) {
        let until = sent + self.terms.lead_span();
        self.seen = None;
        self.state = State::Standby;
        // Where it took so long to hear of it that the reign is over, it never begins.
        if now < until {
            let renew_at = sent + self.terms.renew;
            let reign = Reign { number, until };
            self.state = State::Leading { reign, renew_at };
        }
    }

    fn stand_by(&mut self) {
        self.seen = None;
        self.state = State::Standby;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn terms() -> LeaderTerms {
        LeaderTerms::new(5 * SECOND, SECOND, SECOND / 2).unwrap()
    }

    fn at(millis: u64) -> Tick {
        Tick::ZERO + Duration::from_millis(millis)
    }

    fn leader(now: Tick) -> Candidate {
        let mut candidate = Candidate::new(terms());
        assert_eq!(candidate.next(now), Move::Look);
        candidate.on_seen(Seen::default(), now);
        assert!(matches!(
            candidate.next(now),
            Move::Campaign { attempt: 1, .. }
        ));
        candidate.on_won(1, 7, now);
        candidate
    }

    const OTHER: Seen = Seen {
        reign: 3,
        renewal: 4,
        own: None,
    };

    #[test]
    fn terms_that_cannot_work_are_refused_with_their_consequence() {
        let refused = |ttl, renew, guard| {
            let error = LeaderTerms::new(ttl, renew, guard).unwrap_err();
            error.to_string()
        };

        assert!(refused(5 * SECOND, Duration::ZERO, SECOND).contains("nothing else"));
        assert!(refused(5 * SECOND, 2 * SECOND, SECOND).contains("single one that is lost"));
        assert!(refused(5 * SECOND, SECOND, 5 * SECOND).contains("no time to work"));
        assert!(refused(Duration::ZERO, SECOND, SECOND).contains("outside"));
        assert_eq!(terms().lead_span(), Duration::from_millis(4_475));
    }

    #[test]
    fn a_leader_leads_from_the_sending_of_the_last_renewal_that_is_known_to_be_committed() {
        let mut leader = leader(at(0));

        assert_eq!(leader.next(at(400)), Move::Wait(at(1_000)));
        assert_eq!(leader.next(at(1_000)), Move::Renew { reign: 7 });
        leader.on_renewed(7, at(1_000), at(3_000));

        assert_eq!(leader.leads(at(5_474)).map(|reign| reign.number), Some(7));
        assert_eq!(leader.leads(at(5_475)), None);
        leader.on_renewed(7, at(2_000), at(5_475));
        assert_eq!(leader.leads(at(5_475)), None, "what is over stays over");
        assert_eq!(leader.next(at(5_475)), Move::Look);
    }

    #[test]
    fn the_key_of_another_is_waited_for_and_watching_it_again_is_no_news() {
        let mut candidate = Candidate::new(terms());
        candidate.on_seen(OTHER, at(0));
        candidate.on_seen(OTHER, at(2_000));
        let free_at = at(0) + terms().takeover_span();

        assert_eq!(candidate.next(at(3_000)), Move::Wait(free_at));
        let renewed = Seen {
            renewal: 5,
            ..OTHER
        };
        candidate.on_seen(renewed, at(4_000));
        let free_at = at(4_000) + terms().takeover_span();
        assert_eq!(candidate.next(at(6_000)), Move::Wait(free_at));
        let attempt = Move::Campaign {
            attempt: 1,
            over: renewed,
        };
        assert_eq!(candidate.next(free_at), attempt);
    }

    #[test]
    fn an_attempt_without_an_answer_is_looked_up() {
        let campaign = || {
            let mut candidate = Candidate::new(terms());
            candidate.on_seen(Seen::default(), at(0));
            candidate.next(at(0));
            assert_eq!(candidate.next(at(2_000)), Move::Look);
            candidate
        };
        let won = Seen {
            reign: 9,
            renewal: 9,
            own: Some(1),
        };

        let mut in_time = campaign();
        in_time.on_seen(won, at(2_000));
        assert_eq!(in_time.leads(at(4_474)).map(|reign| reign.number), Some(9));
        assert_eq!(
            in_time.leads(at(4_475)),
            None,
            "counted from when it was sent"
        );
        let mut too_late = campaign();
        too_late.on_seen(won, at(4_475));
        assert_eq!(too_late.leads(at(4_475)), None);
        let mut in_vain = campaign();
        in_vain.on_seen(Seen::default(), at(2_000));
        assert!(matches!(
            in_vain.next(at(2_000)),
            Move::Campaign { attempt: 2, .. }
        ));
    }

    #[test]
    fn a_leader_whose_reign_ran_out_need_not_wait_where_nobody_has_won_since() {
        let mut leader = leader(at(0));
        assert_eq!(leader.next(at(30_000)), Move::Look);

        let over = Seen {
            reign: 7,
            renewal: 8,
            own: Some(1),
        };
        leader.on_seen(over, at(30_000));

        let campaign = Move::Campaign { attempt: 2, over };
        assert_eq!(leader.next(at(30_000)), campaign);
    }

    #[test]
    fn a_leader_that_was_deposed_or_resigned_decides_no_more_at_once() {
        let (mut deposed, mut resigned) = (leader(at(0)), leader(at(0)));

        deposed.on_deposed(6);
        assert!(deposed.leads(at(1)).is_some(), "that was another reign");
        deposed.on_deposed(7);
        assert_eq!(resigned.resign(), Some(7));

        assert_eq!((deposed.leads(at(1)), resigned.leads(at(1))), (None, None));
        assert_eq!(resigned.resign(), None);
    }
}
