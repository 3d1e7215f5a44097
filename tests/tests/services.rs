//! What every service offers besides its own methods: health and reflection. And jobs.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use rustix::process::Signal;
use tether_client::Client;
use tether_proto::{
    common::WorkerRef,
    job::{
        AcknowledgeJobRequest, GetJobRequest, JobState, ReportJobRequest, StartJobRequest,
        WatchJobsRequest,
    },
    reason_of,
    session::ListSessionsRequest,
};
use tether_tests::{Cluster, DEADLINE, Owner, eventually, kill};
use tether_types::Reason;
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

#[tokio::test]
async fn every_service_answers_to_health_and_reflection() {
    let cluster = Cluster::start().await;
    let services = [
        ("gateway.sock", "tether.session.v1.SessionService"),
        ("arbiter.sock", "tether.pool.v1.PoolService"),
        ("discovery.sock", "tether.discovery.v1.DiscoveryService"),
        ("agent.sock", "tether.node.v1.AgentService"),
    ];
    for (socket, service) in services {
        let address = format!("unix:{}", cluster.runtime().join(socket).display());
        let channel = Client::connect(&address.parse().unwrap()).channel();

        // A gateway serves once discovery has told it all, which may be a moment after its node has joined.
        eventually(&format!("{socket} says that it serves"), async || {
            let health = HealthClient::new(channel.clone())
                .check(HealthCheckRequest::default())
                .await
                .unwrap();
            (health.into_inner().status() == ServingStatus::Serving).then_some(())
        })
        .await;

        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileContainingSymbol(service.to_owned())),
        };
        let answers = ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::once(ask))
            .await
            .unwrap();
        let answer = answers
            .into_inner()
            .message()
            .await
            .unwrap()
            .unwrap()
            .message_response;
        assert!(
            matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))),
            "{socket}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_job_is_found_again_by_key_and_is_lost_with_its_worker() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 2, "worker.py", "", "");
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let mut jobs = cluster.client().jobs();
    let start = || StartJobRequest {
        pool: "digits".into(),
        key: "night".into(),
        restarts: Some(0),
        ..StartJobRequest::default()
    };
    let get = || GetJobRequest {
        pool: "digits".into(),
        key: "night".into(),
    };

    let first = jobs.start_job(start()).await.unwrap().into_inner();
    let again = jobs.start_job(start()).await.unwrap().into_inner();
    assert!(!first.found && again.found);
    let worker = first.job.unwrap().worker.unwrap();
    assert_eq!(again.job.unwrap().worker.as_ref(), Some(&worker));

    let report = |worker: &WorkerRef, progress| ReportJobRequest {
        worker: Some(worker.clone()),
        key: "night".into(),
        progress,
        ..ReportJobRequest::default()
    };
    jobs.report_job(report(&worker, 0.5)).await.unwrap();
    jobs.report_job(report(&worker, 0.25)).await.unwrap();
    assert!(
        (jobs
            .get_job(get())
            .await
            .unwrap()
            .into_inner()
            .job
            .unwrap()
            .progress
            - 0.5)
            .abs()
            < 1e-9,
        "progress never goes back"
    );
    let stranger = WorkerRef {
        incarnation: worker.incarnation + 100,
        ..worker.clone()
    };
    assert_eq!(
        jobs.report_job(report(&stranger, 0.9))
            .await
            .unwrap_err()
            .code(),
        Code::FailedPrecondition
    );
    let acknowledge = || AcknowledgeJobRequest {
        pool: "digits".into(),
        key: "night".into(),
        ..AcknowledgeJobRequest::default()
    };
    assert_eq!(
        jobs.acknowledge_job(acknowledge())
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument,
        "it is still being done"
    );

    let workers = cluster.workers("digits").await;
    let victim = workers
        .iter()
        .find(|other| other.worker.as_ref() == Some(&worker))
        .unwrap();
    kill(victim.pid, Signal::KILL);
    eventually("the job is lost, with the cause", async || {
        let job = jobs.get_job(get()).await.unwrap().into_inner().job.unwrap();
        (job.state() == JobState::Lost && job.death.is_some_and(|death| death.signal == Some(9)))
            .then_some(())
    })
    .await;

    let (restarted, _) = eventually("it is started again on a ready worker", async || {
        jobs.start_job(start())
            .await
            .ok()
            .map(tonic::Response::into_inner)
    })
    .await;
    assert!(!restarted.found);
    let worker = restarted.job.unwrap().worker.unwrap();
    let done = ReportJobRequest {
        result: Some(b"42".to_vec()),
        ..report(&worker, 1.0)
    };
    jobs.report_job(done).await.unwrap();
    let job = jobs.get_job(get()).await.unwrap().into_inner().job.unwrap();
    assert_eq!(
        (job.state(), job.result.as_slice()),
        (JobState::Done, &b"42"[..])
    );
    jobs.acknowledge_job(acknowledge()).await.unwrap();
    assert_eq!(
        jobs.get_job(get()).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn a_job_is_started_and_let_go_by_the_session_that_holds_its_pool_and_by_no_earlier_one() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 1, "worker.py", "", "");
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let client = cluster.client();
    let mut sessions = client.sessions();
    let listed = sessions.list_sessions(ListSessionsRequest {}).await;
    let epoch = listed.unwrap().into_inner().sessions[0].epoch;
    let start = async |owner: &str, epoch| {
        let request = StartJobRequest {
            pool: "digits".into(),
            key: "night".into(),
            owner: owner.into(),
            epoch,
            ..StartJobRequest::default()
        };
        let started = client.jobs().start_job(request).await;
        started.map(drop).map_err(|status| reason_of(&status))
    };
    let acknowledge = async |epoch| {
        let request = AcknowledgeJobRequest {
            pool: "digits".into(),
            key: "night".into(),
            owner: "beam".into(),
            epoch,
        };
        let gone = client.jobs().acknowledge_job(request).await;
        gone.map(drop).map_err(|status| reason_of(&status))
    };

    assert_eq!(
        start("beam", epoch - 1).await,
        Err(Some(Reason::LeaseFenced))
    );
    assert_eq!(
        start("other", epoch).await,
        Err(Some(Reason::UnknownSession))
    );
    assert_eq!(start("beam", epoch).await, Ok(()));
    assert_eq!(acknowledge(epoch - 1).await, Err(Some(Reason::LeaseFenced)));
    // Let through: it is the job that is still being done.
    assert_eq!(acknowledge(epoch).await, Err(Some(Reason::ConfigInvalid)));
}

#[tokio::test]
async fn who_follows_a_job_hears_of_it_also_where_nothing_changes() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 1, "worker.py", "", "");
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let mut jobs = cluster.client().jobs();
    let start = StartJobRequest {
        pool: "digits".into(),
        key: "night".into(),
        ..StartJobRequest::default()
    };
    jobs.start_job(start).await.unwrap();
    let watch = WatchJobsRequest {
        pool: "digits".into(),
        key: "night".into(),
        ..WatchJobsRequest::default()
    };
    let mut followed = jobs.watch_jobs(watch).await.unwrap().into_inner();

    let first = followed.message().await.unwrap().unwrap();
    let second = timeout(DEADLINE, followed.message()).await.unwrap();

    assert_eq!(second.unwrap().unwrap(), first);
}
