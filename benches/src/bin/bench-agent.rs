//! What our agent costs and how surely its workers end, beside other supervisors of processes.

use std::{path::PathBuf, sync::Arc};

use clap::Parser;
use tether_benches::{
    agent::{self, Part, Plan},
    ground::Ground,
    scene,
};

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
    let work = async move |ground: Arc<Ground>| agent::run(&ground, &plan, scene::tell).await;
    let figures = scene::play("agent.log", work).await?;
    scene::keep(figures, args.json.as_deref())
}
