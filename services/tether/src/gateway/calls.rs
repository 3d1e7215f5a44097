//! `tether gateway explain` and `tether gateway tail`: what becomes of calls.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use serde::Serialize;
use tether_client::Problem;
use tether_proto::gateway::{
    CallFate, CallRoute, Candidate, ExplainRequest, ExplainResponse, TailRequest, TailResponse,
};
use tonic::Code;

use super::{Control, millis, routes};
use crate::{
    cli,
    output::{Output, Row, worker_name},
};

/// One worker, seen by a call.
#[derive(Debug, Serialize)]
struct CandidateRow {
    worker: String,
    chosen: bool,
    eligible: bool,
    state: &'static str,
    under_way: u32,
    capacity: u32,
    why: String,
}

impl CandidateRow {
    fn new(candidate: &Candidate) -> Self {
        let worker = candidate.worker.clone().unwrap_or_default();
        Self {
            worker: worker_name(worker.worker.as_ref()),
            chosen: candidate.chosen,
            eligible: candidate.eligible,
            state: routes::state(&worker),
            under_way: worker.under_way,
            capacity: worker.capacity,
            why: candidate.why.clone(),
        }
    }
}

impl Row for CandidateRow {
    const HEAD: &'static [&'static str] = &["WORKER", "STATE", "UNDER WAY", "CALL", "WHY NOT"];

    fn cells(&self) -> Vec<String> {
        let call = match (self.chosen, self.eligible) {
            (true, _) => "goes here",
            (false, true) => "could",
            (false, false) => "not",
        };
        vec![
            self.worker.clone(),
            self.state.to_owned(),
            routes::share(self.under_way, self.capacity),
            call.to_owned(),
            self.why.clone(),
        ]
    }
}

/// What would become of a call, for programs.
#[derive(Debug, Serialize)]
struct Explained {
    route: &'static str,
    fate: &'static str,
    text: String,
    reason: String,
    worker: String,
    queued: u32,
    candidates: Vec<CandidateRow>,
}

impl Explained {
    fn new(answer: &ExplainResponse) -> Self {
        Self {
            route: match answer.route() {
                CallRoute::Unspecified => "nowhere",
                CallRoute::Arbiter => "arbiter",
                CallRoute::Discovery => "discovery",
                CallRoute::Gateway => "gateway",
                CallRoute::Worker => "worker",
            },
            fate: match answer.fate() {
                CallFate::Unspecified => "unknown",
                CallFate::Sent => "sent",
                CallFate::Waits => "waits",
                CallFate::Refused => "refused",
            },
            text: answer.text.clone(),
            reason: answer.reason.clone(),
            worker: worker_name(answer.worker.as_ref()),
            queued: answer.queued,
            candidates: answer.candidates.iter().map(CandidateRow::new).collect(),
        }
    }
}

pub(super) async fn explain(
    mut control: Control,
    args: cli::gateway::Explain,
    out: &Output,
) -> anyhow::Result<()> {
    let mut metadata = HashMap::new();
    for pair in &args.metadata {
        let (key, value) = pair.split_once('=').with_context(|| {
            format!("`{pair}` is no metadata: write it like `tether-priority=high`")
        })?;
        metadata.insert(key.to_owned(), value.to_owned());
    }
    let named = [
        ("tether-pool", args.pool),
        (
            "tether-worker",
            args.worker.map(|worker| worker.to_string()),
        ),
        ("tether-affinity", args.affinity),
    ];
    for (key, value) in named {
        metadata.extend(value.map(|value| (key.to_owned(), value)));
    }
    let request = ExplainRequest {
        path: format!("/{}", args.method.trim_start_matches('/')),
        metadata,
    };
    let answer = control.explain(request).await.map_err(Problem::from)?;
    let explained = Explained::new(&answer.into_inner());
    if out.is_json() {
        return out.line(&serde_json::to_string_pretty(&explained)?);
    }
    let Explained {
        fate, text, reason, ..
    } = &explained;
    match reason.as_str() {
        "" => out.line(&format!("{fate}: {text}"))?,
        reason => out.line(&format!("{fate}, {reason}: {text}"))?,
    }
    match explained.candidates.is_empty() {
        true => Ok(()),
        false => out.list(&explained.candidates),
    }
}

/// A call that has ended.
#[derive(Debug, Serialize)]
struct CallRow {
    unix_ms: u64,
    duration_us: u64,
    waited_us: u64,
    method: String,
    pool: String,
    worker: String,
    attempts: u32,
    code: String,
    outcome: String,
    owner: String,
    lost: u64,
}

impl CallRow {
    fn new(call: TailResponse) -> Self {
        let code = i32::try_from(call.code).map_or(Code::Unknown, Code::from_i32);
        Self {
            unix_ms: call.unix_ms,
            duration_us: call.duration_us,
            waited_us: call.waited_us,
            method: call.path.trim_start_matches('/').to_owned(),
            worker: worker_name(call.worker.as_ref()),
            pool: call.pool,
            attempts: call.attempts,
            code: format!("{code:?}"),
            outcome: call.outcome,
            owner: call.owner,
            lost: call.lost,
        }
    }
}

impl Row for CallRow {
    const HEAD: &'static [&'static str] = &[
        "TIME", "TOOK", "WAITED", "CODE", "OUTCOME", "WORKER", "METHOD",
    ];

    fn cells(&self) -> Vec<String> {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(self.unix_ms);
        let span = |micros| format!("{:.1?}", Duration::from_micros(micros));
        let worker = match self.worker.as_str() {
            "" => &self.pool,
            worker => worker,
        };
        vec![
            humantime::format_rfc3339_millis(at).to_string(),
            format!("{:>8}", span(self.duration_us)),
            format!("{:>8}", span(self.waited_us)),
            format!("{:<17}", self.code),
            format!("{:<12}", self.outcome),
            format!("{worker:<16}"),
            self.method.clone(),
        ]
    }
}

pub(super) async fn tail(
    mut control: Control,
    args: cli::gateway::Tail,
    out: &Output,
) -> anyhow::Result<()> {
    let request = TailRequest {
        pool: args.pool.unwrap_or_default(),
        worker: args.worker.as_ref().map(Into::into),
        outcomes: args.outcomes,
        min_duration_ms: millis(args.min),
        failed: args.failed,
    };
    let calls = control.tail(request).await.map_err(Problem::from)?;
    let mut calls = calls.into_inner();
    while let Some(call) = calls.message().await.map_err(Problem::from)? {
        if call.lost > 0 {
            out.note(&format!(
                "{} calls are missing here: they came faster than they are read; ask for fewer with `--pool`, `--worker`, `--outcome`, `--min` or `--failed`",
                call.lost
            ));
        }
        out.item(&CallRow::new(call))?;
    }
    out.note("the gateway has ended");
    Ok(())
}
