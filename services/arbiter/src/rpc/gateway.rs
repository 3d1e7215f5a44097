//! Gateways: one stream of counts each.

use std::sync::Arc;

use tether_proto::{
    Failure, Malformed,
    common::WorkerRef,
    gateway::{ReportCallsRequest, ReportCallsResponse, gateway_service_server::GatewayService},
};
use tether_types::{Reason, WorkerId};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use crate::seat::Seat;

/// The longest word for a life of a gateway, in bytes: it is kept with each worker.
const INSTANCE_MAX: usize = 64;

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
}

fn read(report: &ReportCallsRequest) -> Result<Vec<(WorkerId, u64)>, Failure> {
    let bytes = report.instance.len();
    if !(1..=INSTANCE_MAX).contains(&bytes) {
        let text = format!("`instance` has {bytes} bytes, use 1 to {INSTANCE_MAX}");
        return Err(Failure::new(Reason::ConfigInvalid, text));
    }
    let counts = report.workers.iter().map(|counted| {
        let worker = WorkerRef::required(counted.worker.as_ref())?;
        Ok((worker, counted.calls))
    });
    Ok(counts.collect::<Result<_, Malformed>>()?)
}
