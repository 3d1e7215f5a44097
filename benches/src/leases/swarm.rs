//! Many agents in one process, each with a connection of its own.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use prost::Message as _;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{
    common::{Death, DeathCause, WorkerPhase, WorkerRef},
    node::{
        HeartbeatRequest, HeartbeatResponse, Hello, Order, WorkerReport, WorkerTable,
        node_service_client::NodeServiceClient, order,
    },
};
use tether_types::{Address, Digest, WorkerId};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::BEAT;

/// A gRPC message has a prefix of five bytes, and is in an HTTP/2 frame with a head of nine.
const FRAMES: usize = 5 + 9;

/// Connections opened within a second.
const PER_SECOND: usize = 2_000;

/// What all of them did.
#[derive(Debug, Default)]
struct Counts {
    beats: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    resyncs: AtomicU64,
    broken: AtomicU64,
}

/// What all of them did so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tally {
    pub(super) beats: u64,
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) resyncs: u64,
    pub(super) broken: u64,
}

/// The last beat of an agent that was answered with a lease: when it was sent, and when the answer came. In
/// between it was received.
pub(super) type Last = (Tick, Tick);

/// The agents.
#[derive(Debug)]
pub(super) struct Swarm {
    counts: Arc<Counts>,
    lasts: Arc<Vec<Mutex<Last>>>,
    /// Agents below this number are cut off.
    cut: watch::Sender<usize>,
    /// Changes when all are to beat at once.
    called: watch::Sender<u64>,
    agents: JoinSet<()>,
}

impl Swarm {
    /// Connects so many, and comes back when each has beaten.
    pub(super) async fn connect(address: &Address, agents: usize) -> anyhow::Result<Self> {
        let lasts = (0..agents).map(|_| Mutex::new((Tick::ZERO, Tick::ZERO)));
        let mut swarm = Self {
            counts: Arc::default(),
            lasts: Arc::new(lasts.collect()),
            cut: watch::Sender::new(0),
            called: watch::Sender::new(0),
            agents: JoinSet::new(),
        };
        for number in 0..agents {
            let agent = Agent {
                number,
                counts: Arc::clone(&swarm.counts),
                lasts: Arc::clone(&swarm.lasts),
                workers: BTreeMap::new(),
                pending: Vec::new(),
                digest: Digest::default(),
                resync: false,
                epoch: 0,
                sent: BTreeMap::new(),
                seq: 0,
                ack_seen: 0,
                next: Instant::now(),
            };
            let (cut, called) = (swarm.cut.subscribe(), swarm.called.subscribe());
            swarm.agents.spawn(agent.run(address.clone(), cut, called));
            if number % 20 == 19 {
                sleep(Duration::from_secs(20) / u32::try_from(PER_SECOND)?).await;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(120);
        while (0..agents).any(|number| swarm.last(number).0 == Tick::ZERO) {
            anyhow::ensure!(Instant::now() < deadline, "not all agents are answered");
            anyhow::ensure!(swarm.tally().broken == 0, "streams break");
            sleep(Duration::from_millis(100)).await;
        }
        Ok(swarm)
    }

    pub(super) fn tally(&self) -> Tally {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally {
            beats: load(&self.counts.beats),
            up: load(&self.counts.up),
            down: load(&self.counts.down),
            resyncs: load(&self.counts.resyncs),
            broken: load(&self.counts.broken),
        }
    }

    pub(super) fn last(&self, number: usize) -> Last {
        let last = self.lasts[number].lock();
        *last.unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts off the first so many: their connections stay open, and nothing passes on them any more.
    pub(super) fn cut(&self, agents: usize) {
        self.cut.send_replace(agents);
    }

    /// Has all from this number on beat in one moment, so that their leases end in one. Comes back when each
    /// has its answer.
    pub(super) async fn beat_at_once(&self, from: usize, agents: usize) -> anyhow::Result<()> {
        let called = BootClock.now();
        self.called.send_modify(|count| *count += 1);
        let deadline = Instant::now() + BEAT;
        while (from..agents).any(|number| self.last(number).0 < called) {
            anyhow::ensure!(Instant::now() < deadline, "not all agents are answered");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// The name of a node.
pub(super) fn name(number: usize) -> String {
    format!("node-{number:05}")
}

struct Agent {
    number: usize,
    counts: Arc<Counts>,
    lasts: Arc<Vec<Mutex<Last>>>,
    /// With the phase last told.
    workers: BTreeMap<WorkerId, WorkerPhase>,
    pending: Vec<WorkerReport>,
    digest: Digest,
    resync: bool,
    /// Of the node's lease, to be said back.
    epoch: u64,
    sent: BTreeMap<u64, Tick>,
    seq: u64,
    ack_seen: u64,
    next: Instant,
}

impl Agent {
    async fn run(
        mut self,
        address: Address,
        mut cut: watch::Receiver<usize>,
        called: watch::Receiver<u64>,
    ) {
        let ended = self.speak(&address, &mut cut, called).await;
        if *cut.borrow() <= self.number {
            self.counts.broken.fetch_add(1, Ordering::Relaxed);
            tracing::error!(agent = self.number, ?ended, "A stream broke");
        }
    }

    async fn speak(
        &mut self,
        address: &Address,
        cut: &mut watch::Receiver<usize>,
        mut called: watch::Receiver<u64>,
    ) -> anyhow::Result<()> {
        let (outbox, mut inbox) = self.open(address).await?;
        self.next = Instant::now() + spread(self.number);
        loop {
            let in_flight = self.seq > self.ack_seen;
            let news = !self.pending.is_empty() || self.resync;
            if Instant::now() >= self.next || (news && !in_flight) {
                let beat = self.beat();
                self.counts.beats.fetch_add(1, Ordering::Relaxed);
                self.count(&self.counts.up, beat.encoded_len());
                outbox.send(beat).await?;
                continue;
            }
            tokio::select! {
                message = inbox.message() => {
                    self.on_message(message?.context("the stream was closed")?);
                }
                () = sleep_until(self.next) => {}
                Ok(()) = called.changed() => self.next = Instant::now(),
                () = cut_off(cut, self.number) => break,
            }
        }
        // Whoever is cut off closes nothing.
        std::future::pending().await
    }

    fn count(&self, counter: &AtomicU64, bytes: usize) {
        let bytes = u64::try_from(bytes + FRAMES).unwrap_or(u64::MAX);
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    async fn open(
        &self,
        address: &Address,
    ) -> anyhow::Result<(mpsc::Sender<HeartbeatRequest>, Streaming<HeartbeatResponse>)> {
        let (outbox, requests) = mpsc::channel(8);
        let hello = Hello {
            node: name(self.number),
            address: "127.0.0.1:1".to_owned(),
            launchers: vec!["exec".to_owned()],
            boot_id: format!("boot-{}", self.number),
            pid_namespace: 1,
            instance: "bench".to_owned(),
            guarantee: "G1".to_owned(),
            ..Hello::default()
        };
        outbox
            .send(HeartbeatRequest {
                hello: Some(hello),
                ..HeartbeatRequest::default()
            })
            .await?;
        let mut client = NodeServiceClient::new(tether_kit::channel::connect(address));
        let inbox = client.heartbeat(ReceiverStream::new(requests)).await?;
        Ok((outbox, inbox.into_inner()))
    }

    fn beat(&mut self) -> HeartbeatRequest {
        self.seq += 1;
        self.sent.insert(self.seq, BootClock.now());
        self.next = Instant::now() + BEAT;
        let reports = std::mem::take(&mut self.pending);
        let table = std::mem::take(&mut self.resync).then(|| WorkerTable {
            workers: self
                .workers
                .iter()
                .map(|(id, phase)| report(id, *phase))
                .collect(),
        });
        HeartbeatRequest {
            seq: self.seq,
            ack_seen: self.ack_seen,
            reports,
            digest: Some(self.digest.sum()),
            count: self.digest.count(),
            table,
            epoch: std::mem::take(&mut self.epoch),
            ..HeartbeatRequest::default()
        }
    }

    fn on_message(&mut self, message: HeartbeatResponse) {
        if message.orders.is_empty() && message.owners.is_empty() {
            self.count(&self.counts.down, message.encoded_len());
        }
        if let Some(&sent) = self.sent.get(&message.seq) {
            self.ack_seen = self.ack_seen.max(message.seq);
            self.sent.retain(|&seq, _| seq >= message.seq);
            if message.ttl_ms > 0 {
                let last = self.lasts[self.number].lock();
                *last.unwrap_or_else(PoisonError::into_inner) = (sent, BootClock.now());
            }
        }
        self.epoch = self.epoch.max(message.epoch);
        if message.resync {
            self.counts.resyncs.fetch_add(1, Ordering::Relaxed);
            self.resync = true;
        }
        for order in message.orders {
            self.on_order(order);
        }
    }

    /// A worker is ready at once, and dead at once.
    fn on_order(&mut self, order: Order) {
        let (worker, phase) = match order.order {
            Some(order::Order::Start(start)) => (start.worker, WorkerPhase::Ready),
            Some(order::Order::Stop(stop)) => (stop.worker, WorkerPhase::Dead),
            Some(order::Order::Forget(_) | order::Order::Signal(_)) | None => return,
        };
        let Ok(id) = WorkerRef::required(worker.as_ref()) else {
            return;
        };
        if let Some(before) = self.workers.remove(&id) {
            self.digest.remove(&id, before.into());
        }
        self.pending.push(report(&id, phase));
        if phase != WorkerPhase::Dead {
            self.digest.add(&id, phase.into());
            self.workers.insert(id, phase);
        }
    }
}

async fn cut_off(cut: &mut watch::Receiver<usize>, number: usize) {
    let _ = cut.wait_for(|cut| *cut > number).await;
}

fn report(id: &WorkerId, phase: WorkerPhase) -> WorkerReport {
    let dead = phase == WorkerPhase::Dead;
    WorkerReport {
        worker: Some(WorkerRef::from(id)),
        phase: phase.into(),
        pid: if dead { 0 } else { 4_242 },
        address: if dead {
            String::new()
        } else {
            format!("10.{}.{}.7:8080", id.slot / 256 % 256, id.slot % 256)
        },
        death: dead.then(|| Death {
            cause: DeathCause::Exited.into(),
            exit_code: Some(0),
            ..Death::default()
        }),
        ..WorkerReport::default()
    }
}

/// When an agent beats first, so that beats are spread evenly.
fn spread(number: usize) -> Duration {
    // The golden ratio spreads any number of them.
    let share = (number * 618_034) % 1_000_000;
    BEAT.mul_f64(super::count(share) / 1e6)
}
