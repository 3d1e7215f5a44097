//! `tether job attach`: a job as it goes on, over restarts of its worker and of whoever tells of it.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use tether_client::{Client, Problem};
use tether_proto::{
    common::WorkerRef,
    job::{Job, JobState, WatchJobsRequest},
    worker::ReadLogsRequest,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

use super::JobRow;
use crate::{cli::job::Which, output::Output};

/// For how long nobody may tell of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The arbiter says how the job is every 10 s: where it does not, it or the way to it is gone.
const SILENCE: Duration = Duration::from_secs(30);

/// Between two attempts to hear of it.
const PAUSE: Duration = Duration::from_millis(250);

/// What was written before, for a start.
const TAIL: u64 = 4096;

/// What a worker has written before its job's end was told is on its way for no longer.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The output of the worker that does the job now.
#[derive(Debug, Default)]
struct Log {
    of: Option<WorkerRef>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

pub(crate) async fn attach(client: &Client, which: &Which, out: &Output) -> anyhow::Result<()> {
    let mut log = Log::default();
    let mut told = String::new();
    let mut heard = Instant::now();
    loop {
        let ended = follow(client, which, out, (&mut log, &mut told)).await;
        let problem = match ended {
            Ok(job) => {
                if let Some(task) = &mut log.task {
                    let _ = timeout(LAST_WORDS, task).await;
                }
                return end(&job, out);
            }
            Err(Stop::Other(error)) => return Err(error),
            Err(Stop::Problem(problem, began)) => {
                if began {
                    heard = Instant::now();
                }
                problem
            }
        };
        // Who is asked may be away for a moment, or lead no more.
        let passes = matches!(
            problem.code,
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
        ) || problem.reason == Some(tether_types::Reason::NotLeader);
        if !passes || heard.elapsed() > PATIENCE {
            return Err(problem.into());
        }
        sleep(PAUSE).await;
    }
}

/// Why nothing more is told.
enum Stop {
    /// The call ended, and whether anything was told before.
    Problem(Problem, bool),
    Other(anyhow::Error),
}

async fn follow(
    client: &Client,
    which: &Which,
    out: &Output,
    (log, told): (&mut Log, &mut String),
) -> Result<Job, Stop> {
    let ask = WatchJobsRequest {
        pool: which.pool.clone(),
        key: which.key.clone(),
        ..WatchJobsRequest::default()
    };
    let mut began = false;
    let problem = |status, began| Stop::Problem(Problem::from(status), began);
    let jobs = client.jobs().watch_jobs(ask).await;
    let mut jobs = jobs.map_err(|status| problem(status, began))?.into_inner();
    loop {
        let answer = timeout(SILENCE, jobs.message())
            .await
            .unwrap_or_else(|_| Err(tonic::Status::unavailable("nothing is heard of it")))
            .map_err(|status| problem(status, began))?;
        let Some(answer) = answer else {
            return Err(problem(
                tonic::Status::unavailable("the gateway ended it"),
                began,
            ));
        };
        began = true;
        let Some(job) = answer.jobs.into_iter().next() else {
            let gone = anyhow::anyhow!(
                "job `{}` is forgotten: somebody has acknowledged it",
                which.key
            );
            return Err(Stop::Other(gone));
        };
        if job.state() == JobState::Running && !out.is_json() {
            log.turn_to(client, job.worker.clone());
        }
        say(&job, told, out).map_err(Stop::Other)?;
        if !matches!(
            job.state(),
            JobState::Running | JobState::Orphaned | JobState::Waiting
        ) {
            return Ok(job);
        }
    }
}

impl Log {
    fn turn_to(&mut self, client: &Client, worker: Option<WorkerRef>) {
        // Of the same one it is read again where that ended, as with a gateway that was restarted.
        let is_read = self.task.as_ref().is_some_and(|task| !task.is_finished());
        if self.of == worker && is_read {
            return;
        }
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.of.clone_from(&worker);
        let client = client.clone();
        self.task = Some(tokio::spawn(async move {
            let ask = ReadLogsRequest {
                worker,
                follow: true,
                tail_bytes: TAIL,
            };
            let Ok(pieces) = client.workers().read_logs(ask).await else {
                return;
            };
            let mut pieces = pieces.into_inner();
            while let Ok(Some(piece)) = pieces.message().await {
                // Nobody to tell is no reason to end.
                let _ = io::stderr().write_all(&piece.data);
            }
        }));
    }
}

/// Tells what changed.
fn say(job: &Job, told: &mut String, out: &Output) -> anyhow::Result<()> {
    let row = JobRow::new(job);
    if out.is_json() {
        let text = serde_json::to_string(&row)?;
        if *told != text {
            out.item(&row)?;
            *told = text;
        }
        return Ok(());
    }
    let text = format!(
        "{} {}: {:.1} %, attempt {}, checkpoint {} {}",
        row.job,
        row.state,
        row.progress * 100.0,
        row.attempt,
        row.saved(),
        row.message
    );
    if *told != text {
        out.note(text.trim_end());
        *told = text;
    }
    Ok(())
}

fn end(job: &Job, out: &Output) -> anyhow::Result<()> {
    let row = JobRow::new(job);
    if job.state() != JobState::Done {
        let why = match row.message.as_str() {
            "" => row.last_death.unwrap_or("nobody said why"),
            message => message,
        };
        anyhow::bail!(
            "job `{}` of pool `{}` is {}: {why}",
            row.job,
            row.pool,
            row.state
        );
    }
    if out.is_json() {
        return Ok(());
    }
    io::stdout().write_all(&job.result)?;
    match job.result.ends_with(b"\n") || job.result.is_empty() {
        true => Ok(io::stdout().flush()?),
        false => out.line(""),
    }
}
