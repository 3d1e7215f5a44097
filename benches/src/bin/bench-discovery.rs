//! What it takes to tell a hundred gateways of ten thousand endpoints, beside etcd's own watch.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use tether_benches::{
    discovery::{self, Plan},
    ground::Ground,
    scene,
};

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
    let work = async move |ground: Arc<Ground>| discovery::run(&ground, &plan, scene::tell).await;
    let figures = scene::play("discovery.log", work).await?;
    scene::keep(figures, args.json.as_deref())
}
