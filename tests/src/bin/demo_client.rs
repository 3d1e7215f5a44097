//! A client of Tether as a BEAM application would be one: it opens a session, applies a pool, has a
//! worker train, and says in lines of JSON what it sees. Made to be killed.

use std::{io::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::Parser;
use serde_json::{Value, json};
use tether_client::{Client, Problem, Session, SessionOptions};
use tether_kit::telemetry::{self, Settings as Telemetry};
use tether_proto::{
    common::WorkerRef,
    job::StartJobRequest,
    pool::{ApplyPoolRequest, GetPoolRequest},
};
use tether_settings::PoolFile;
use tether_tests::{digits::TrainRequest, eventually_within, worker_client};
use tokio::{signal::unix::SignalKind, time::Instant};

/// Opens a session, applies a pool, trains; says what it sees in lines of JSON.
#[derive(Debug, Parser)]
struct Args {
    /// The gateway.
    #[arg(long)]
    gateway: String,
    /// The owner's name.
    #[arg(long)]
    owner: String,
    /// Lease of the session in milliseconds.
    #[arg(long)]
    ttl_ms: Option<u64>,
    /// Pools to apply.
    #[arg(long)]
    file: Option<PathBuf>,
    /// The pool to train in.
    #[arg(long, default_value = "digits")]
    pool: String,
    /// A training to start, or to take up.
    #[arg(long)]
    train: Option<String>,
    /// Its epochs.
    #[arg(long, default_value_t = 100)]
    epochs: u32,
    /// Its pause after each epoch.
    #[arg(long, default_value_t = 50)]
    throttle_ms: u32,
    /// How long workers may take to be ready.
    #[arg(long, default_value_t = 60)]
    ready_secs: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let settings = Telemetry {
        filter: "warn".to_owned(),
        ..Telemetry::from_env()
    };
    // For its history, where one is wanted.
    let telemetry = telemetry::start("owner", &settings)?;
    let done = run(args).await;
    telemetry.finish().await;
    done
}

async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let client = Client::connect(&args.gateway.parse()?);
    let options = SessionOptions {
        ttl: args.ttl_ms.map(Duration::from_millis),
        ..SessionOptions::default()
    };
    let session = client.open_session(args.owner.parse()?, options).await?;
    say(json!({ "event": "session", "epoch": session.epoch().0, "pools": session.pools() }))?;

    let work = async {
        if args.file.is_some() {
            apply(&client, &session, &args).await?;
        }
        if let Some(job) = &args.train {
            train(&client, job, &args).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        worked = work => worked?,
        lost = session.lost() => return gone(&lost),
        _ = terminate.recv() => return Ok(session.close().await?),
    }
    tokio::select! {
        lost = session.lost() => gone(&lost),
        _ = terminate.recv() => Ok(session.close().await?),
    }
}

fn gone(lost: &tether_client::Lost) -> anyhow::Result<()> {
    say(json!({ "event": "lost", "why": lost.to_string() }))?;
    bail!("the session is lost: {lost}")
}

/// Applies the pools, and says when every worker is ready.
async fn apply(client: &Client, session: &Session, args: &Args) -> anyhow::Result<()> {
    let path = args.file.as_deref().context("no file")?;
    let (file, base) = PoolFile::read(path).map_err(|report| anyhow::anyhow!("{report:?}"))?;
    let start = Instant::now();
    for spec in file.specs(&base, None)? {
        let (name, size) = (spec.name.clone(), spec.size);
        let request = ApplyPoolRequest {
            pool: Some(spec),
            owner: session.owner().to_string(),
            epoch: session.epoch().0,
        };
        client
            .pools()
            .apply_pool(request)
            .await
            .map_err(Problem::from)?;
        let ready = eventually_within(Duration::from_secs(args.ready_secs), async || {
            let request = GetPoolRequest { name: name.clone() };
            let pool = client
                .pools()
                .get_pool(request)
                .await
                .ok()?
                .into_inner()
                .pool?;
            (pool.ready >= size).then_some(())
        });
        ready
            .await
            .with_context(|| format!("the workers of `{name}` are not ready"))?;
        say(
            json!({ "event": "ready", "pool": name, "workers": size, "ms": start.elapsed().as_secs_f64() * 1000.0 }),
        )?;
    }
    Ok(())
}

/// Starts the training, or takes up the stream of the one there is, and says how it goes on.
async fn train(client: &Client, job: &str, args: &Args) -> anyhow::Result<()> {
    // The same key leads to the same worker, whoever asks, for as long as that worker lives.
    let start = StartJobRequest {
        pool: args.pool.clone(),
        key: job.to_owned(),
        restarts: Some(0),
        ..StartJobRequest::default()
    };
    let started = client.jobs().start_job(start).await;
    let started = started.map_err(Problem::from)?.into_inner();
    let worker = started.job.and_then(|job| job.worker);
    let worker = WorkerRef::required(worker.as_ref())?;
    say(json!({ "event": "job", "worker": worker.to_string(), "found": started.found }))?;
    let mut digits = worker_client(client.channel(), &worker);
    let request = TrainRequest {
        job: job.to_owned(),
        epochs: args.epochs,
        throttle_ms: args.throttle_ms,
        ..TrainRequest::default()
    };
    let mut progress = digits
        .train(request)
        .await
        .map_err(Problem::from)?
        .into_inner();
    while let Some(step) = progress.message().await.map_err(Problem::from)? {
        say(json!({
            "event": if step.done { "trained" } else { "progress" },
            "epoch": step.epoch, "total": step.total, "accuracy": step.accuracy, "pid": step.pid,
        }))?;
    }
    Ok(())
}

fn say(value: Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}
