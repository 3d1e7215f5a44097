//! Registrations: one stream each.

use std::sync::Arc;

use tether_proto::{
    Failure,
    common::WorkerRef,
    registry::{
        Condition, DeregisterRequest, DeregisterResponse, ListRegistrationsRequest,
        ListRegistrationsResponse, RegisterRequest, RegisterResponse,
        registry_service_server::RegistryService,
    },
};
use tether_types::{Epoch, InstanceName, PoolName, Reason};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, check_life};
use crate::{
    registry::{Registrant, Seat as Place, check_condition},
    seat::Seat,
    shared::Shared,
};

/// Serves [`RegistryService`].
#[derive(Debug)]
pub(crate) struct Registrations(pub(crate) Arc<Seat>);

#[tonic::async_trait]
impl RegistryService for Registrations {
    type RegisterStream = Answers<RegisterResponse>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let (answers, receive) = mpsc::channel(4);
        let shared = self.0.shared()?;
        tokio::spawn(async move {
            if let Err(status) = keep_registered(&shared, request.into_inner(), &answers).await {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        let request = request.into_inner();
        let refused = |error: tether_types::InvalidName| {
            Failure::new(Reason::ConfigInvalid, error.to_string())
        };
        let pool = PoolName::new(request.pool).map_err(refused)?;
        let key = (pool, InstanceName::new(request.name).map_err(refused)?);
        let epoch = Epoch(request.epoch);
        self.0
            .shared()?
            .act(|ledger, now| ledger.deregister(&key, epoch, now))
            .await?;
        Ok(Response::new(DeregisterResponse {}))
    }

    async fn list_registrations(
        &self,
        request: Request<ListRegistrationsRequest>,
    ) -> Result<Response<ListRegistrationsResponse>, Status> {
        let pool = request.into_inner().pool;
        let registrations = self
            .0
            .shared()?
            .read(|ledger, now| ledger.list_registrations(&pool, now))
            .await?;
        Ok(Response::new(ListRegistrationsResponse { registrations }))
    }
}

async fn keep_registered(
    shared: &Shared,
    mut beats: Streaming<RegisterRequest>,
    answers: &mpsc::Sender<Result<RegisterResponse, Status>>,
) -> Result<(), Status> {
    let Some(mut beat) = beats.next().await.transpose()? else {
        return Ok(());
    };
    let missing = |field| {
        let text = format!("the first message of a stream has no `{field}`");
        Failure::new(Reason::ConfigInvalid, text).fact("field", field)
    };
    let registrant = beat
        .registrant
        .take()
        .ok_or_else(|| missing("registrant"))?;
    check_life("life", &registrant.life)?;
    let ask = Registrant::read(registrant)?;
    let condition = beat
        .condition
        .as_ref()
        .ok_or_else(|| missing("condition"))?;
    check_condition(condition)?;
    let place = register(shared, &ask, condition).await?;
    let worker = WorkerRef {
        pool: ask.key.0.to_string(),
        slot: place.slot,
        incarnation: place.incarnation.0,
    };
    let epoch = Epoch(place.incarnation.0);
    loop {
        beat.condition.as_ref().map_or(Ok(()), check_condition)?;
        let numbers = (beat.seq, beat.ack_seen);
        let condition = beat.condition.take();
        // Nothing waits for the store: what changed is written like any other.
        let ack = shared
            .observe(|ledger, now| {
                ledger.beat_registration(&ask.key, epoch, numbers, condition, now)
            })
            .await??;
        let answer = RegisterResponse {
            worker: Some(worker.clone()),
            epoch: epoch.0,
            seq: beat.seq,
            ttl_ms: ack.ttl_ms,
            beat_ms: ack.beat_ms,
        };
        if answers.send(Ok(answer)).await.is_err() {
            // Whoever does not listen is not kept registered: both halves end together.
            return Ok(());
        }
        beat = tokio::select! {
            next = beats.next() => match next.transpose()? {
                Some(next) => next,
                None => return Ok(()),
            },
            () = answers.closed() => return Ok(()),
            () = shared.over() => return Err(shared.why_over()),
        };
    }
}

/// Registers a worker, or finds it registered: then also while the store is away.
async fn register(
    shared: &Shared,
    ask: &Registrant,
    condition: &Condition,
) -> Result<Place, Failure> {
    let held = shared
        .observe(|ledger, now| ledger.resume_registration(ask, now))
        .await??;
    if let Some(place) = held {
        return Ok(place);
    }
    let place = shared
        .act(|ledger, now| ledger.register(ask, condition.clone(), now))
        .await?;
    shared
        .observe(|ledger, now| ledger.on_registered(&ask.key, place.incarnation, now))
        .await?;
    Ok(place)
}
