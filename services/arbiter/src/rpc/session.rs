//! Owner sessions.

use std::{sync::Arc, time::Duration};

use tether_proto::{
    Failure, SHARD, admit_shard,
    session::{
        CloseSessionRequest, CloseSessionResponse, KeepAliveRequest, KeepAliveResponse,
        ListSessionsRequest, ListSessionsResponse, OpenSessionRequest, OpenSessionResponse,
        session_service_server::SessionService,
    },
};
use tether_types::Epoch;
use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, owner};
use crate::{ledger::Ledger, seat::Seat, shared::Shared};

/// How long a goodbye may take to reach the last worker; its agent may be away.
const GOODBYE: Duration = Duration::from_secs(5);

/// Serves [`SessionService`].
#[derive(Debug)]
pub(crate) struct Sessions(pub(crate) Arc<Seat>);

#[tonic::async_trait]
impl SessionService for Sessions {
    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let request = request.into_inner();
        let owner = owner(&request.owner)?;
        admit_shard(request.shard)?;
        let ttl = Duration::from_millis(request.ttl_ms);
        let shared = self.0.shared()?;
        // A task of its own: a client that goes away must not leave a committed epoch unused.
        let opened =
            tokio::spawn(async move { shared.open_session(&owner, request.process, ttl).await });
        let (epoch, granted) = opened
            .await
            .map_err(|error| Status::internal(format!("the session was not opened: {error}")))??;
        Ok(Response::new(OpenSessionResponse {
            epoch: epoch.0,
            ttl_ms: granted.ttl_ms,
            beat_ms: granted.beat_ms,
            pools: granted.pools,
            shard: SHARD,
        }))
    }

    type KeepAliveStream = Answers<KeepAliveResponse>;

    async fn keep_alive(
        &self,
        request: Request<Streaming<KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let (answers, receive) = mpsc::channel(4);
        let shared = self.0.shared()?;
        tokio::spawn(async move {
            if let Err(status) = keep_alive(&shared, request.into_inner(), &answers).await {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        let request = request.into_inner();
        let owner = owner(&request.owner)?;
        let shared = self.0.shared()?;
        shared
            .act(|ledger, now| ledger.close_session(&owner, Epoch(request.epoch), now))
            .await?;
        // Answered once its workers were told: an owner that leaves right after the answer must not be
        // taken for one that died, and its workers keep the grace they were given.
        let told = async {
            let mut newest = shared.events.newest();
            while let Ok(false) = shared.read(|ledger, _| ledger.all_told(&owner)).await {
                if newest.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(GOODBYE, told).await;
        Ok(Response::new(CloseSessionResponse {}))
    }

    async fn list_sessions(
        &self,
        _: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let sessions = self.0.shared()?.read(Ledger::list_sessions).await?;
        Ok(Response::new(ListSessionsResponse { sessions }))
    }
}

async fn keep_alive(
    shared: &Shared,
    mut beats: Streaming<KeepAliveRequest>,
    answers: &mpsc::Sender<Result<KeepAliveResponse, Status>>,
) -> Result<(), Status> {
    let Some(mut beat) = beats.next().await.transpose()? else {
        return Ok(());
    };
    let owner = owner(&beat.owner)?;
    let epoch = Epoch(beat.epoch);
    let mut end = shared.follow_session(&owner, epoch).await?;
    let mut applied = shared.pools_applied();
    loop {
        let ack = shared
            .observe(|ledger, now| ledger.beat_session(&owner, epoch, beat.seq, beat.ack_seen, now))
            .await??;
        let answer = KeepAliveResponse {
            seq: beat.seq,
            ttl_ms: ack.ttl_ms,
            beat_ms: ack.beat_ms,
        };
        if answers.send(Ok(answer)).await.is_err() {
            // Whoever does not listen is not kept alive: both halves end together.
            return Ok(());
        }
        beat = loop {
            tokio::select! {
                next = beats.next() => match next.transpose()? {
                    Some(next) => break next,
                    None => return Ok(()),
                },
                why = ended(&mut end) => {
                    return Err(why.map_or_else(|| shared.why_over(), Failure::into));
                }
                Ok(()) = applied.changed() => {
                    let wanted = shared.read(|ledger, _| ledger.session_beat(&owner)).await?;
                    let beat_ms = millis(wanted);
                    if beat_ms < ack.beat_ms {
                        // Told at once: the next answer might come too late for the new pool.
                        let _ = answers.send(Ok(KeepAliveResponse { seq: beat.seq, ttl_ms: 0, beat_ms })).await;
                    }
                }
                () = answers.closed() => return Ok(()),
                () = shared.over() => return Err(shared.why_over()),
            }
        };
    }
}

/// Why the session ended, once it has; none when the arbiter stops.
async fn ended(end: &mut watch::Receiver<Option<Failure>>) -> Option<Failure> {
    end.wait_for(Option::is_some).await.ok()?.clone()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
