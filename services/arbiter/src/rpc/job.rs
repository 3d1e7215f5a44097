//! Jobs.

use std::sync::Arc;

use tether_history::{What, note};
use tether_proto::{
    common::WorkerRef,
    job::{
        AcknowledgeJobRequest, AcknowledgeJobResponse, AdoptJobRequest, AdoptJobResponse,
        GetJobRequest, GetJobResponse, ListJobsRequest, ListJobsResponse, PutCheckpointRequest,
        PutCheckpointResponse, ReportJobRequest, ReportJobResponse, StartJobRequest,
        StartJobResponse, job_service_server::JobService,
    },
};
use tonic::{Request, Response, Status};

use crate::seat::Seat;

/// Serves [`JobService`].
#[derive(Debug)]
pub(crate) struct Jobs(pub(crate) Arc<Seat>);

#[tonic::async_trait]
impl JobService for Jobs {
    async fn start_job(
        &self,
        request: Request<StartJobRequest>,
    ) -> Result<Response<StartJobResponse>, Status> {
        let request = request.into_inner();
        let (job, found) = self
            .0
            .shared()?
            .act(|ledger, _| ledger.start_job(&request.pool, &request.key))
            .await?;
        Ok(Response::new(StartJobResponse {
            job: Some(job),
            found,
        }))
    }

    async fn get_job(
        &self,
        request: Request<GetJobRequest>,
    ) -> Result<Response<GetJobResponse>, Status> {
        let request = request.into_inner();
        let job = self
            .0
            .shared()?
            .read(|ledger, _| ledger.get_job(&request.pool, &request.key))
            .await??;
        Ok(Response::new(GetJobResponse { job: Some(job) }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let pool = request.into_inner().pool;
        let jobs = self
            .0
            .shared()?
            .read(|ledger, _| ledger.list_jobs(&pool))
            .await?;
        Ok(Response::new(ListJobsResponse { jobs }))
    }

    async fn report_job(
        &self,
        request: Request<ReportJobRequest>,
    ) -> Result<Response<ReportJobResponse>, Status> {
        let request = request.into_inner();
        let worker = WorkerRef::required(request.worker.as_ref())?;
        self.0
            .shared()?
            .act(|ledger, now| ledger.report_job(&worker, request, now))
            .await?;
        Ok(Response::new(ReportJobResponse {}))
    }

    async fn put_checkpoint(
        &self,
        request: Request<PutCheckpointRequest>,
    ) -> Result<Response<PutCheckpointResponse>, Status> {
        let request = request.into_inner();
        let resource = format!("job/{}/{}", request.pool, request.key);
        let fence = request.fence;
        self.0
            .shared()?
            .act(|ledger, _| ledger.put_checkpoint(request))
            .await?;
        note(|| What::Admitted {
            gate: "checkpoints".to_owned(),
            resource,
            fence,
        });
        Ok(Response::new(PutCheckpointResponse {}))
    }

    async fn adopt_job(
        &self,
        request: Request<AdoptJobRequest>,
    ) -> Result<Response<AdoptJobResponse>, Status> {
        let request = request.into_inner();
        let (job, adopted) = self
            .0
            .shared()?
            .act(|ledger, now| {
                ledger.may_act(&request.owner, request.epoch, &request.pool)?;
                ledger.adopt_job(&request.pool, &request.key, now)
            })
            .await?;
        Ok(Response::new(AdoptJobResponse {
            job: Some(job),
            adopted,
        }))
    }

    async fn acknowledge_job(
        &self,
        request: Request<AcknowledgeJobRequest>,
    ) -> Result<Response<AcknowledgeJobResponse>, Status> {
        let request = request.into_inner();
        self.0
            .shared()?
            .act(|ledger, _| ledger.acknowledge_job(&request.pool, &request.key))
            .await?;
        Ok(Response::new(AcknowledgeJobResponse {}))
    }
}
