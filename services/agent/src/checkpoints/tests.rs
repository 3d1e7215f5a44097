//! Checkpoints of an agent whose arbiter answers as it is told to.

use std::sync::Mutex;

use tether_kit::arbiters::Arbiters;
use tether_proto::job::{
    AcknowledgeJobRequest, AcknowledgeJobResponse, AdoptJobRequest, AdoptJobResponse,
    CancelJobRequest, CancelJobResponse, GetJobResponse, ListJobsRequest, ListJobsResponse,
    PutCheckpointResponse, ReportJobRequest, ReportJobResponse, StartJobRequest, StartJobResponse,
    WatchJobsRequest, WatchJobsResponse,
    job_service_server::{JobService, JobServiceServer},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::*;

/// Knows one job, and refuses every checkpoint for a reason.
#[derive(Debug)]
struct Arbiter {
    job: Arc<Mutex<Job>>,
    refuses: Reason,
}

#[tonic::async_trait]
impl JobService for Arbiter {
    async fn get_job(&self, _: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let job = Some(self.job.lock().unwrap().clone());
        Ok(Response::new(GetJobResponse { job }))
    }

    async fn put_checkpoint(
        &self,
        _: Request<PutCheckpointRequest>,
    ) -> Result<Response<PutCheckpointResponse>, Status> {
        Err(Failure::new(self.refuses, "as it was told to").into())
    }

    async fn report_job(
        &self,
        _: Request<ReportJobRequest>,
    ) -> Result<Response<ReportJobResponse>, Status> {
        unimplemented!()
    }

    type WatchJobsStream = futures::stream::Empty<Result<WatchJobsResponse, Status>>;

    async fn watch_jobs(
        &self,
        _: Request<WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        unimplemented!()
    }

    async fn start_job(
        &self,
        _: Request<StartJobRequest>,
    ) -> Result<Response<StartJobResponse>, Status> {
        unimplemented!()
    }

    async fn list_jobs(
        &self,
        _: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        unimplemented!()
    }

    async fn adopt_job(
        &self,
        _: Request<AdoptJobRequest>,
    ) -> Result<Response<AdoptJobResponse>, Status> {
        unimplemented!()
    }

    async fn cancel_job(
        &self,
        _: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        unimplemented!()
    }

    async fn acknowledge_job(
        &self,
        _: Request<AcknowledgeJobRequest>,
    ) -> Result<Response<AcknowledgeJobResponse>, Status> {
        unimplemented!()
    }
}

struct Scene {
    directory: tempfile::TempDir,
    checkpoints: Checkpoints,
    job: Arc<Mutex<Job>>,
}

impl Scene {
    fn new(refuses: Reason) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("arbiter.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let job = Arc::<Mutex<Job>>::default();
        let arbiter = JobServiceServer::new(Arbiter {
            job: Arc::clone(&job),
            refuses,
        });
        let server = Server::builder().add_service(arbiter);
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let address = format!("unix:{}", socket.display()).parse().unwrap();
        let own = Some(directory.path().join("own"));
        let shelf = Shelf::new(&Config::default(), own, "gpu-7".to_owned());
        let upstream = Upstream::new(Arbiters::new(vec![address]));
        Self {
            checkpoints: Checkpoints::new(Arc::new(shelf), Arc::new(upstream)),
            directory,
            job,
        }
    }

    /// Has bytes saved, and recorded or refused: where they are, and whether they are there then.
    async fn save(&self, begin: SaveCheckpointBegin, counts: bool) -> (Status, bool) {
        let objects = self.checkpoints.shelf.objects().await.unwrap();
        let (name, sha256) = named(&begin).unwrap();
        let upload = objects.save(&name, sha256, 0).await;
        upload.finish().await.unwrap();
        let uri = objects.uri(&name);
        self.job.lock().unwrap().checkpoint = counts.then(|| Checkpoint {
            uri: uri.clone(),
            ..Checkpoint::default()
        });
        let recorded = self.checkpoints.record(&objects, &name, begin).await;
        (recorded.unwrap_err(), objects.load(&uri).await.is_ok())
    }
}

/// Nothing at all, as a checkpoint.
fn empty() -> SaveCheckpointBegin {
    const SHA256_OF_NOTHING: &[u8; 32] = b"\xe3\xb0\xc4\x42\x98\xfc\x1c\x14\x9a\xfb\xf4\xc8\x99\x6f\xb9\x24\x27\xae\x41\xe4\x64\x9b\x93\x4c\xa4\x95\x99\x1b\x78\x52\xb8\x55";
    SaveCheckpointBegin {
        pool: "train".to_owned(),
        key: "job".to_owned(),
        fence: 5,
        seq: 10,
        sha256: SHA256_OF_NOTHING.to_vec(),
        bytes: 0,
    }
}

#[tokio::test]
async fn what_is_refused_is_removed_unless_a_job_goes_on_from_it() {
    for refused in [Reason::LeaseFenced, Reason::ConfigInvalid] {
        let scene = Scene::new(refused);

        let (status, is_there) = scene.save(empty(), true).await;
        assert_eq!(reason_of(&status), Some(refused));
        assert!(
            is_there,
            "the answer to an earlier call was lost: {refused:?}"
        );

        let (_, is_there) = scene.save(empty(), false).await;
        assert!(!is_there, "nobody goes on from there: {refused:?}");
        drop(scene.directory);
    }
}

#[tokio::test]
async fn a_checkpoint_that_is_not_on_this_node_is_refused_with_the_nodes_name() {
    let scene = Scene::new(Reason::LeaseFenced);
    let here = scene.checkpoints.shelf.objects().await.unwrap();
    let (name, _) = named(&empty()).unwrap();
    for uri in [here.uri(&name), "file:///elsewhere/job".to_owned()] {
        scene.job.lock().unwrap().checkpoint = Some(Checkpoint {
            uri,
            ..Checkpoint::default()
        });

        let ask = Request::new(LoadCheckpointRequest::default());
        let loaded = scene.checkpoints.load_checkpoint(ask).await;

        let status = loaded.map(drop).unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::StoreFailed));
        let mut told = status.details().windows(5);
        assert!(told.any(|part| part == b"gpu-7"), "{status:?}");
    }
}
