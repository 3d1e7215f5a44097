//! Answers for people and for programs.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};

use serde::Serialize;
use tether_proto::{
    common::{Death, Measures, WorkerPhase, WorkerRef},
    pool::Pool,
    worker::{Event, EventKind, Worker},
};
use tether_types::Death as KnownDeath;

use crate::cli::Format;

/// Where answers go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
}

/// One row of an answer.
pub(crate) trait Row: Serialize {
    /// Names of the columns.
    const HEAD: &'static [&'static str];

    /// The cells.
    fn cells(&self) -> Vec<String>;
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints a whole list.
    pub(crate) fn list<R: Row>(self, rows: &[R]) -> anyhow::Result<()> {
        match self.format {
            Format::Json => self.line(&serde_json::to_string_pretty(rows)?),
            Format::Table => self.line(&table(
                R::HEAD,
                &rows.iter().map(Row::cells).collect::<Vec<_>>(),
            )),
        }
    }

    /// Prints one thing of many that keep coming.
    pub(crate) fn item<R: Row>(self, row: &R) -> anyhow::Result<()> {
        match self.format {
            Format::Json => self.line(&serde_json::to_string(row)?),
            Format::Table => self.line(&row.cells().join("  ")),
        }
    }

    /// Prints a line of text. A reader that has gone (`| head`) is no failure.
    pub(crate) fn line(self, text: &str) -> anyhow::Result<()> {
        match writeln!(io::stdout(), "{text}") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            written => Ok(written?),
        }
    }

    /// Tells whoever watches something that is no part of the answer.
    pub(crate) fn note(self, text: &str) {
        // Nobody to tell is no reason to end.
        let _ = writeln!(io::stderr(), "tether: {text}");
    }

    pub(crate) fn version(self) -> anyhow::Result<()> {
        let version = env!("CARGO_PKG_VERSION");
        match self.format {
            Format::Json => self.line(&serde_json::json!({ "version": version }).to_string()),
            Format::Table => self.line(&format!("tether {version}")),
        }
    }
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().copied())];
    lines.extend(
        rows.iter()
            .map(|row| line(&mut row.iter().map(String::as_str))),
    );
    lines.join("\n")
}

/// A death, as programs read it.
#[derive(Debug, Serialize)]
pub(crate) struct DeathView {
    cause: &'static str,
    exit_code: Option<i32>,
    signal: Option<i32>,
    detail: String,
    stderr_tail: String,
    epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    measures: Option<MeasuresView>,
}

/// What was measured of a life, as programs read it.
#[derive(Debug, Serialize)]
struct MeasuresView {
    core_dumped: bool,
    max_rss_kib: u64,
    peak_memory_bytes: u64,
    cpu_ms: u64,
    reaped: u32,
    gone_unix_ms: u64,
    proof: String,
}

impl MeasuresView {
    fn new(measures: &Measures) -> Self {
        Self {
            core_dumped: measures.core_dumped,
            max_rss_kib: measures.max_rss_kib,
            peak_memory_bytes: measures.peak_memory_bytes,
            cpu_ms: measures.cpu_ms,
            reaped: measures.reaped,
            gone_unix_ms: measures.gone_unix_ms,
            proof: measures.proof.clone(),
        }
    }
}

/// The one word for why a worker died.
pub(crate) fn cause(death: &Death) -> &'static str {
    KnownDeath::from(death).cause.word()
}

impl DeathView {
    fn new(death: &Death) -> Self {
        Self {
            cause: cause(death),
            exit_code: death.exit_code,
            signal: death.signal,
            detail: death.detail.clone(),
            stderr_tail: death.stderr_tail.clone(),
            epoch: death.epoch,
            measures: death.measures.as_ref().map(MeasuresView::new),
        }
    }
}

pub(crate) fn worker_name(worker: Option<&WorkerRef>) -> String {
    match worker {
        Some(worker) if worker.incarnation == 0 => format!("{}/{}", worker.pool, worker.slot),
        Some(worker) => format!("{}/{}.{}", worker.pool, worker.slot, worker.incarnation),
        None => String::new(),
    }
}

/// One worker.
#[derive(Debug, Serialize)]
pub(crate) struct WorkerRow {
    worker: String,
    phase: &'static str,
    pid: u32,
    node: String,
    address: String,
    uptime_ms: u64,
    restarts: u32,
    last_death: Option<DeathView>,
    status: String,
    resources: BTreeMap<String, String>,
}

impl WorkerRow {
    pub(crate) fn new(worker: &Worker) -> Self {
        Self {
            worker: worker_name(worker.worker.as_ref()),
            phase: match worker.phase() {
                WorkerPhase::Unspecified => "unknown",
                WorkerPhase::Waiting => "waiting",
                WorkerPhase::Starting => "starting",
                WorkerPhase::Ready => "ready",
                WorkerPhase::Stopping => "stopping",
                WorkerPhase::Dead => "dead",
                WorkerPhase::CrashLoop => "crash-loop",
            },
            pid: worker.pid,
            node: worker.node.clone(),
            address: worker.address.clone(),
            uptime_ms: worker.uptime_ms,
            restarts: worker.restarts,
            last_death: worker.last_death.as_ref().map(DeathView::new),
            status: worker.status.clone(),
            resources: worker.resources.clone().into_iter().collect(),
        }
    }
}

impl Row for WorkerRow {
    const HEAD: &'static [&'static str] = &[
        "WORKER",
        "PHASE",
        "PID",
        "NODE",
        "UPTIME",
        "RESTARTS",
        "LAST DEATH",
        "STATUS",
    ];

    fn cells(&self) -> Vec<String> {
        let seconds = self.uptime_ms / 1000;
        let dash = |text: String| {
            if text.is_empty() || text == "0" {
                "-".to_owned()
            } else {
                text
            }
        };
        vec![
            self.worker.clone(),
            self.phase.to_owned(),
            dash(self.pid.to_string()),
            dash(self.node.clone()),
            format!(
                "{}:{:02}:{:02}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            ),
            self.restarts.to_string(),
            dash(
                self.last_death
                    .as_ref()
                    .map(|death| death.cause.to_owned())
                    .unwrap_or_default(),
            ),
            self.status.clone(),
        ]
    }
}

/// One pool.
#[derive(Debug, Serialize)]
pub(crate) struct PoolRow {
    pool: String,
    mode: String,
    mode_why: String,
    owner: String,
    size: u32,
    ready: u32,
    live: u32,
    draining: bool,
    stale: u32,
    waits_for: String,
    rollout_waits_for: String,
}

impl PoolRow {
    pub(crate) fn new(pool: &Pool) -> Self {
        let spec = pool.spec.clone().unwrap_or_default();
        Self {
            pool: spec.name,
            mode: spec.mode,
            mode_why: pool.mode_why.clone(),
            owner: pool.owner.clone(),
            size: spec.size,
            ready: pool.ready,
            live: pool.live,
            draining: pool.draining,
            stale: pool.stale,
            waits_for: pool.waits_for.clone(),
            rollout_waits_for: pool.rollout_waits_for.clone(),
        }
    }
}

impl Row for PoolRow {
    const HEAD: &'static [&'static str] = &[
        "POOL",
        "MODE",
        "OWNER",
        "READY",
        "LIVE",
        "STATE",
        "WAITS FOR",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.pool.clone(),
            self.mode.clone(),
            self.owner.clone(),
            format!("{}/{}", self.ready, self.size),
            self.live.to_string(),
            match (self.draining, self.stale) {
                (true, _) => "draining".to_owned(),
                (false, 0) => "serving".to_owned(),
                (false, stale) => format!("replacing {stale}"),
            },
            match self.waits_for.as_str() {
                "" => self.rollout_waits_for.clone(),
                why => why.to_owned(),
            },
        ]
    }
}

/// One event.
#[derive(Debug, Serialize)]
pub(crate) struct EventRow {
    revision: u64,
    unix_ms: u64,
    kind: String,
    worker: String,
    owner: String,
    node: String,
    text: String,
    death: Option<DeathView>,
}

impl EventRow {
    pub(crate) fn new(event: &Event) -> Self {
        let kind = EventKind::try_from(event.kind).unwrap_or_default();
        Self {
            revision: event.revision,
            unix_ms: event.unix_ms,
            kind: kind
                .as_str_name()
                .trim_start_matches("EVENT_KIND_")
                .to_owned(),
            worker: worker_name(event.worker.as_ref()),
            owner: event.owner.clone(),
            node: event.node.clone(),
            text: event.text.clone(),
            death: event.death.as_ref().map(DeathView::new),
        }
    }
}

impl Row for EventRow {
    const HEAD: &'static [&'static str] = &["TIME", "EVENT", "ABOUT", "WHAT"];

    fn cells(&self) -> Vec<String> {
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.unix_ms);
        let about = [&self.worker, &self.owner, &self.node]
            .into_iter()
            .find(|name| !name.is_empty());
        vec![
            humantime::format_rfc3339_millis(at).to_string(),
            format!("{:<17}", self.kind),
            about.cloned().unwrap_or_default(),
            self.text.clone(),
        ]
    }
}
