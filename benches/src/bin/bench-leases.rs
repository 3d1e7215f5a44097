//! What one arbiter costs with ten thousand agents and a million workers, beside etcd.

use std::{io::Write as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use rustix::process::{Resource, getrlimit, setrlimit};
use tether_benches::{
    ground::Ground,
    leases::{self, Plan},
    scene,
};

/// Measures the arbiter beside etcd.
#[derive(Debug, Parser)]
struct Args {
    /// Writes the figures to this file, and beside it, as SVG, how they grow with the agents.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A hundred agents and a short look.
    #[arg(long)]
    quick: bool,
    /// The arbiter's program.
    #[arg(long)]
    arbiter: PathBuf,
    /// etcd's program.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Why there is none.
    #[arg(long, default_value = "no program of etcd was given")]
    no_etcd: String,
    /// How many agents; can be given several times.
    #[arg(long)]
    agents: Vec<usize>,
    /// What the arbiter keeps its state in: `memory:`, `redb:`, or `etcd:`, which is then an etcd of its own.
    #[arg(long, default_value = "memory:", value_parser = ["memory:", "redb:", "etcd:"])]
    store: String,
    /// Measures no etcd beside the arbiter.
    #[arg(long)]
    alone: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let agents = match (args.agents.is_empty(), args.quick) {
        (false, _) => args.agents,
        (true, true) => vec![100],
        (true, false) => vec![100, 1_000, 10_000],
    };
    let plan = Plan {
        arbiter: std::path::absolute(args.arbiter)?,
        etcd: args.etcd.ok_or(args.no_etcd),
        alone: args.alone,
        agents,
        measured: Duration::from_secs(if args.quick { 20 } else { 60 }),
        store: args.store,
    };
    raise_limit(&plan)?;
    let work = async move |ground: Arc<Ground>| leases::run(&ground, &plan, scene::tell).await;
    let (figures, growth) = scene::play("arbiter.log", work).await?;
    scene::keep(figures, args.json.as_deref())?;
    if let Some(path) = args.json.map(|path| path.with_extension("svg"))
        && let Some(svg) = growth.svg()
    {
        std::fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(std::io::stdout(), "drawn in {}", path.display())?;
    }
    Ok(())
}

/// A connection is an open file on either side, and what is started inherits the limit.
fn raise_limit(plan: &Plan) -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")?;
    let wanted = plan.agents.iter().max().copied().unwrap_or(0) + 500;
    let enough = limit
        .current
        .is_none_or(|most| most >= u64::try_from(wanted).unwrap_or(u64::MAX));
    anyhow::ensure!(
        enough,
        "{wanted} files may have to be open, and {:?} may be",
        limit.current
    );
    Ok(())
}
