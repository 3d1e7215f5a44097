//! A job and the Python module a worker does it with, against a real cluster.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use rustix::process::Signal;
use tether_proto::{
    common::WorkerRef,
    job::{AcknowledgeJobRequest, GetJobRequest, Job, JobState, StartJobRequest},
};
use tether_tests::{Cluster, eventually, kill, python};
use tether_types::WorkerId;
use tokio::process::Command;

/// Does a job as far as its arguments say, and tells what became of it.
const SCRIPT: &str = "
import sys
from tether import job
try:
    work = job.attach('train', patience=20)
    print('attached', work.fence, work.attempt, work.saved.seq if work.saved else None)
    for word in sys.argv[1:]:
        if word.startswith('save='):
            work.checkpoint(word[5:])
        elif word == 'wait':
            print('waiting', flush=True)
            sys.stdin.readline()
        elif word == 'done':
            work.done(b'42')
    print('over')
except job.Fenced as fenced:
    print('fenced', fenced.holder, fenced.fence)
";

fn worker(cluster: &Cluster, worker: &WorkerId, does: &[&str]) -> Command {
    let mut command = Command::new(python());
    command
        .args(["-c", SCRIPT])
        .args(does)
        .env(
            "PYTHONPATH",
            concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/python"),
        )
        .env("TETHER_GATEWAY", cluster.gateway())
        .env("TETHER_WORKER", worker.to_string())
        .kill_on_drop(true);
    command
}

async fn said(mut command: Command) -> String {
    let output = command.output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    told.trim_end().replace('\n', ", ")
}

async fn start(cluster: &Cluster) -> (Job, WorkerId) {
    let ask = || StartJobRequest {
        pool: "p".to_owned(),
        key: "train".to_owned(),
        restarts: Some(0),
        ..StartJobRequest::default()
    };
    let (job, _) = eventually("a worker takes the job", async || {
        let answer = cluster.client().jobs().start_job(ask()).await.ok()?;
        answer.into_inner().job
    })
    .await;
    let worker = WorkerRef::required(job.worker.as_ref()).unwrap();
    (job, worker)
}

async fn look(cluster: &Cluster) -> Job {
    let ask = GetJobRequest {
        pool: "p".to_owned(),
        key: "train".to_owned(),
    };
    let answer = cluster.client().jobs().get_job(ask).await.unwrap();
    answer.into_inner().job.unwrap()
}

#[tokio::test]
async fn the_next_attempt_goes_on_from_the_checkpoint_and_the_last_one_is_told_that_it_is_fenced() {
    let cluster = Cluster::start().await;
    let text = "[template.t]\ncommand = \"sleep\"\nargs = [\"100000\"]\nreadiness = { kind = \"started\" }\n[pool.p]\ntemplate = \"t\"\nmode = \"distributed\"\n";
    let file = cluster.dir().join("p.toml");
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let ran = cluster
        .tether()
        .run(&["pool", "apply", "--file", &file, "--owner", "beam"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let (first, doing) = start(&cluster).await;
    let saved = said(worker(
        &cluster,
        &doing,
        &["save=file:///a", "save=file:///b"],
    ))
    .await;
    assert_eq!(saved, format!("attached {} 1 None, over", first.fence));
    // One that waits with its job attached, as a paused one does, while its worker dies and another follows.
    let mut zombie = worker(&cluster, &doing, &["wait", "done"]);
    zombie
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut zombie = zombie.spawn().unwrap();
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(zombie.stdout.take().unwrap()));
    lines.next_line().await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("waiting"));

    let pid = cluster.workers("p").await[0].pid;
    kill(pid, Signal::KILL);
    eventually("the job is lost", async || {
        (look(&cluster).await.state() == JobState::Lost).then_some(())
    })
    .await;
    let (second, next) = start(&cluster).await;

    drop(zombie.stdin.take());
    let fenced = lines.next_line().await.unwrap();
    assert_eq!(fenced, Some(format!("fenced {next} {}", second.fence)));
    let done = said(worker(&cluster, &next, &["done"])).await;
    assert_eq!(done, format!("attached {} 2 2, over", second.fence));
    let job = look(&cluster).await;
    assert_eq!(
        (job.state(), job.result.as_slice()),
        (JobState::Done, &b"42"[..])
    );
    let acknowledge = AcknowledgeJobRequest {
        pool: "p".to_owned(),
        key: "train".to_owned(),
        ..AcknowledgeJobRequest::default()
    };
    cluster
        .client()
        .jobs()
        .acknowledge_job(acknowledge)
        .await
        .unwrap();
}
