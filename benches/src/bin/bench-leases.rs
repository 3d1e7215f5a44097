//! What one arbiter costs with ten thousand agents and a million workers, beside etcd.

use std::{io::Write as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use rustix::process::{Resource, getrlimit, setrlimit};
use tether_benches::{
    Results,
    ground::Ground,
    leases::{self, Plan},
};
use tokio::signal::unix::{SignalKind, signal};

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
        leases::run(&at, &plan, tell).await
    });
    let ended = tokio::select! {
        ended = work => ended.context("the bench broke off").flatten(),
        _ = terminate.recv() => Err(anyhow::anyhow!("ended by SIGTERM")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("ended by SIGINT")),
    };
    let log = std::fs::read_to_string(ground.dir().join("arbiter.log")).unwrap_or_default();
    // Here rather than when the last one lets go of it: the work may still be under way.
    ground.remove();
    let (figures, growth) = ended.map_err(|error| {
        let last = log.lines().rev().take(5).collect::<Vec<_>>();
        error.context(format!("the arbiter's last words, latest first: {last:#?}"))
    })?;
    if let Some(path) = args.json {
        Results::new(figures).write(&path)?;
        writeln!(std::io::stdout(), "written to {}", path.display())?;
        if let Some(svg) = growth.svg() {
            let path = path.with_extension("svg");
            std::fs::write(&path, svg)
                .with_context(|| format!("cannot write {}", path.display()))?;
            writeln!(std::io::stdout(), "drawn in {}", path.display())?;
        }
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
