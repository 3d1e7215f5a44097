//! Beats for what is held under a lease, a session or a registration, until it is given back or lost.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    time::Duration,
};

use backon::BackoffBuilder as _;
use tether_clock::{Clock as _, HolderClock, Tick};
use tether_history::{What, left, note};
use tether_lease::{Holder, Standing};
use tether_types::{Epoch, Reason};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::Lost;

/// Beats on their way at once: a grantor takes an answer for proven that lies no further behind.
const ON_THE_WAY_MAX: usize = tether_lease::BEHIND_MAX as usize;

/// What is held under a lease that beats keep, and how those go.
pub(crate) trait Lease: Send + 'static {
    type Beat: Send + 'static;
    type Answer: Send + 'static;

    /// How histories call it.
    fn name(&self) -> String;

    /// The epoch under which it is held.
    fn epoch(&self) -> Epoch;

    /// Opens a stream on which beats go.
    fn open(
        &self,
        beats: ReceiverStream<Self::Beat>,
    ) -> impl Future<Output = Result<Streaming<Self::Answer>, Status>> + Send;

    /// The beat of this number, which says that answers up to `ack_seen` were seen.
    fn beat(&mut self, seq: u64, ack_seen: u64, first_of_stream: bool) -> Self::Beat;

    /// What an answer says.
    fn ack(answer: &Self::Answer) -> Ack;

    /// Comes back when a beat is to tell something at once.
    fn news(&mut self) -> impl Future<Output = ()> + Send {
        pending()
    }
}

/// What every answer to a beat says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ack {
    pub(crate) seq: u64,
    pub(crate) ttl_ms: u64,
    pub(crate) beat_ms: u64,
}

pub(crate) struct KeepAlive<L> {
    pub(crate) lease: L,
    pub(crate) holder: Holder,
    /// The clock the holder counts by.
    pub(crate) clock: HolderClock,
    pub(crate) interval: Duration,
    pub(crate) stop: CancellationToken,
    /// Whether beats are held back.
    pub(crate) held: watch::Receiver<bool>,
    pub(crate) beats: Beats,
    /// Tells what is known of the lease.
    pub(crate) told: watch::Sender<Holder>,
}

impl<L: Lease> KeepAlive<L> {
    /// Beats until told to stop (none), or until the lease is lost.
    pub(crate) async fn run(mut self) -> Option<Lost> {
        self.note_held();
        let lost = self.keep().await;
        note(|| What::Stopped {
            lease: self.lease.name(),
            epoch: self.lease.epoch().0,
        });
        lost
    }

    /// For a history: until when this side acts under the lease.
    fn note_held(&self) {
        note(|| What::Held {
            lease: self.lease.name(),
            epoch: self.lease.epoch().0,
            left: left(self.holder.deadline(), self.clock.now()),
        });
    }

    async fn keep(&mut self) -> Option<Lost> {
        let schedule = backon::ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(1))
            .with_jitter()
            .without_max_times();
        let mut delays = schedule.build();
        loop {
            let broken = match self.beat().await {
                Ok(()) => return None,
                Err(status) => status,
            };
            match tether_proto::reason_of(&broken) {
                Some(Reason::LeaseFenced) => {
                    return Some(Lost::Fenced(broken.message().to_owned()));
                }
                Some(
                    Reason::UnknownSession
                    | Reason::UnknownRegistration
                    | Reason::LeaseExpired
                    | Reason::ConfigInvalid,
                ) => {
                    return Some(Lost::Ended(broken.message().to_owned()));
                }
                _ => {}
            }
            let now = self.clock.now();
            if self.holder.check(now) == Standing::Expired {
                return Some(Lost::Expired(broken.message().to_owned()));
            }
            let pause = delays
                .next()
                .unwrap_or(Duration::from_secs(1))
                .min(self.holder.deadline().since(now));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return None,
            }
        }
    }

    /// Beats over one stream, until it breaks.
    async fn beat(&mut self) -> Result<(), Status> {
        let end = self.end();
        tokio::select! {
            () = until(&mut self.held, false) => {}
            () = sleep_until(end) => return Err(late()),
            () = self.stop.cancelled() => return Ok(()),
        }
        let (outbox, requests) = mpsc::channel(2);
        // What was on its way over an earlier stream is answered by nobody.
        self.beats.sent.clear();
        // Queued before the call is awaited: the other side answers only once it has heard something.
        let _ = outbox.try_send(self.next_beat(true));
        let opening = self.lease.open(ReceiverStream::new(requests));
        let mut inbox = tokio::select! {
            opened = opening => opened?,
            // A gateway that looks for an arbiter lets a stream wait.
            () = sleep_until(end) => return Err(late()),
            () = self.stop.cancelled() => return Ok(()),
        };
        let mut due = Instant::now() + self.interval;
        loop {
            let (end, held) = (self.end(), *self.held.borrow_and_update());
            tokio::select! {
                answer = inbox.message() => {
                    let answer = answer?.ok_or_else(|| Status::unavailable("the gateway closed the stream"))?;
                    match self.on_answer(L::ack(&answer)) {
                        Heard::Fine => due = due.min(Instant::now() + self.interval),
                        // The next beat shows that this answer arrived, and earns the lease.
                        Heard::NotExtended => due = Instant::now(),
                        Heard::TooLate => return Err(Status::deadline_exceeded("the answer came too late")),
                    }
                }
                () = sleep_until(due), if !held && self.beats.may_send() => {
                    if outbox.send(self.next_beat(false)).await.is_err() {
                        return Err(Status::unavailable("the stream to the gateway is closed"));
                    }
                    due = Instant::now() + self.interval;
                }
                () = self.lease.news() => due = Instant::now(),
                () = until(&mut self.held, !held) => {}
                () = sleep_until(end) => return Err(late()),
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    /// When the lease ends, unless an answer comes.
    fn end(&self) -> Instant {
        Instant::now() + self.holder.deadline().since(self.clock.now())
    }

    fn next_beat(&mut self, first_of_stream: bool) -> L::Beat {
        let (seq, ack_seen) = self.beats.on_send(self.clock.now());
        self.lease.beat(seq, ack_seen, first_of_stream)
    }

    /// Takes an answer in. One that is no answer to a beat tells that beats are wanted more often.
    fn on_answer(&mut self, answer: Ack) -> Heard {
        if answer.beat_ms > 0 {
            self.interval = Duration::from_millis(answer.beat_ms);
        }
        let Some(sent) = self.beats.on_answer(answer.seq) else {
            return Heard::Fine;
        };
        let ttl = Duration::from_millis(answer.ttl_ms);
        let standing = self.holder.on_ack(sent, ttl, self.clock.now());
        self.told.send_replace(self.holder.clone());
        self.note_held();
        match standing {
            Standing::Expired => Heard::TooLate,
            _ if ttl.is_zero() => Heard::NotExtended,
            _ => Heard::Fine,
        }
    }
}

/// Comes back once beats are held back, or are not.
async fn until(held: &mut watch::Receiver<bool>, wanted: bool) {
    if held.wait_for(|&is| is == wanted).await.is_err() {
        // Whoever could change it has gone, and these beats with it.
        pending::<()>().await;
    }
}

fn late() -> Status {
    Status::deadline_exceeded("no answer came in time")
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Fine,
    /// The beat was seen and did not extend the lease.
    NotExtended,
    TooLate,
}

/// The beats of one lease, counted on over its streams: the arbiter sees that its answers arrive by
/// the last one that was seen.
#[derive(Debug, Default)]
pub(crate) struct Beats {
    seq: u64,
    ack_seen: u64,
    sent: BTreeMap<u64, Tick>,
}

impl Beats {
    /// Numbers the beat sent at `now`: its number, and the highest answer seen.
    pub(crate) fn on_send(&mut self, now: Tick) -> (u64, u64) {
        self.seq += 1;
        self.sent.insert(self.seq, now);
        (self.seq, self.ack_seen)
    }

    /// Whether another beat may be on its way. Where answers take longer than the interval, one that did not
    /// wait for them would show of none of its beats that they arrive.
    fn may_send(&self) -> bool {
        self.sent.len() < ON_THE_WAY_MAX
    }

    /// When the answered beat was sent; counting from there and not from the answer makes a slow
    /// network shorten a lease instead of stretching it (L1). None for one that was answered before.
    pub(crate) fn on_answer(&mut self, seq: u64) -> Option<Tick> {
        let sent = self.sent.remove(&seq)?;
        self.sent.retain(|&other, _| other > seq);
        self.ack_seen = self.ack_seen.max(seq);
        Some(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Tick {
        Tick::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn no_more_beats_are_on_their_way_than_an_answer_may_lie_behind() {
        let mut beats = Beats::default();
        while beats.may_send() {
            beats.on_send(at(1));
        }

        assert_eq!((beats.seq, beats.ack_seen), (2, 0));
        beats.on_answer(1);
        assert!(beats.may_send());
    }

    #[test]
    fn an_answer_counts_once_and_from_when_its_beat_was_sent() {
        let mut beats = Beats::default();
        assert_eq!(beats.on_send(at(1)), (1, 0));
        assert_eq!(beats.on_send(at(2)), (2, 0));

        assert_eq!(beats.on_answer(2), Some(at(2)));
        assert_eq!(beats.on_answer(2), None);
        // Overtaken by the later answer: it could only tell less.
        assert_eq!(beats.on_answer(1), None);
        assert_eq!(beats.on_send(at(3)), (3, 2));
    }
}
