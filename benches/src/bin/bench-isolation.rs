//! What becomes of other clients while one does what no client should: through ours, Envoy, HAProxy, nginx and nghttpx.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use tether_benches::{
    cores::Cores,
    ground::Ground,
    isolation::{self, Part, Plan},
    proxies::Programs,
    scene,
};

/// Measures how proxies keep clients apart.
#[derive(Debug, Parser)]
struct Args {
    /// Writes the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// One short turn of each, for a look in about three minutes.
    #[arg(long)]
    quick: bool,
    /// Measures this part alone; can be given several times.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    #[command(flatten)]
    programs: Programs,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (rounds, milliseconds) = match args.quick {
        true => (1, 1_000),
        false => (3, 3_000),
    };
    let plan = Plan {
        parts: args.only,
        programs: args.programs,
        rounds,
        span: Duration::from_millis(milliseconds),
        cores: Cores::divide()?,
    };
    let work = async move |ground: Arc<Ground>| isolation::run(ground, &plan, scene::tell).await;
    let figures = scene::play("ours.log", work).await?;
    scene::keep(figures, args.json.as_deref())
}
