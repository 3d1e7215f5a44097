//! An owner session: opened, kept alive, closed, or lost.

use std::time::Duration;

use tether_clock::{Clock as _, HolderClock};
use tether_lease::{Holder, Standing, Terms};
use tether_proto::{
    SHARD, expect_shard,
    session::{CloseSessionRequest, OpenSessionRequest},
};
use tether_types::{Epoch, OwnerName, Reason};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use crate::{
    Acting, Client, Problem,
    keepalive::{Beats, KeepAlive},
    standing,
};

/// How a session is to be.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Wished lease; the arbiter's default when none is given.
    pub ttl: Option<Duration>,
    /// Whether the death of this process is the death of the owner. Needed for coupled pools.
    pub this_process: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            ttl: None,
            this_process: true,
        }
    }
}

/// Why a session is no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Another session of the same owner took over.
    #[error("another process opened a session for the same owner and took over: {0}")]
    Fenced(String),
    /// The lease ran out before the arbiter could be reached.
    #[error("the lease ran out: the arbiter could not be reached in time ({0})")]
    Expired(String),
    /// The arbiter does not know it any more.
    #[error("the arbiter ended the session: {0}")]
    Ended(String),
}

/// One life of an owner's connection. Dropping it stops the beats, and what follows is for each
/// pool's policy to say; [`Session::close`] says goodbye.
#[derive(Debug)]
pub struct Session {
    client: Client,
    owner: OwnerName,
    epoch: Epoch,
    pools: Vec<String>,
    lost: watch::Receiver<Option<Lost>>,
    acting: Acting,
    standing: watch::Receiver<Standing>,
    stop: CancellationToken,
    _beats: AbortOnDropHandle<()>,
    _standing: AbortOnDropHandle<()>,
}

impl Session {
    pub(crate) async fn open(
        client: Client,
        owner: OwnerName,
        options: SessionOptions,
    ) -> Result<Self, Problem> {
        let process = match options.this_process {
            true => tether_kit::process::own_identity().ok(),
            false => None,
        };
        let clock = HolderClock::start();
        let sent = clock.now();
        let request = OpenSessionRequest {
            owner: owner.to_string(),
            process: process.as_ref().map(Into::into),
            ttl_ms: options.ttl.map_or(0, millis),
            shard: SHARD,
        };
        let granted = client.sessions().open_session(request).await?.into_inner();
        expect_shard(granted.shard).map_err(tonic::Status::from)?;
        let terms =
            Terms::usual(Duration::from_millis(granted.ttl_ms)).map_err(|error| Problem {
                reason: Some(Reason::ConfigInvalid),
                code: tonic::Code::Internal,
                text: format!("the arbiter granted a lease nobody could hold: {error}"),
                retry_after: None,
                facts: Vec::new(),
            })?;

        let (told, lost) = watch::channel(None);
        let stop = CancellationToken::new();
        let holder = Holder::granted(terms, sent);
        let (told_holder, known) = watch::channel(holder.clone());
        let (told_standing, standing) = watch::channel(Standing::Valid);
        let epoch = Epoch(granted.epoch);
        let whose = (owner.clone(), epoch);
        let acting = Acting::new(whose, clock.clone(), known.clone(), lost.clone());
        let telling = standing::tell(clock.clone(), known, told_standing);
        let beats = KeepAlive {
            client: client.clone(),
            owner: owner.clone(),
            epoch,
            holder,
            clock,
            interval: Duration::from_millis(granted.beat_ms.max(10)),
            stop: stop.clone(),
            beats: Beats::default(),
            told: told_holder,
        };
        let beats = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(why) = beats.run().await {
                tracing::warn!(%why, "Session lost");
                told.send_replace(Some(why));
            }
        }));
        Ok(Self {
            client,
            owner,
            epoch,
            pools: granted.pools,
            lost,
            acting,
            standing,
            stop,
            _beats: beats,
            _standing: AbortOnDropHandle::new(tokio::spawn(telling)),
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
        self.standing.clone()
    }

    /// Comes back when the session is lost, with the reason. From then on nothing may be done in
    /// its name.
    pub async fn lost(&self) -> Lost {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why
                .clone()
                .unwrap_or_else(|| Lost::Ended("closed".to_owned())),
            // The keep-alive task ended without a word: the session was closed.
            Err(_) => Lost::Ended("closed".to_owned()),
        }
    }

    /// Says goodbye; each pool's policy says what becomes of its workers.
    ///
    /// # Errors
    /// When the arbiter cannot be told.
    pub async fn close(self) -> Result<(), Problem> {
        self.stop.cancel();
        let request = CloseSessionRequest {
            owner: self.owner.to_string(),
            epoch: self.epoch.0,
        };
        self.client.sessions().close_session(request).await?;
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
