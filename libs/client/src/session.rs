//! An owner session: opened, kept alive, closed, or lost.

use std::time::Duration;

use tether_clock::{Clock as _, HolderClock};
use tether_history::lease_of_owner;
use tether_lease::{Holder, Standing};
use tether_proto::{
    SHARD, expect_shard,
    session::{CloseSessionRequest, KeepAliveRequest, KeepAliveResponse, OpenSessionRequest},
};
use tether_types::{Epoch, OwnerName, ProcessIdentity};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, service::interceptor::InterceptedService, transport::Channel};

use crate::{
    Acting, Client, Lost, Problem,
    keepalive::{Ack, Beats, Lease},
    kept::{self, Kept},
};

/// How a session is to be.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Wished lease; the arbiter's default when none is given.
    pub ttl: Option<Duration>,
    /// The process whose death is the death of the owner, this one unless another is named. Needed for coupled
    /// pools.
    pub process: Option<ProcessIdentity>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            ttl: None,
            process: tether_kit::process::own_identity().ok(),
        }
    }
}

/// One life of an owner's connection. Dropping it stops the beats, and what follows is for each
/// pool's policy to say; [`Session::close`] says goodbye.
#[derive(Debug)]
pub struct Session {
    client: Client,
    owner: OwnerName,
    epoch: Epoch,
    ttl: Duration,
    pools: Vec<String>,
    acting: Acting,
    kept: Kept,
}

/// A session, as its beats keep it.
struct Owned {
    client: Client,
    owner: OwnerName,
    epoch: Epoch,
}

impl Lease for Owned {
    type Beat = KeepAliveRequest;
    type Answer = KeepAliveResponse;

    fn name(&self) -> String {
        lease_of_owner(&self.owner)
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    async fn open(
        &self,
        beats: ReceiverStream<KeepAliveRequest>,
    ) -> Result<Streaming<KeepAliveResponse>, Status> {
        let opened = self.client.sessions().keep_alive(beats).await?;
        Ok(opened.into_inner())
    }

    fn beat(&mut self, seq: u64, ack_seen: u64, _: bool) -> KeepAliveRequest {
        KeepAliveRequest {
            owner: self.owner.to_string(),
            epoch: self.epoch.0,
            seq,
            ack_seen,
        }
    }

    fn ack(answer: &KeepAliveResponse) -> Ack {
        Ack {
            seq: answer.seq,
            ttl_ms: answer.ttl_ms,
            beat_ms: answer.beat_ms,
        }
    }
}

impl Session {
    pub(crate) async fn open(
        client: Client,
        owner: OwnerName,
        options: SessionOptions,
    ) -> Result<Self, Problem> {
        let clock = HolderClock::start();
        let sent = clock.now();
        let request = OpenSessionRequest {
            owner: owner.to_string(),
            process: options.process.as_ref().map(Into::into),
            ttl_ms: options.ttl.map_or(0, kept::millis),
            shard: SHARD,
        };
        let granted = client.sessions().open_session(request).await?.into_inner();
        expect_shard(granted.shard).map_err(tonic::Status::from)?;
        let epoch = Epoch(granted.epoch);
        let owned = Owned {
            client: client.clone(),
            owner: owner.clone(),
            epoch,
        };
        let holder = Holder::granted(kept::terms(granted.ttl_ms)?, sent);
        let kept = Kept::keep(owned, holder, clock, granted.beat_ms, Beats::default());
        let whose = (owner.clone(), epoch);
        let (holder, lost) = (kept.holder(), kept.told_lost());
        let acting = Acting::new(whose, kept.clock(), holder, lost);
        Ok(Self {
            client,
            owner,
            epoch,
            ttl: Duration::from_millis(granted.ttl_ms),
            pools: granted.pools,
            acting,
            kept,
        })
    }

    /// The owner's name.
    pub fn owner(&self) -> &OwnerName {
        &self.owner
    }

    /// The fencing token of this session.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Pools of this owner that were there before, and are this session's now.
    pub fn pools(&self) -> &[String] {
        &self.pools
    }

    /// What makes calls in this session's name: they carry its epoch, so that gateways refuse them once it is
    /// over or taken over, and are refused here from the moment in which its lease ends, also while nobody
    /// can be reached.
    pub fn acting(&self) -> Acting {
        self.acting.clone()
    }

    /// The channel, for calls to workers in this session's name: set the metadata `tether-pool` on each.
    pub fn channel(&self) -> InterceptedService<Channel, Acting> {
        InterceptedService::new(self.client.channel(), self.acting())
    }

    /// How the session stands, and each change of it: jeopardy once no beat was answered for two thirds of the
    /// lease.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.kept.standing()
    }

    /// Has beats held back, or let go again: for one who keeps the session of another, and does not know whether
    /// that one still lives. While they are held back the lease runs on.
    pub fn hold_back(&self, held: bool) {
        self.kept.hold_back(held);
    }

    /// The lease that was granted with the session.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The lease, and each change of it: a beat was answered.
    pub fn lease(&self) -> watch::Receiver<Holder> {
        self.kept.holder()
    }

    /// What is left of the lease.
    pub fn remaining(&self) -> Duration {
        let deadline = self.kept.holder().borrow().deadline();
        deadline.since(self.kept.clock().now())
    }

    /// Comes back when the session is lost, with the reason. From then on nothing may be done in
    /// its name.
    pub async fn lost(&self) -> Lost {
        self.kept.lost().await
    }

    /// Says goodbye; each pool's policy says what becomes of its workers.
    ///
    /// # Errors
    /// When the arbiter cannot be told.
    pub async fn close(self) -> Result<(), Problem> {
        self.kept.stop();
        let request = CloseSessionRequest {
            owner: self.owner.to_string(),
            epoch: self.epoch.0,
        };
        self.client.sessions().close_session(request).await?;
        Ok(())
    }
}
