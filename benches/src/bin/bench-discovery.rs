//! What it takes to tell a hundred gateways of ten thousand endpoints, beside etcd's own watch.

use std::{io::Write as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use tether_benches::{
    Results,
    discovery::{self, Plan},
    ground::Ground,
};
use tokio::signal::unix::{SignalKind, signal};

/// Measures discovery beside etcd.
#[derive(Debug, Parser)]
struct Args {
    /// Writes the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Ten watchers, a thousand endpoints and a short look.
    #[arg(long)]
    quick: bool,
    /// Discovery's program.
    #[arg(long)]
    discovery: PathBuf,
    /// etcd's program.
    #[arg(long)]
    etcd: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (watchers, endpoints, seconds) = match args.quick {
        true => (10, 1_000, 3),
        false => (100, 10_000, 20),
    };
    let plan = Plan {
        discovery: std::path::absolute(args.discovery)?,
        etcd: args.etcd,
        watchers,
        endpoints,
        span: Duration::from_secs(seconds),
    };
    let ground = Arc::new(Ground::new()?);
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let at = Arc::clone(&ground);
    let work = tokio::spawn(async move {
        let tell = |figure: &tether_benches::figure::Figure| {
            let _ = writeln!(std::io::stdout(), "{}", figure.line());
        };
        discovery::run(&at, &plan, tell).await
    });
    let ended = tokio::select! {
        ended = work => ended.context("the bench broke off").flatten(),
        _ = terminate.recv() => Err(anyhow::anyhow!("ended by SIGTERM")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("ended by SIGINT")),
    };
    // Here rather than when the last one lets go of it: the work may still be under way.
    ground.remove();
    let figures = ended?;
    if let Some(path) = args.json {
        Results::new(figures).write(&path)?;
        writeln!(std::io::stdout(), "written to {}", path.display())?;
    }
    Ok(())
}
