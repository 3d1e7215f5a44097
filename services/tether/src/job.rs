//! `tether job`.

mod attach;

use std::{fmt::Write as _, io::Read as _, path::Path};

use serde::Serialize;
use tether_client::{Client, Problem};
use tether_proto::{
    common::Death,
    job::{
        AcknowledgeJobRequest, CancelJobRequest, GetJobRequest, Job, JobState, ListJobsRequest,
        StartJobRequest,
    },
};

use crate::{
    cli::job::{Job as Args, Which},
    output::{Output, Row, cause, worker_name},
};

/// One job.
#[derive(Debug, Serialize)]
pub(crate) struct JobRow {
    job: String,
    pool: String,
    state: &'static str,
    progress: f64,
    message: String,
    worker: String,
    attempt: u32,
    fence: u64,
    checkpoint: Option<CheckpointView>,
    restarts: u32,
    failures: u32,
    last_death: Option<&'static str>,
    cancelled_by: String,
    spec: String,
    result: String,
}

#[derive(Debug, Serialize)]
struct CheckpointView {
    seq: u64,
    uri: String,
    bytes: u64,
    fence: u64,
}

impl JobRow {
    pub(crate) fn new(job: &Job) -> Self {
        let cancelling = !job.cancelled_by.is_empty();
        Self {
            job: job.key.clone(),
            pool: job.pool.clone(),
            state: match job.state() {
                JobState::Unspecified => "unknown",
                JobState::Running if cancelling => "cancelling",
                JobState::Running => "running",
                JobState::Done => "done",
                JobState::Lost => "lost",
                JobState::Orphaned => "orphaned",
                JobState::Waiting => "waiting",
                JobState::Failed => "failed",
                JobState::Cancelled => "cancelled",
            },
            progress: job.progress,
            message: job.message.clone(),
            worker: worker_name(job.worker.as_ref()),
            attempt: job.attempt,
            fence: job.fence,
            checkpoint: job.checkpoint.as_ref().map(|saved| CheckpointView {
                seq: saved.seq,
                uri: saved.uri.clone(),
                bytes: saved.bytes,
                fence: saved.fence,
            }),
            restarts: job.restarts,
            failures: job.failures,
            last_death: job.death.as_ref().map(|death: &Death| cause(death)),
            cancelled_by: job.cancelled_by.clone(),
            spec: String::from_utf8_lossy(&job.spec).into_owned(),
            result: String::from_utf8_lossy(&job.result).into_owned(),
        }
    }

    fn saved(&self) -> String {
        let saved = self.checkpoint.as_ref();
        saved.map_or_else(|| "-".to_owned(), |saved| saved.seq.to_string())
    }
}

impl Row for JobRow {
    const HEAD: &'static [&'static str] = &[
        "JOB",
        "POOL",
        "STATE",
        "PROGRESS",
        "ATTEMPT",
        "CHECKPOINT",
        "WORKER",
        "MESSAGE",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.job.clone(),
            self.pool.clone(),
            self.state.to_owned(),
            format!("{:.0} %", self.progress * 100.0),
            self.attempt.to_string(),
            self.saved(),
            self.worker.clone(),
            self.message.clone(),
        ]
    }
}

pub(crate) async fn job(client: &Client, args: Args, out: &Output) -> anyhow::Result<()> {
    match args {
        Args::Ls { pool } => {
            let ask = ListJobsRequest {
                pool: pool.unwrap_or_default(),
            };
            let jobs = client.jobs().list_jobs(ask).await.map_err(Problem::from)?;
            let rows: Vec<_> = jobs.into_inner().jobs.iter().map(JobRow::new).collect();
            out.list(&rows)
        }
        Args::Show(which) => show(&get(client, &which).await?, out),
        Args::Start {
            which,
            spec,
            restarts,
            attach,
        } => {
            let ask = StartJobRequest {
                pool: which.pool.clone(),
                key: which.key.clone(),
                spec: spec.as_deref().map(read).transpose()?.unwrap_or_default(),
                restarts,
                ..StartJobRequest::default()
            };
            let started = client.jobs().start_job(ask).await.map_err(Problem::from)?;
            match attach {
                true => attach::attach(client, &which, out).await,
                false => show(&started.into_inner().job.unwrap_or_default(), out),
            }
        }
        Args::Attach(which) => attach::attach(client, &which, out).await,
        Args::Cancel { which, grace } => {
            let ask = CancelJobRequest {
                pool: which.pool,
                key: which.key,
                grace_ms: Some(u64::try_from(grace.as_millis())?),
                ..CancelJobRequest::default()
            };
            let job = client.jobs().cancel_job(ask).await.map_err(Problem::from)?;
            show(&job.into_inner().job.unwrap_or_default(), out)
        }
        Args::Ack(Which { pool, key }) => {
            let ask = AcknowledgeJobRequest {
                pool,
                key,
                ..AcknowledgeJobRequest::default()
            };
            let gone = client.jobs().acknowledge_job(ask).await;
            gone.map_err(Problem::from)?;
            Ok(())
        }
    }
}

async fn get(client: &Client, Which { pool, key }: &Which) -> anyhow::Result<Job> {
    let ask = GetJobRequest {
        pool: pool.clone(),
        key: key.clone(),
    };
    let job = client.jobs().get_job(ask).await.map_err(Problem::from)?;
    Ok(job.into_inner().job.unwrap_or_default())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut spec = Vec::new();
        std::io::stdin().read_to_end(&mut spec)?;
        return Ok(spec);
    }
    std::fs::read(path)
        .map_err(|error| anyhow::anyhow!("cannot read `{}`: {error}", path.display()))
}

fn show(job: &Job, out: &Output) -> anyhow::Result<()> {
    let row = JobRow::new(job);
    if out.is_json() {
        return out.item(&row);
    }
    let saved = row.checkpoint.as_ref().map_or_else(
        || "-".to_owned(),
        |saved| format!("{} at {} ({} bytes)", saved.seq, saved.uri, saved.bytes),
    );
    let lines = [
        ("job", format!("{} of pool {}", row.job, row.pool)),
        ("state", row.state.to_owned()),
        ("progress", format!("{:.1} %", row.progress * 100.0)),
        ("message", row.message.clone()),
        ("worker", row.worker.clone()),
        ("attempt", format!("{}, fence {}", row.attempt, row.fence)),
        ("checkpoint", saved),
        (
            "restarts",
            format!(
                "{} of {} in a row without a checkpoint",
                row.failures, row.restarts
            ),
        ),
        ("last death", row.last_death.unwrap_or("-").to_owned()),
        ("cancelled by", row.cancelled_by.clone()),
        ("result", row.result.clone()),
    ];
    let mut text = String::new();
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(text, "{name:<13}{value}")?;
    }
    out.line(text.trim_end())
}
