//! Which arbiter to ask next, and when: soon enough for the lease that is being lost meanwhile.

use std::time::Duration;

use tether_clock::Tick;
use tether_kit::arbiters::{Arbiters, Next, Spread};
use tether_proto::NotLeader;
use tether_types::{Address, Reason};
use tonic::Status;

use crate::beat::Beats;

/// How long opening a stream may take: an arbiter that was stopped takes connections, and says nothing.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The same, where there is another arbiter to be asked.
const OPEN_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(3);

/// How a stream ended, or an attempt at one.
#[derive(Debug)]
pub(crate) enum End {
    /// This agent was told to stop.
    Stopped,
    /// There is more to say in a hello.
    Anew,
    /// There was no answer.
    Silent,
    Broken(Status),
    /// Another agent has this node's lease.
    Fenced(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        match tether_proto::reason_of(&status) {
            Some(Reason::LeaseFenced) => Self::Fenced(status),
            _ => Self::Broken(status),
        }
    }
}

/// Looks for the arbiter that leads.
#[derive(Debug)]
pub(crate) struct Search {
    arbiters: Arbiters,
    spread: Spread,
}

impl Search {
    pub(crate) fn new(arbiters: Arbiters, interval: Duration) -> Self {
        let spread = Spread::new(interval);
        Self { arbiters, spread }
    }

    /// The one to ask.
    pub(crate) fn current(&self) -> &Address {
        self.arbiters.current()
    }

    /// How long it may take to open a stream.
    pub(crate) fn patience(&self, beats: &Beats, now: Tick) -> Duration {
        match self.arbiters.known().len() {
            1 => OPEN_TIMEOUT,
            _ => OPEN_TIMEOUT_OF_SEVERAL.min(beats.step_max(now)),
        }
    }

    /// The one that was asked leads.
    pub(crate) fn on_leader(&mut self) {
        self.arbiters.on_leader();
    }

    /// A stream to the leader is over: pauses begin anew.
    pub(crate) fn on_stream_over(&mut self, interval: Duration) {
        self.spread = Spread::new(interval);
    }

    /// Chooses whom to ask next, and tells how long to wait before that; `random` is from 0 to 1.
    pub(crate) fn after(&mut self, end: End, beats: &Beats, now: Tick, random: f64) -> Duration {
        // What there is to lose by asking one in vain that others name is less than a lease.
        if beats.is_pressed(now) {
            self.arbiters.leave_none_alone();
        }
        match self.choose(end) {
            Next::AskLeader => Duration::ZERO,
            Next::Pause => self.spread.next(random, beats.step_max(now)),
        }
    }

    fn choose(&mut self, end: End) -> Next {
        let arbiters = &mut self.arbiters;
        let arbiter = arbiters.current().to_string();
        match end {
            // Where it is fenced, it was the leader that said so.
            End::Stopped | End::Fenced(_) => Next::Pause,
            End::Anew => Next::AskLeader,
            End::Silent => {
                tracing::warn!(arbiter, "Arbiter does not answer");
                arbiters.on_gone();
                // Everybody else finds that out at another time: there is no herd to keep apart.
                Next::AskLeader
            }
            End::Broken(status) => match NotLeader::of(&status) {
                Some(NotLeader { leader }) => {
                    tracing::info!(arbiter, ?leader, "Arbiter does not lead");
                    arbiters.on_not_leader(leader)
                }
                None => {
                    let error = status.message();
                    tracing::warn!(arbiter, error, "Arbiter is out of reach");
                    arbiters.on_gone();
                    Next::Pause
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tether_proto::Failure;

    use super::*;

    /// When the leader is asked again that left beats without an answer for a moment, counted from the last beat
    /// that it answered; nobody else leads, and all go on naming it. Pauses are as long as they can be.
    fn asked_again(ttl: Duration, beat: Duration) -> Duration {
        let all = ["a:1", "b:1"].map(|it| it.parse::<Address>().unwrap());
        let [leader, _] = all.clone();
        let start = Tick::from_nanos(1_000_000_000);
        let mut beats = Beats::new(all.len());
        let (seq, _) = beats.on_send(start);
        beats.on_answer(seq, ttl, beat, start);
        beats.on_send(beats.due());
        let mut search = Search::new(Arbiters::new(all.to_vec()), beat);
        search.on_leader();

        let mut now = beats.overdue();
        let mut end = End::Silent;
        while now < beats.lease_end() {
            now = now + search.after(end, &beats, now, 1.0);
            if *search.current() == leader {
                return now.since(start);
            }
            // A little for the way there and back.
            now = now + Duration::from_millis(50);
            let leader = Some(leader.clone());
            end = End::Broken(Failure::from(NotLeader { leader }).into());
        }
        panic!("a lease of {ttl:?} was over before the leader was asked again");
    }

    #[test]
    fn a_leader_that_was_silent_for_a_moment_is_asked_again_well_before_the_lease_is_over() {
        for (ttl, beat) in [(6, 1), (8, 1), (14, 1), (20, 5), (30, 10)] {
            let (ttl, beat) = (Duration::from_secs(ttl), Duration::from_secs(beat));

            let asked = asked_again(ttl, beat);

            assert!(asked < ttl * 3 / 4, "of {ttl:?} after {asked:?}");
        }
    }

    #[test]
    fn opening_a_stream_takes_no_longer_than_the_lease_allows() {
        let one: Address = "a:1".parse().unwrap();
        let of =
            |count: usize| Search::new(Arbiters::new(vec![one.clone(); count]), Duration::ZERO);
        let start = Tick::from_nanos(1_000_000_000);
        let mut beats = Beats::new(2);
        assert_eq!(of(2).patience(&beats, start), OPEN_TIMEOUT_OF_SEVERAL);
        let (seq, _) = beats.on_send(start);
        beats.on_answer(seq, Duration::from_secs(8), Duration::from_secs(1), start);

        assert!(of(2).patience(&beats, start) < Duration::from_secs(2));
        assert_eq!(of(1).patience(&beats, start), OPEN_TIMEOUT);
    }
}
