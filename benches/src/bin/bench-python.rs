//! What the way through the gateway costs: calls of a real Python worker, directly and through
//! `tether up`, in turns within one run.

use std::{
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use tether_benches::{Results, Row, cpu_time, resident_bytes};
use tether_client::Client;
use tether_tests::{
    Cluster, Owner,
    digits::{PredictRequest, digits_service_client::DigitsServiceClient},
    digits_client, held_out,
};

/// Calls in one turn, one after the other.
const CALLS: usize = 500;

/// Turns of each kind.
const TURNS: usize = 6;

/// Measures calls through the gateway beside direct ones.
#[derive(Debug, Parser)]
struct Args {
    /// Writes the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 1, "worker.py", "", "");
    let _owner = Owner::with_pool(&cluster, "bench", &file).await;
    let worker = cluster
        .workers("digits")
        .await
        .into_iter()
        .next()
        .context("there is no worker")?;
    let pixels = held_out(1)
        .into_iter()
        .next()
        .context("the data set is empty")?
        .pixels;

    let mut through = digits_client(cluster.client().channel(), "digits");
    let mut direct = DigitsServiceClient::new(Client::connect(&worker.address.parse()?).channel());
    let (mut direct_times, mut through_times) = (Vec::new(), Vec::new());
    let mut cpu = Duration::ZERO;
    for _ in 0..TURNS {
        for _ in 0..CALLS {
            let start = Instant::now();
            direct
                .predict(PredictRequest {
                    pixels: pixels.clone(),
                })
                .await?;
            direct_times.push(start.elapsed());
        }
        let before = cpu_time(cluster.pid())?;
        for _ in 0..CALLS {
            let start = Instant::now();
            through
                .predict(PredictRequest {
                    pixels: pixels.clone(),
                })
                .await?;
            through_times.push(start.elapsed());
        }
        cpu += cpu_time(cluster.pid())?.saturating_sub(before);
    }
    let total = u32::try_from(CALLS * TURNS)?;
    let at = |times: &mut Vec<Duration>, share: f64| {
        times.sort();
        let index = (times.len() as f64 * share) as usize;
        times[index.min(times.len() - 1)].as_secs_f64() * 1e6
    };
    let rows = vec![
        Row::new(
            "unary call, one after the other, p50",
            "us",
            at(&mut through_times, 0.5),
            ("direct", at(&mut direct_times, 0.5)),
            None,
        ),
        Row::new(
            "unary call, one after the other, p99",
            "us",
            at(&mut through_times, 0.99),
            ("direct", at(&mut direct_times, 0.99)),
            None,
        ),
        Row::new(
            "processor time of all of `tether up` per call, beside the worker's whole call",
            "us",
            cpu.as_secs_f64() * 1e6 / f64::from(total),
            ("direct p50", at(&mut direct_times, 0.5)),
            None,
        ),
        Row::new(
            "resident memory of all of `tether up`, beside one Python worker's",
            "MB",
            resident_bytes(cluster.pid())? as f64 / 1e6,
            ("worker", resident_bytes(worker.pid)? as f64 / 1e6),
            None,
        ),
    ];
    let mut out = std::io::stdout();
    for row in &rows {
        writeln!(out, "{}", row.line())?;
    }
    if let Some(path) = args.json {
        Results::new(rows).write(&path)?;
        writeln!(out, "written to {}", path.display())?;
    }
    Ok(())
}
