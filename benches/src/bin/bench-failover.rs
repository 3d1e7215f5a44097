//! What calls notice when a worker dies, hangs or is slow: through ours, Envoy, HAProxy, nginx and nghttpx.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use tether_benches::{
    cores::Cores,
    failover::{self, Part, Plan, Programs},
    ground::Ground,
    scene,
};

/// Measures what proxies make of workers that fail.
#[derive(Debug, Parser)]
struct Args {
    /// Writes the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// One short turn of each, for a look in some seven minutes.
    #[arg(long)]
    quick: bool,
    /// Measures this part alone; can be given several times.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Turns of each.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    #[command(flatten)]
    programs: Programs,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let of = |quick: usize, whole: usize| if args.quick { quick } else { whole };
    let seconds =
        |quick: u64, whole: u64| Duration::from_secs(if args.quick { quick } else { whole });
    let plan = Plan {
        kills: of(3, 10),
        fat_kills: of(1, 3),
        stops: of(1, 6),
        resident_mib: 4_096,
        span: seconds(3, 6),
        busy: seconds(8, 30),
        parts: args.only,
        programs: args.programs,
        rounds: args.rounds,
        cores: Cores::divide()?,
    };
    let work = async move |ground: Arc<Ground>| failover::run(ground, plan, scene::tell).await;
    let figures = scene::play("gateway.log", work).await?;
    scene::keep(figures, args.json.as_deref())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn no_flag_is_in_the_way_of_another() {
        Args::command().debug_assert();
    }
}
