//! A long job on the example worker, while everything around it is killed.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{path::Path, time::Duration};

use rustix::process::Signal;
use tether_proto::job::{
    CancelJobRequest, GetJobRequest, Job, JobState, PutCheckpointRequest, StartJobRequest,
};
use tether_s3_server::Server;
use tether_tests::{
    Bucket, Owner, Setup, Site, eventually, eventually_within, example, kill, python,
};
use tether_types::Reason;
use tonic::Code;

/// Ten minutes of work, a second each step, at a twenty-fifth of the time.
const STEPS: u32 = 600;
const STEP_SECONDS: f64 = 0.04;
const SAVE_EVERY: u32 = 10;

/// With saving, starts and whatever else runs on this machine.
const LONG: Duration = Duration::from_secs(180);

const POOL: &str = "adders";

/// Two workers on the second node alone, whose agent can be killed by itself.
async fn site() -> (Site, std::path::PathBuf) {
    let site = Site::with_second_alone().await;
    let file = pool_file(&site, 2);
    (site, file)
}

fn pool_file(site: &Site, size: u32) -> std::path::PathBuf {
    let text = format!(
        "[template.adders]\ncommand = {python:?}\nargs = [\"worker.py\"]\ncwd = {cwd:?}\nenv = {{ PYTHONPATH = {sdk:?} }}\n\n[pool.{POOL}]\ntemplate = \"adders\"\nmode = \"independent\"\nsize = {size}\n[pool.{POOL}.policy]\nheartbeat_timeout = \"60s\"\n",
        python = python().display().to_string(),
        cwd = example("jobs").display().to_string(),
        sdk = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/python"),
    );
    let file = site.cluster.dir().join("adders.toml");
    std::fs::write(&file, text).unwrap();
    file
}

async fn start(site: &Site, key: &str, seconds: f64) -> Job {
    let spec =
        format!("{{\"steps\": {STEPS}, \"seconds\": {seconds}, \"save_every\": {SAVE_EVERY}}}");
    let ask = StartJobRequest {
        pool: POOL.to_owned(),
        key: key.to_owned(),
        spec: spec.into_bytes(),
        ..StartJobRequest::default()
    };
    let answer = site.cluster.client().jobs().start_job(ask).await.unwrap();
    answer.into_inner().job.unwrap()
}

async fn look(site: &Site, key: &str) -> Job {
    let (job, _) = eventually("somebody tells of the job", async || {
        let ask = GetJobRequest {
            pool: POOL.to_owned(),
            key: key.to_owned(),
        };
        match site.cluster.client().jobs().get_job(ask).await {
            Ok(answer) => answer.into_inner().job,
            // On a busy machine nobody may answer in time.
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                None
            }
        }
    })
    .await;
    job
}

/// Waits until it is so of the job, which is not over before.
async fn until(site: &Site, key: &str, what: &str, is: impl Fn(&Job) -> bool) -> Job {
    let (job, _) = eventually_within(LONG, async || {
        let job = look(site, key).await;
        if is(&job) {
            return Some(job);
        }
        let goes_on = matches!(
            job.state(),
            JobState::Running | JobState::Waiting | JobState::Orphaned
        );
        assert!(goes_on, "{what}: {job:?}");
        None
    })
    .await
    .unwrap_or_else(|| panic!("not within {LONG:?}: {what}"));
    job
}

async fn pid_of(site: &Site, job: &Job) -> u32 {
    let workers = site.cluster.workers(POOL).await;
    let its = workers.iter().find(|worker| worker.worker == job.worker);
    its.unwrap().pid
}

fn saved(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let many = entries.map(|entry| match entry.path() {
        path if path.is_dir() => saved(&path),
        _ => 1,
    });
    many.sum()
}

#[tokio::test]
async fn ten_minutes_of_work_survive_three_owners_an_agent_and_a_worker_and_end_as_if_nothing_was()
{
    let (mut site, file) = site().await;
    let mut owner = Owner::with_pool(&site.cluster, "beam", &file).await;
    start(&site, "calm", 0.0).await;
    let calm = until(&site, "calm", "the undisturbed run is done", |job| {
        job.state() == JobState::Done
    })
    .await;

    let begun = start(&site, "long", STEP_SECONDS).await;
    let pid = pid_of(&site, &begun).await;
    for part in [0.05, 0.1, 0.15] {
        until(&site, "long", "it gets on", |job| job.progress >= part).await;
        owner.kill().await;
        owner = Owner::with_pool(&site.cluster, "beam", &file).await;
        let found = start(&site, "long", STEP_SECONDS).await;
        assert_eq!(
            (found.fence, found.state()),
            (begun.fence, JobState::Running),
            "an owner finds the job that the one before it started"
        );
    }
    site.kill_agent().await;
    site.start_agent();
    let at = look(&site, "long").await.progress;
    let job = until(&site, "long", "it gets on with the next agent", |job| {
        job.progress > at
    })
    .await;
    assert_eq!(
        (job.fence, job.attempt),
        (begun.fence, 1),
        "all of that was one attempt"
    );
    assert_eq!(pid_of(&site, &job).await, pid, "and one process");

    kill(pid, Signal::KILL);
    let next = until(&site, "long", "another worker goes on", |job| {
        job.attempt == 2 && job.progress > 0.0
    })
    .await;
    let saved_before = job.checkpoint.unwrap().seq;
    assert!(
        next.progress * f64::from(STEPS) > f64::from(u32::try_from(saved_before).unwrap()),
        "it goes on from checkpoint {saved_before} and not from the start: {next:?}"
    );
    assert_ne!(next.worker, begun.worker);
    // What the first attempt would still save.
    let late = PutCheckpointRequest {
        pool: POOL.to_owned(),
        key: "long".to_owned(),
        fence: begun.fence,
        seq: u64::from(STEPS) + 1,
        uri: "file:///late".to_owned(),
        ..PutCheckpointRequest::default()
    };
    let refused = site.cluster.client().jobs().put_checkpoint(late).await;
    let reason = tether_proto::reason_of(&refused.unwrap_err());
    assert_eq!(reason, Some(Reason::LeaseFenced));

    let attached = site
        .cluster
        .tether()
        .run(&["job", "attach", POOL, "long"])
        .await;
    assert_eq!(attached.code, Some(0), "{}", attached.err);
    assert_eq!(
        attached.out.trim_end().as_bytes(),
        calm.result,
        "it ends as if nothing had been"
    );
    let done = look(&site, "long").await;
    assert_eq!((done.attempt, done.failures), (2, 0));
    assert_eq!(done.result, calm.result);
    let (kept, _) = eventually("earlier checkpoints are removed", async || {
        let kept = saved(&site.cluster.dir().join("checkpoints"));
        (kept <= 6).then_some(kept)
    })
    .await;
    assert!(kept > 0);

    for key in ["calm", "long"] {
        let ran = site.cluster.tether().run(&["job", "ack", POOL, key]).await;
        assert_eq!(ran.code, Some(0), "{}", ran.err);
    }
    eventually("nothing is kept of jobs that are forgotten", async || {
        (saved(&site.cluster.dir().join("checkpoints")) == 0).then_some(())
    })
    .await;
    drop(owner);
}

#[tokio::test]
async fn a_job_whose_worker_is_killed_goes_on_on_another_node_from_its_checkpoint_in_a_bucket() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let site = Site::of(Setup::default().bucket(Bucket::of(&server))).await;
    site.close("node-1").await;
    let owner = Owner::with_pool(&site.cluster, "beam", &pool_file(&site, 1)).await;
    let begun = start(&site, "long", STEP_SECONDS / 4.0).await;
    until(&site, "long", "it gets on", |job| job.progress >= 0.1).await;
    let first = site.on_second(POOL, "it is there", |_| true).await;
    assert_eq!(first.worker, begun.worker);

    site.open("node-1").await;
    site.close("node-2").await;
    kill(first.pid, Signal::KILL);
    let next = until(&site, "long", "another worker goes on", |job| {
        job.attempt == 2 && job.progress > 0.0
    })
    .await;
    let saved = next.checkpoint.clone().unwrap();
    assert!(
        saved.uri.starts_with("s3://models/tether/adders/"),
        "{saved:?}"
    );
    assert!(next.progress > 0.1, "not from the start: {next:?}");
    let workers = site.cluster.workers(POOL).await;
    let its = workers.iter().find(|worker| worker.worker == next.worker);
    assert_eq!(its.unwrap().node, "node-1", "{workers:?}");

    let done = until(&site, "long", "it is done", |job| {
        job.state() == JobState::Done
    })
    .await;
    let total: u64 = (0..u64::from(STEPS)).map(|step| step * step).sum();
    assert_eq!(done.result, format!("{{\"total\": {total}}}").into_bytes());
    eventually("the last checkpoints are kept", async || {
        (server.seen().await.objects.len() == 3).then_some(())
    })
    .await;
    let ran = site
        .cluster
        .tether()
        .run(&["job", "ack", POOL, "long"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    eventually("nothing is kept of a job that is forgotten", async || {
        server.seen().await.objects.is_empty().then_some(())
    })
    .await;
    drop(owner);
}

#[tokio::test]
async fn a_job_that_is_cancelled_stops_at_once_and_its_worker_stays() {
    let (site, file) = site().await;
    let owner = Owner::with_pool(&site.cluster, "beam", &file).await;
    let job = start(&site, "long", 1000.0).await;
    let pid = pid_of(&site, &job).await;

    let cancel = CancelJobRequest {
        pool: POOL.to_owned(),
        key: "long".to_owned(),
        ..CancelJobRequest::default()
    };
    site.cluster
        .client()
        .jobs()
        .cancel_job(cancel)
        .await
        .unwrap();
    let (job, _) = eventually("its worker has stopped it", async || {
        let job = look(&site, "long").await;
        (job.state() == JobState::Cancelled).then_some(job)
    })
    .await;

    assert_eq!(job.cancelled_by, "an operator");
    let workers = site.cluster.workers(POOL).await;
    assert!(
        workers.iter().any(|worker| worker.pid == pid),
        "it lives on"
    );
    let ran = site
        .cluster
        .tether()
        .run(&["job", "attach", POOL, "long"])
        .await;
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("cancelled"), "{}", ran.err);
    drop(owner);
}
