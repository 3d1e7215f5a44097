//! A puppet in the arbiter's place: it speaks the protocol of nodes and decides nothing by itself, so that
//! a bench or a test drives a real agent move by move.
//!
//! It answers each beat at once, with the lease and the permissions it was told to give, and passes on all it
//! hears together with the time at which it heard it.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_kit::{listen, serve::Server};
use tether_proto::node::{
    HeartbeatRequest, HeartbeatResponse, Hello, Order, OwnerExit, OwnerPermission, WorkerReport,
    node_service_server::{NodeService, NodeServiceServer},
};
use tether_types::Address;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::JoinHandle,
};
use tokio_stream::{StreamExt as _, adapters::Map, wrappers::UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// What a puppet heard of the agent.
#[derive(Debug)]
pub enum Heard {
    /// It opened its stream.
    Hello(Hello),
    /// Its first beat of a stream arrived: from here on, orders find a permission.
    FirstBeat,
    /// Something changed with a worker.
    Report(WorkerReport),
    /// An owner's process ended.
    OwnerExit(OwnerExit),
}

/// What every answer to a beat grants.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The node's lease; zero extends nothing.
    pub ttl: Duration,
    /// How often the agent shall beat.
    pub beat: Duration,
    /// What the owners' workers may.
    pub owners: Vec<OwnerPermission>,
}

#[derive(Debug)]
struct Strings {
    grant: Grant,
    /// The last beat, and when it was received.
    last: (u64, Tick),
    outbox: Option<UnboundedSender<HeartbeatResponse>>,
}

/// An arbiter that does as it is told.
#[derive(Debug)]
pub struct Puppet {
    strings: Arc<Mutex<Strings>>,
    heard: UnboundedReceiver<(Tick, Heard)>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Puppet {
    /// Listens at a unix socket.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn listen(socket: &Path, grant: Grant) -> anyhow::Result<Self> {
        let (tell, heard) = mpsc::unbounded_channel();
        let strings = Arc::new(Mutex::new(Strings {
            grant,
            last: (0, Tick::ZERO),
            outbox: None,
        }));
        let stage = Stage {
            strings: Arc::clone(&strings),
            tell,
        };
        let address = Address::Unix(socket.to_owned());
        let listener = listen::bind(&address, false).await?;
        let stop = CancellationToken::new();
        let server = Server::new(tether_proto::DESCRIPTORS).service(NodeServiceServer::new(stage));
        let serve = server.serve(listener, stop.clone(), Duration::ZERO);
        let serving = tokio::spawn(async move { drop(serve.await) });
        Ok(Self {
            strings,
            heard,
            stop,
            serving,
        })
    }

    /// The next thing it heard, and when; waits at most this long.
    ///
    /// # Errors
    /// When nothing comes.
    pub async fn next(&mut self, patience: Duration) -> anyhow::Result<(Tick, Heard)> {
        let heard = tokio::time::timeout(patience, self.heard.recv()).await;
        heard
            .with_context(|| format!("the agent says nothing for {patience:?}"))?
            .context("the puppet no longer listens")
    }

    /// The next report of a worker.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn report(&mut self, patience: Duration) -> anyhow::Result<(Tick, WorkerReport)> {
        loop {
            if let (at, Heard::Report(report)) = self.next(patience).await? {
                return Ok((at, report));
            }
        }
    }

    /// Orders something, at once.
    pub fn order(&self, orders: Vec<Order>) {
        let strings = lock(&self.strings);
        let message = HeartbeatResponse {
            seq: strings.last.0,
            beat_ms: millis(strings.grant.beat),
            owners: strings.grant.owners.clone(),
            orders,
            ttl_ms: 0,
            resync: false,
            epoch: 0,
            shard: 0,
        };
        if let Some(outbox) = &strings.outbox {
            let _ = outbox.send(message);
        }
    }

    /// Grants something else with each answer from here on, and tells when the last beat was received that
    /// was answered with the grant of before.
    pub fn grant(&self, grant: Grant) -> Tick {
        let mut strings = lock(&self.strings);
        strings.grant = grant;
        strings.last.1
    }

    /// Stops listening and cuts the agent off.
    pub async fn close(self) {
        lock(&self.strings).outbox = None;
        self.stop.cancel();
        let _ = self.serving.await;
    }
}

/// The side that the agent sees.
#[derive(Debug)]
struct Stage {
    strings: Arc<Mutex<Strings>>,
    tell: UnboundedSender<(Tick, Heard)>,
}

type Answers = Map<
    UnboundedReceiverStream<HeartbeatResponse>,
    fn(HeartbeatResponse) -> Result<HeartbeatResponse, Status>,
>;

#[tonic::async_trait]
impl NodeService for Stage {
    type HeartbeatStream = Answers;

    async fn heartbeat(
        &self,
        request: Request<Streaming<HeartbeatRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let mut beats = request.into_inner();
        let (outbox, answers) = mpsc::unbounded_channel();
        {
            let mut strings = lock(&self.strings);
            strings.outbox = Some(outbox.clone());
            strings.last = (0, BootClock.now());
        }
        let (strings, tell) = (Arc::clone(&self.strings), self.tell.clone());
        tokio::spawn(async move {
            while let Ok(Some(beat)) = beats.message().await {
                let now = BootClock.now();
                if beat.seq > 0 {
                    let _ = outbox.send(lock(&strings).answer(beat.seq, now));
                }
                for heard in news(beat) {
                    let _ = tell.send((now, heard));
                }
            }
        });
        let answers: Answers = UnboundedReceiverStream::new(answers).map(Ok);
        Ok(Response::new(answers))
    }
}

impl Strings {
    fn answer(&mut self, seq: u64, now: Tick) -> HeartbeatResponse {
        if !self.grant.ttl.is_zero() || !self.grant.owners.is_empty() {
            self.last = (seq, now);
        }
        HeartbeatResponse {
            seq,
            ttl_ms: millis(self.grant.ttl),
            beat_ms: millis(self.grant.beat),
            owners: self.grant.owners.clone(),
            orders: Vec::new(),
            resync: false,
            epoch: 0,
            shard: 0,
        }
    }
}

fn news(beat: HeartbeatRequest) -> impl Iterator<Item = Heard> {
    let hello = beat.hello.map(Heard::Hello);
    let first = (beat.seq == 1).then_some(Heard::FirstBeat);
    let reports = beat.reports.into_iter().map(Heard::Report);
    let exits = beat.owner_exits.into_iter().map(Heard::OwnerExit);
    hello.into_iter().chain(first).chain(reports).chain(exits)
}

fn lock(strings: &Mutex<Strings>) -> MutexGuard<'_, Strings> {
    strings.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_that_extends_nothing_does_not_move_the_time_of_the_last_grant() {
        let owner = OwnerPermission::default();
        let grant = |ttl, owners| Grant {
            ttl,
            owners,
            beat: Duration::from_millis(200),
        };
        let mut strings = Strings {
            grant: grant(Duration::from_secs(2), vec![owner]),
            last: (0, Tick::ZERO),
            outbox: None,
        };

        let granted = strings.answer(1, Tick::from_nanos(10));
        strings.grant = grant(Duration::ZERO, Vec::new());
        let withheld = strings.answer(2, Tick::from_nanos(20));

        assert_eq!((granted.seq, granted.ttl_ms), (1, 2_000));
        assert_eq!(granted.owners.len(), 1);
        assert_eq!((withheld.seq, withheld.ttl_ms), (2, 0));
        assert_eq!(strings.last, (1, Tick::from_nanos(10)));
    }

    #[test]
    fn what_a_beat_carries_is_heard_in_the_order_hello_beat_reports() {
        let beat = HeartbeatRequest {
            hello: Some(Hello::default()),
            seq: 1,
            reports: vec![WorkerReport::default()],
            owner_exits: vec![OwnerExit::default()],
            ..HeartbeatRequest::default()
        };

        let heard: Vec<_> = news(beat).collect();

        assert!(matches!(
            heard[..],
            [
                Heard::Hello(_),
                Heard::FirstBeat,
                Heard::Report(_),
                Heard::OwnerExit(_)
            ]
        ));
    }
}
