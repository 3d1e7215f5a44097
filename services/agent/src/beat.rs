//! The bookkeeping of beats and the node's lease, without IO.
//!
//! At most one beat is on its way unless the interval has passed: so each beat carries the answer to
//! the one before it, and the arbiter sees that its answers arrive.

use std::{collections::BTreeMap, time::Duration};

use tether_clock::Tick;
use tether_lease::{BEHIND_MAX, Holder, Standing, Terms};

/// Before the arbiter has said how often it wants to hear from us.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);

/// Beats that may be due in vain before the stream is given up.
const PATIENCE: u32 = 2;

/// An arbiter may take this long to answer, however often it wants to hear from us. One of several may take
/// no longer, however seldom it does: if it has stopped, another leads soon, and must be found well before
/// the lease ends.
const ANSWER: Duration = Duration::from_secs(2);

/// On the way to another arbiter one attempt or pause takes no more than this part of what is left of the lease:
/// however little that is, there are others in it.
const PARTS: u32 = 4;

/// An attempt is given as long as that in any case, or none could succeed.
const ATTEMPT_MIN: Duration = Duration::from_millis(500);

/// Beats sent and answered on one stream, and the lease they keep alive over all streams.
#[derive(Debug)]
pub(crate) struct Beats {
    seq: u64,
    ack_seen: u64,
    sent: BTreeMap<u64, Tick>,
    last_sent: Tick,
    interval: Duration,
    holder: Option<Holder>,
    /// What was granted last.
    ttl: Duration,
    /// How many there are to choose from.
    arbiters: usize,
}

impl Beats {
    pub(crate) fn new(arbiters: usize) -> Self {
        Self {
            arbiters,
            seq: 0,
            ack_seen: 0,
            sent: BTreeMap::new(),
            last_sent: Tick::ZERO,
            interval: FIRST_INTERVAL,
            holder: None,
            ttl: Duration::ZERO,
        }
    }

    /// A new stream begins: beats are counted from 1 again, the lease goes on. The first is due at once, as
    /// nobody knows how much of the lease was lost on the way here.
    pub(crate) fn on_stream(&mut self) {
        self.last_sent = Tick::ZERO;
        self.seq = 0;
        self.ack_seen = 0;
        self.sent.clear();
    }

    /// Numbers the beat that is sent at `now`: its number, and the highest answer seen.
    pub(crate) fn on_send(&mut self, now: Tick) -> (u64, u64) {
        self.seq += 1;
        self.sent.insert(self.seq, now);
        self.last_sent = now;
        (self.seq, self.ack_seen)
    }

    /// An answer to beat `seq` arrived. Tells when that beat was sent; none when it never was.
    pub(crate) fn on_answer(
        &mut self,
        seq: u64,
        ttl: Duration,
        interval: Duration,
        now: Tick,
    ) -> Option<Tick> {
        let sent = *self.sent.get(&seq)?;
        self.ack_seen = self.ack_seen.max(seq);
        self.sent.retain(|&other, _| other >= seq);
        if !interval.is_zero() {
            self.interval = interval;
        }
        if ttl.is_zero() {
            return Some(sent);
        }
        self.ttl = ttl;
        let expired = self
            .holder
            .as_mut()
            .is_none_or(|holder| holder.on_ack(sent, ttl, now) == Standing::Expired);
        if expired {
            // Every worker of the old term is gone by its shim's timer; this is a new term (L3).
            match Terms::usual(ttl) {
                Ok(terms) => self.holder = Some(Holder::granted(terms, sent)),
                Err(error) => tracing::error!(%error, "Arbiter granted a lease nobody could hold"),
            }
        }
        Some(sent)
    }

    /// How often the arbiter wants to hear from us.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// When the node's lease ends; [`Tick::ZERO`] when there never was one.
    pub(crate) fn lease_end(&self) -> Tick {
        self.holder.as_ref().map_or(Tick::ZERO, Holder::deadline)
    }

    /// The longest that an attempt or a pause may take at `now`; any length where there is no lease to lose.
    pub(crate) fn step_max(&self, now: Tick) -> Duration {
        match self.lease_end().since(now) {
            Duration::ZERO => Duration::MAX,
            left => (left / PARTS).max(ATTEMPT_MIN),
        }
    }

    /// Whether more than half of a lease is over that nobody has renewed.
    pub(crate) fn is_pressed(&self, now: Tick) -> bool {
        let left = self.lease_end().since(now);
        !left.is_zero() && left < self.ttl / 2
    }

    /// Whether the last beat is not answered yet.
    pub(crate) fn in_flight(&self) -> bool {
        self.seq > self.ack_seen
    }

    /// When a missing answer means that the stream leads nowhere: a connection cut without a word goes on
    /// taking beats for as long as its buffers do.
    pub(crate) fn overdue(&self) -> Tick {
        let unanswered = self.sent.range(self.ack_seen + 1..).next();
        unanswered.map_or(Tick::NEVER, |(_, &sent)| sent + self.patience())
    }

    fn patience(&self) -> Duration {
        match self.arbiters {
            0 | 1 => (self.interval * PATIENCE).max(ANSWER),
            _ if self.ttl.is_zero() => ANSWER,
            _ => ANSWER.min((self.ttl / PARTS).max(ATTEMPT_MIN)),
        }
    }

    /// When the next beat is due even when nothing is to be said: not while so many are on their way that it
    /// could not show that answers arrive.
    pub(crate) fn due(&self) -> Tick {
        if self.seq - self.ack_seen >= BEHIND_MAX {
            Tick::NEVER
        } else {
            self.last_sent + self.interval
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Tick {
        Tick::ZERO + Duration::from_secs(secs)
    }

    const TTL: Duration = Duration::from_secs(20);
    const BEAT: Duration = Duration::from_secs(5);

    #[test]
    fn a_lease_is_counted_from_the_sending_of_the_answered_beat() {
        let mut beats = Beats::new(1);
        let (seq, _) = beats.on_send(at(10));

        assert_eq!(beats.on_answer(seq, TTL, BEAT, at(14)), Some(at(10)));

        assert!(beats.lease_end() <= at(30) && beats.lease_end() > at(29));
        assert_eq!(beats.due(), at(15));
        assert!(!beats.in_flight());
    }

    #[test]
    fn an_answer_to_a_beat_of_an_earlier_stream_extends_nothing() {
        let mut beats = Beats::new(1);
        beats.on_send(at(10));
        beats.on_stream();

        assert_eq!(beats.on_answer(1, TTL, BEAT, at(11)), None);
        assert_eq!(beats.lease_end(), Tick::ZERO);
    }

    #[test]
    fn after_its_end_a_lease_begins_anew_rather_than_being_revived() {
        let mut beats = Beats::new(1);
        let (first, _) = beats.on_send(at(10));
        beats.on_answer(first, TTL, BEAT, at(10));
        let end = beats.lease_end();
        let (second, ack_seen) = beats.on_send(at(60));

        beats.on_answer(second, TTL, BEAT, at(60));

        assert_eq!(ack_seen, first);
        assert!(end < at(60) && beats.lease_end() > at(79));
    }

    #[test]
    fn a_beat_that_was_not_extended_is_still_an_anchor_for_what_it_carries() {
        let mut beats = Beats::new(1);
        let (seq, _) = beats.on_send(at(10));

        assert_eq!(
            beats.on_answer(seq, Duration::ZERO, BEAT, at(11)),
            Some(at(10))
        );
        assert_eq!(
            beats.on_answer(seq, Duration::ZERO, BEAT, at(12)),
            Some(at(10))
        );
        assert_eq!(beats.lease_end(), Tick::ZERO);
    }

    #[test]
    fn a_stream_without_an_answer_is_given_up_after_two_intervals() {
        let mut beats = Beats::new(1);
        let (first, _) = beats.on_send(at(10));
        beats.on_answer(first, TTL, BEAT, at(10));
        assert_eq!(beats.overdue(), Tick::NEVER);

        beats.on_send(at(15));
        beats.on_send(at(20));

        assert_eq!(beats.overdue(), at(25));
    }

    #[test]
    fn where_answers_take_longer_than_beats_the_next_one_waits_for_them() {
        let mut beats = Beats::new(1);
        beats.on_send(at(10));
        beats.on_send(at(11));
        assert_eq!(beats.due(), Tick::NEVER);

        beats.on_answer(1, TTL, BEAT, at(12));

        assert_eq!(beats.due(), at(16));
    }

    #[test]
    fn a_new_stream_begins_with_a_beat() {
        let mut beats = Beats::new(1);
        beats.on_send(at(10));
        assert!(beats.due() > at(10));

        beats.on_stream();

        assert!(beats.due() <= at(10));
    }

    #[test]
    fn one_of_several_arbiters_that_does_not_answer_is_given_up_sooner() {
        let mut beats = Beats::new(2);
        let (first, _) = beats.on_send(at(10));
        beats.on_answer(first, TTL, BEAT, at(10));

        beats.on_send(at(15));

        assert_eq!(beats.overdue(), at(17));
    }

    #[test]
    fn the_shorter_the_lease_the_sooner_a_silent_arbiter_is_given_up() {
        let mut beats = Beats::new(2);
        let (first, _) = beats.on_send(at(10));
        beats.on_answer(first, Duration::from_secs(4), BEAT, at(10));

        beats.on_send(at(11));

        assert_eq!(beats.overdue(), at(12));
    }

    #[test]
    fn steps_on_the_way_to_another_arbiter_become_shorter_with_the_lease() {
        let mut beats = Beats::new(2);
        assert_eq!(beats.step_max(at(10)), Duration::MAX);
        assert!(!beats.is_pressed(at(10)));
        let (first, _) = beats.on_send(at(10));
        beats.on_answer(first, TTL, BEAT, at(10));

        let left = beats.lease_end().since(at(18));
        assert_eq!(beats.step_max(at(18)), left / 4);
        assert!(!beats.is_pressed(at(19)) && beats.is_pressed(at(21)));
        assert_eq!(beats.step_max(at(29)), ATTEMPT_MIN);

        assert_eq!(beats.step_max(at(30)), Duration::MAX, "it is over");
        assert!(!beats.is_pressed(at(30)));
    }
}
