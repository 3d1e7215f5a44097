//! Beats for a session until it is closed or lost.

use std::{collections::BTreeMap, time::Duration};

use backon::BackoffBuilder as _;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_lease::{Holder, Standing};
use tether_proto::session::{KeepAliveRequest, KeepAliveResponse};
use tether_types::{Epoch, OwnerName, Reason};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{Client, Lost};

pub(crate) struct KeepAlive {
    pub(crate) client: Client,
    pub(crate) owner: OwnerName,
    pub(crate) epoch: Epoch,
    pub(crate) holder: Holder,
    pub(crate) interval: Duration,
    pub(crate) stop: CancellationToken,
}

impl KeepAlive {
    /// Beats until told to stop (none), or until the session is lost.
    pub(crate) async fn run(mut self) -> Option<Lost> {
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
                Some(Reason::UnknownSession | Reason::LeaseExpired) => {
                    return Some(Lost::Ended(broken.message().to_owned()));
                }
                _ => {}
            }
            let now = BootClock.now();
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
        let (outbox, requests) = mpsc::channel(2);
        let mut stream = Stream {
            seq: 0,
            ack_seen: 0,
            sent: BTreeMap::new(),
        };
        // Queued before the call is awaited: the other side answers only once it has heard something.
        let _ = outbox.try_send(stream.next(&self.owner, self.epoch));
        let mut inbox: Streaming<KeepAliveResponse> = self
            .client
            .sessions()
            .keep_alive(ReceiverStream::new(requests))
            .await?
            .into_inner();
        let mut due = Instant::now() + self.interval;
        loop {
            let end = Instant::now() + self.holder.deadline().since(BootClock.now());
            tokio::select! {
                answer = inbox.message() => match answer? {
                    Some(answer) => {
                        if !self.on_answer(&mut stream, &answer) {
                            return Err(Status::deadline_exceeded("the answer came too late"));
                        }
                        due = due.min(Instant::now() + self.interval);
                    }
                    None => return Err(Status::unavailable("the gateway closed the stream")),
                },
                () = sleep_until(due) => {
                    if outbox.send(stream.next(&self.owner, self.epoch)).await.is_err() {
                        return Err(Status::unavailable("the stream to the gateway is closed"));
                    }
                    due = Instant::now() + self.interval;
                }
                () = sleep_until(end) => return Err(Status::deadline_exceeded("no answer came in time")),
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Extends the lease by an answer; false when it came too late.
    fn on_answer(&mut self, stream: &mut Stream, answer: &KeepAliveResponse) -> bool {
        let Some(sent) = stream.on_answer(answer.seq) else {
            return true;
        };
        if answer.beat_ms > 0 {
            self.interval = Duration::from_millis(answer.beat_ms);
        }
        let ttl = Duration::from_millis(answer.ttl_ms);
        self.holder.on_ack(sent, ttl, BootClock.now()) != Standing::Expired
    }
}

/// The beats of one stream.
struct Stream {
    seq: u64,
    ack_seen: u64,
    sent: BTreeMap<u64, Tick>,
}

impl Stream {
    fn next(&mut self, owner: &OwnerName, epoch: Epoch) -> KeepAliveRequest {
        self.seq += 1;
        self.sent.insert(self.seq, BootClock.now());
        KeepAliveRequest {
            owner: owner.to_string(),
            epoch: epoch.0,
            seq: self.seq,
            ack_seen: self.ack_seen,
        }
    }

    /// When the answered beat was sent; counting from there and not from the answer makes a slow
    /// network shorten a lease instead of stretching it (L1).
    fn on_answer(&mut self, seq: u64) -> Option<Tick> {
        let sent = self.sent.remove(&seq)?;
        self.sent.retain(|&other, _| other > seq);
        self.ack_seen = self.ack_seen.max(seq);
        Some(sent)
    }
}
