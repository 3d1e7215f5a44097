//! What our agent costs and how surely its workers end, beside other supervisors of processes.

use std::{io::Write as _, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use clap::Parser;
use tether_benches::{
    Results,
    agent::{self, Part, Plan},
    ground::Ground,
};
use tokio::signal::unix::{SignalKind, signal};

/// Measures the agent beside its peers.
#[derive(Debug, Parser)]
struct Args {
    /// Writes the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fewer repetitions, for a look in under two minutes.
    #[arg(long)]
    quick: bool,
    /// Measures this part alone; can be given several times.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// The agent's program.
    #[arg(long)]
    agent: PathBuf,
    /// A Debian root with the peers' packages.
    #[arg(long)]
    peers: Option<PathBuf>,
    /// Why there is no such root.
    #[arg(long, default_value = "no root with their packages was given")]
    no_peers: String,
    /// A Python that has grpc and numpy.
    #[arg(long)]
    python: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let plan = Plan {
        parts: args.only,
        agent: std::path::absolute(args.agent)?,
        peers: args.peers.ok_or(args.no_peers),
        python: args
            .python
            .ok_or_else(|| "no Python with grpc and numpy was given".to_owned()),
        quick: args.quick,
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
        agent::run(&at, &plan, tell).await
    });
    let ended = tokio::select! {
        ended = work => ended.context("the bench broke off").flatten(),
        _ = terminate.recv() => Err(anyhow::anyhow!("ended by SIGTERM")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("ended by SIGINT")),
    };
    let log = std::fs::read_to_string(ground.dir().join("agent.log")).unwrap_or_default();
    // Here rather than when the last one lets go of it: the work may still be under way.
    ground.remove();
    let figures = ended.map_err(|error| {
        let last = log.lines().rev().take(5).collect::<Vec<_>>();
        error.context(format!("the agent's last words, latest first: {last:#?}"))
    })?;
    if let Some(path) = args.json {
        Results::new(figures).write(&path)?;
        writeln!(std::io::stdout(), "written to {}", path.display())?;
    }
    Ok(())
}
