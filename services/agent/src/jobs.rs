//! What workers ask the arbiter about their jobs, handed on: the agent is the one address they know.

use std::sync::Arc;

use tether_proto::job::{
    AcknowledgeJobRequest, AcknowledgeJobResponse, AdoptJobRequest, AdoptJobResponse,
    CancelJobRequest, CancelJobResponse, GetJobRequest, GetJobResponse, ListJobsRequest,
    ListJobsResponse, PutCheckpointRequest, PutCheckpointResponse, ReportJobRequest,
    ReportJobResponse, StartJobRequest, StartJobResponse, WatchJobsRequest, WatchJobsResponse,
    job_service_server::JobService,
};
use tonic::{Request, Response, Status, Streaming};

use crate::upstream::Upstream;

/// Serves the part of [`JobService`] that a worker needs.
#[derive(Debug)]
pub(crate) struct Jobs(pub(crate) Arc<Upstream>);

fn of_owners<T>() -> Result<T, Status> {
    Err(Status::unimplemented(
        "an agent hands on what workers say of their jobs: this is asked of a gateway",
    ))
}

#[tonic::async_trait]
impl JobService for Jobs {
    async fn get_job(
        &self,
        request: Request<GetJobRequest>,
    ) -> Result<Response<GetJobResponse>, Status> {
        let ask = request.into_inner();
        self.0
            .ask(|mut arbiter| {
                let ask = ask.clone();
                async move { arbiter.get_job(ask).await }
            })
            .await
    }

    async fn report_job(
        &self,
        request: Request<ReportJobRequest>,
    ) -> Result<Response<ReportJobResponse>, Status> {
        let ask = request.into_inner();
        self.0
            .ask(|mut arbiter| {
                let ask = ask.clone();
                async move { arbiter.report_job(ask).await }
            })
            .await
    }

    async fn put_checkpoint(
        &self,
        request: Request<PutCheckpointRequest>,
    ) -> Result<Response<PutCheckpointResponse>, Status> {
        let ask = request.into_inner();
        self.0
            .ask(|mut arbiter| {
                let ask = ask.clone();
                async move { arbiter.put_checkpoint(ask).await }
            })
            .await
    }

    type WatchJobsStream = Streaming<WatchJobsResponse>;

    async fn watch_jobs(
        &self,
        request: Request<WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let ask = request.into_inner();
        let jobs = self
            .0
            .ask(|mut arbiter| {
                let ask = ask.clone();
                async move { arbiter.watch_jobs(ask).await }
            })
            .await?;
        Ok(Response::new(jobs.into_inner()))
    }

    async fn start_job(
        &self,
        _: Request<StartJobRequest>,
    ) -> Result<Response<StartJobResponse>, Status> {
        of_owners()
    }

    async fn list_jobs(
        &self,
        _: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        of_owners()
    }

    async fn adopt_job(
        &self,
        _: Request<AdoptJobRequest>,
    ) -> Result<Response<AdoptJobResponse>, Status> {
        of_owners()
    }

    async fn cancel_job(
        &self,
        _: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        of_owners()
    }

    async fn acknowledge_job(
        &self,
        _: Request<AcknowledgeJobRequest>,
    ) -> Result<Response<AcknowledgeJobResponse>, Status> {
        of_owners()
    }
}
