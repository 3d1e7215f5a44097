//! Jobs.

use std::{sync::Arc, time::Duration};

use tether_history::{What, note};
use tether_proto::{
    Failure,
    common::WorkerRef,
    job::{
        AcknowledgeJobRequest, AcknowledgeJobResponse, AdoptJobRequest, AdoptJobResponse,
        CancelJobRequest, CancelJobResponse, GetJobRequest, GetJobResponse, Job, ListJobsRequest,
        ListJobsResponse, PutCheckpointRequest, PutCheckpointResponse, ReportJobRequest,
        ReportJobResponse, StartJobRequest, StartJobResponse, WatchJobsRequest, WatchJobsResponse,
        job_service_server::JobService,
    },
};
use tether_types::{PoolName, Reason};
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Answers;
use crate::{effects::Followed, ledger::Ledger, seat::Seat};

/// So often jobs are told where nothing changes: a machine that vanished does not close its streams.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

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
            .act(|ledger, _| {
                ledger.may_act(&request.owner, request.epoch, &request.pool)?;
                ledger.start_job(request)
            })
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

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let request = request.into_inner();
        let job = self
            .0
            .shared()?
            .act(|ledger, now| {
                ledger.may_act(&request.owner, request.epoch, &request.pool)?;
                ledger.cancel_job(&request, now)
            })
            .await?;
        Ok(Response::new(CancelJobResponse { job: Some(job) }))
    }

    type WatchJobsStream = Answers<WatchJobsResponse>;

    async fn watch_jobs(
        &self,
        request: Request<WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let request = request.into_inner();
        let shared = self.0.shared()?;
        let what = match &request.worker {
            Some(worker) => Followed::Worker(WorkerRef::required(Some(worker))?),
            None => {
                let look = |ledger: &Ledger| ledger.get_job(&request.pool, &request.key);
                // Asked before the stream begins, so that a wrong name is an error and not an empty answer.
                let job = shared.read(|ledger, _| look(ledger)).await??;
                let pool = PoolName::new(&job.pool)
                    .map_err(|error| Failure::new(Reason::ConfigInvalid, error.to_string()))?;
                Followed::Key(pool, job.key)
            }
        };
        let (send, receive) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut follower = shared.followers.follow(what.clone());
            loop {
                let jobs = shared.read(|ledger, _| look(ledger, &what)).await;
                let ended = jobs.is_err();
                let answer = jobs.map(|jobs| WatchJobsResponse { jobs });
                if send.send(answer.map_err(Status::from)).await.is_err() || ended {
                    return;
                }
                tokio::select! {
                    () = follower.changed() => {}
                    () = sleep(SIGN_OF_LIFE) => {}
                    () = send.closed() => return,
                    () = shared.over() => {
                        let _ = send.send(Err(shared.why_over())).await;
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn acknowledge_job(
        &self,
        request: Request<AcknowledgeJobRequest>,
    ) -> Result<Response<AcknowledgeJobResponse>, Status> {
        let request = request.into_inner();
        self.0
            .shared()?
            .act(|ledger, _| {
                ledger.may_act(&request.owner, request.epoch, &request.pool)?;
                ledger.acknowledge_job(&request.pool, &request.key)
            })
            .await?;
        Ok(Response::new(AcknowledgeJobResponse {}))
    }
}

/// What somebody follows, as it is now.
fn look(ledger: &Ledger, what: &Followed) -> Vec<Job> {
    match what {
        Followed::Worker(id) => ledger.jobs_of(id),
        Followed::Key(pool, key) => ledger.find_job(pool, key).into_iter().collect(),
    }
}
