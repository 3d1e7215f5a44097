//! A worker that is registered for as long as somebody keeps it so.

use std::time::Duration;

use tether_clock::{Clock as _, HolderClock};
use tether_history::lease_of_registration;
use tether_lease::{Holder, Standing};
use tether_proto::{
    common::WorkerRef,
    registry::{
        Condition, DeregisterRequest, RegisterRequest, RegisterResponse, Registrant as Wire,
    },
};
use tether_types::{Address, Epoch, InstanceName, PoolName, WorkerId};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    Client, Lost, Problem,
    keepalive::{Ack, Beats, Lease},
    kept::{self, Kept},
};

/// What is registered.
#[derive(Debug, Clone)]
pub struct Registrant {
    /// In which pool; one that agents run takes no registrations.
    pub pool: PoolName,
    /// What it is called, by one at a time in its pool.
    pub name: InstanceName,
    /// Where it is called, registered by one at a time.
    pub address: Address,
    /// How it is spoken to: `grpc` for HTTP/2 without TLS, which empty means, or `grpcs` with, for clients of discovery
    /// that speak it: gateways do not.
    pub protocol: String,
    /// Wished lease; the arbiter's default when none is given.
    pub ttl: Option<Duration>,
}

/// A registration. Dropping it stops the beats, and the worker is withdrawn at the end of the lease;
/// [`Registration::close`] withdraws it at once.
#[derive(Debug)]
pub struct Registration {
    client: Client,
    registrant: Registrant,
    worker: WorkerId,
    condition: watch::Sender<Condition>,
    kept: Kept,
}

impl Registration {
    pub(crate) async fn open(
        client: Client,
        registrant: Registrant,
        condition: Condition,
    ) -> Result<Self, Problem> {
        let (changed, news) = watch::channel(condition.clone());
        let mut registered = Registered {
            client: client.clone(),
            registrant: registrant.clone(),
            life: tether_kit::process::fresh_word(),
            epoch: Epoch(0),
            news,
            told: condition,
        };
        let clock = HolderClock::start();
        let mut beats = Beats::default();
        let sent = clock.now();
        let (seq, ack_seen) = beats.on_send(sent);
        let (outbox, requests) = mpsc::channel(1);
        let _ = outbox.try_send(registered.beat(seq, ack_seen, true));
        let mut answers = registered.open(ReceiverStream::new(requests)).await?;
        let answer = answers.message().await?;
        let granted = answer.ok_or_else(|| Status::unavailable("the gateway closed the stream"))?;
        beats.on_answer(granted.seq);
        let worker = WorkerRef::required(granted.worker.as_ref()).map_err(Status::from)?;
        registered.epoch = Epoch(granted.epoch);
        let holder = Holder::granted(kept::terms(granted.ttl_ms)?, sent);
        Ok(Self {
            kept: Kept::keep(registered, holder, clock, granted.beat_ms, beats),
            client,
            registrant,
            worker,
            condition: changed,
        })
    }

    /// The worker as which it is registered.
    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// The fencing token of this registration: its worker's incarnation.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.worker.incarnation.0)
    }

    /// Has it told how the worker is from here on.
    pub fn change(&self, change: impl FnOnce(&mut Condition)) {
        self.condition.send_if_modified(|condition| {
            let before = condition.clone();
            change(condition);
            before != *condition
        });
    }

    /// How the lease stands, and each change of it.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.kept.standing()
    }

    /// Comes back when the registration is lost, with the reason. From then on its name and its address may be
    /// another's.
    pub async fn lost(&self) -> Lost {
        self.kept.lost().await
    }

    /// Withdraws the worker; calls that it serves go on.
    ///
    /// # Errors
    /// When the arbiter cannot be told.
    pub async fn close(self) -> Result<(), Problem> {
        self.kept.stop();
        let request = DeregisterRequest {
            pool: self.registrant.pool.to_string(),
            name: self.registrant.name.to_string(),
            epoch: self.epoch().0,
        };
        self.client.registrations().deregister(request).await?;
        Ok(())
    }
}

/// A registration, as its beats keep it.
struct Registered {
    client: Client,
    registrant: Registrant,
    life: String,
    /// 0 until it is known.
    epoch: Epoch,
    news: watch::Receiver<Condition>,
    /// What was told last of how the worker is.
    told: Condition,
}

impl Lease for Registered {
    type Beat = RegisterRequest;
    type Answer = RegisterResponse;

    fn name(&self) -> String {
        lease_of_registration(&self.registrant.pool, &self.registrant.name)
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    async fn open(
        &self,
        beats: ReceiverStream<RegisterRequest>,
    ) -> Result<Streaming<RegisterResponse>, Status> {
        let opened = self.client.registrations().register(beats).await?;
        Ok(opened.into_inner())
    }

    fn beat(&mut self, seq: u64, ack_seen: u64, first_of_stream: bool) -> RegisterRequest {
        let condition = self.news.borrow_and_update().clone();
        let is_told = !first_of_stream && condition == self.told;
        self.told = condition.clone();
        RegisterRequest {
            registrant: first_of_stream.then(|| self.first_word()),
            condition: (!is_told).then_some(condition),
            seq,
            ack_seen,
        }
    }

    fn ack(answer: &RegisterResponse) -> Ack {
        Ack {
            seq: answer.seq,
            ttl_ms: answer.ttl_ms,
            beat_ms: answer.beat_ms,
        }
    }

    async fn news(&mut self) {
        if self.news.changed().await.is_err() {
            // Nobody is left who could change it.
            std::future::pending::<()>().await;
        }
    }
}

impl Registered {
    fn first_word(&self) -> Wire {
        Wire {
            pool: self.registrant.pool.to_string(),
            name: self.registrant.name.to_string(),
            life: self.life.clone(),
            address: self.registrant.address.to_string(),
            protocol: self.registrant.protocol.clone(),
            ttl_ms: self.registrant.ttl.map_or(0, kept::millis),
            epoch: self.epoch.0,
        }
    }
}
