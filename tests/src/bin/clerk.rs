//! A worker that serves one call at a time and writes down each. What it has written survives its SIGKILL.

use std::{env, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use tether_tests::clerk::{
    life,
    server::{Manner, serve},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Serves until SIGTERM, and then what has come by then.
#[derive(Debug, Parser)]
struct Args {
    /// Where it listens.
    #[arg(long)]
    listen: String,
    /// The file in which it writes down each call.
    #[arg(long)]
    book: PathBuf,
    /// How long a call takes, in microseconds.
    #[arg(long, default_value_t = 2_000)]
    work_us: u64,
    /// Its place among others.
    #[arg(long)]
    slot: u32,
    /// The place whose worker is another than the rest.
    #[arg(long)]
    odd_slot: Option<u32>,
    /// How many times as long each call takes there.
    #[arg(long, default_value_t = 1)]
    slowness: u32,
    /// Memory that is written to there, in MiB.
    #[arg(long, default_value_t = 0)]
    resident_mib: usize,
    /// Has the agent know early of its death, where an agent started it.
    #[arg(long)]
    hold: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.hold
        && let Some(notify) = env::var_os("NOTIFY_SOCKET")
    {
        life::hold(notify.as_ref()).context("the agent is not told of its death early")?;
    }
    let odd = args.odd_slot == Some(args.slot);
    let resident = odd.then(|| vec![1_u8; args.resident_mib << 20]);
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let told = stop.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        told.cancel();
    });
    let manner = Manner {
        work: Duration::from_micros(args.work_us),
        slowness: if odd { args.slowness } else { 1 },
    };
    let served = serve(&args.listen, &args.book, manner, stop).await;
    drop(resident);
    served
}
