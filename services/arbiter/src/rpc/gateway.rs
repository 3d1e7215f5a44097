//! Gateways: one stream of counts each, and one over which they are told of owners.

use std::sync::Arc;

use tether_proto::{
    Failure, Malformed,
    common::WorkerRef,
    gateway::{
        ReportCallsRequest, ReportCallsResponse, WatchOwnersRequest, WatchOwnersResponse,
        gateway_service_server::GatewayService,
    },
};
use tether_types::WorkerId;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, check_life};
use crate::{owners, seat::Seat, shared::Shared};

/// Serves [`GatewayService`].
#[derive(Debug)]
pub(crate) struct Gateways(pub(crate) Arc<Seat>);

#[tonic::async_trait]
impl GatewayService for Gateways {
    async fn report_calls(
        &self,
        request: Request<Streaming<ReportCallsRequest>>,
    ) -> Result<Response<ReportCallsResponse>, Status> {
        let shared = self.0.shared()?;
        let mut reports = request.into_inner();
        loop {
            let report = tokio::select! {
                report = reports.next() => report.transpose()?,
                () = shared.over() => return Err(shared.why_over()),
            };
            let Some(report) = report else {
                return Ok(Response::new(ReportCallsResponse {}));
            };
            let counts = read(&report)?;
            // Nothing waits for the store: a replacement that is decided here is written like any other.
            shared
                .observe(|ledger, now| ledger.on_calls(&report.instance, &counts, now))
                .await??;
        }
    }

    type WatchOwnersStream = Answers<WatchOwnersResponse>;

    async fn watch_owners(
        &self,
        request: Request<Streaming<WatchOwnersRequest>>,
    ) -> Result<Response<Self::WatchOwnersStream>, Status> {
        let (answers, receive) = mpsc::channel(4);
        let shared = self.0.shared()?;
        tokio::spawn(async move {
            if let Err(status) = tell_owners(&shared, request.into_inner(), &answers).await {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// Answers each request, and tells what changes meanwhile.
async fn tell_owners(
    shared: &Shared,
    mut requests: Streaming<WatchOwnersRequest>,
    answers: &mpsc::Sender<Result<WatchOwnersResponse, Status>>,
) -> Result<(), Status> {
    let mut known = shared.owners.watch();
    let (mut told, mut seq) = (None, 0);
    loop {
        tokio::select! {
            request = requests.next() => match request.transpose()? {
                Some(request) => seq = request.seq,
                None => return Ok(()),
            },
            changed = known.changed() => if changed.is_err() { return Ok(()) },
            () = answers.closed() => return Ok(()),
            () = shared.over() => return Err(shared.why_over()),
        }
        // Looked at after the request was received, so that it holds as of that; by one that leads no more it
        // holds as of nothing.
        shared.read(|_, _| ()).await?;
        let now = known.borrow_and_update().clone();
        let answer = owners::news(told.as_ref(), &now, seq);
        told = Some(now);
        if answers.send(Ok(answer)).await.is_err() {
            return Ok(());
        }
    }
}

fn read(report: &ReportCallsRequest) -> Result<Vec<(WorkerId, u64)>, Failure> {
    check_life("instance", &report.instance)?;
    let counts = report.workers.iter().map(|counted| {
        let worker = WorkerRef::required(counted.worker.as_ref())?;
        Ok((worker, counted.calls))
    });
    Ok(counts.collect::<Result<_, Malformed>>()?)
}
