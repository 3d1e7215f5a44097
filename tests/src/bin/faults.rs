//! Fault injection: every system call of shim and zygote fails once, and the machine runs out of everything; each
//! time a clear event and a restart, and never a leak.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use rustix::process::{getpid, set_child_subreaper};

#[path = "../faults/calls.rs"]
mod calls;
#[path = "../faults/demand.rs"]
mod demand;
#[path = "../matrix/lineage.rs"]
#[expect(dead_code, reason = "the kill matrix needs more of it")]
mod lineage;
#[path = "../faults/lives.rs"]
mod lives;
#[path = "../faults/node.rs"]
#[expect(dead_code, reason = "a soak needs more of it")]
mod node;
#[path = "../faults/owner.rs"]
mod owner;
#[path = "../faults/parting.rs"]
mod parting;
#[path = "../faults/phase.rs"]
mod phase;
#[path = "../faults/play.rs"]
mod play;
#[path = "../../../benches/src/puppet.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "the benches need more of it, and publish it"
)]
mod puppet;
#[path = "../faults/rows.rs"]
mod rows;
#[path = "../faults/scenes.rs"]
mod scenes;
#[path = "../matrix/witness.rs"]
#[expect(dead_code, reason = "the kill matrix needs more of it")]
mod witness;

use rows::{Rows, say};

/// Makes things fail, and sees whether anything is lost or left.
#[derive(Debug, Parser)]
struct Args {
    /// Every fault, not each so many-th one.
    #[arg(long)]
    all: bool,
    /// How many faults one is chosen from.
    #[arg(long, default_value_t = 3)]
    stride: usize,
    /// Of each call, as many of its first occurrences.
    #[arg(long, default_value_t = 3)]
    first: u32,
    /// Only faults and scenes whose name holds this.
    #[arg(long, default_value = "")]
    only: String,
    /// Agents do without these walls, whatever the kernel allows: a lower level of guarantee.
    #[arg(long, value_enum)]
    without: Vec<Wall>,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What holds a worker's processes together.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Wall {
    Namespaces,
    Cgroups,
}

impl Wall {
    fn setting(self) -> &'static str {
        match self {
            Self::Namespaces => "agent.no_namespaces=true",
            Self::Cgroups => "agent.no_cgroups=true",
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    node::WITHOUT.get_or_init(|| args.without.iter().map(|wall| wall.setting()).collect());
    match Box::pin(faults(&args)).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("faults cannot be injected: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn faults(args: &Args) -> anyhow::Result<bool> {
    let start = Instant::now();
    // Nothing that is started here gets out of sight.
    set_child_subreaper(Some(getpid()))?;
    let mut rows = Rows::default();
    let calls = async {
        if !cfg!(target_arch = "x86_64") {
            let mut rows = Rows::default();
            rows.skip(
                "system calls",
                "",
                "their numbers are known for x86-64 only",
            );
            return anyhow::Ok(rows);
        }
        let mut rows = Rows::default();
        let recorded = play::record(args.first, &mut rows).await?;
        let stride = if args.all { 1 } else { args.stride.max(1) };
        let chosen: Vec<_> = recorded
            .iter()
            .filter(|fault| fault.name().contains(&args.only))
            .step_by(stride)
            .cloned()
            .collect();
        say(&format!(
            "{} faults of {} are played",
            chosen.len(),
            recorded.len()
        ));
        rows.extend(Box::pin(play::play(&chosen)).await?);
        Ok(rows)
    };
    let (calls, scenes) = tokio::join!(calls, scenes::play(&args.only));
    rows.extend(calls?);
    rows.extend(scenes?);
    let [worked, refused, missed] = ["worked", "refused", "not called"].map(|word| rows.seen(word));
    say(&format!(
        "as if nothing had happened: {worked}; refused to start, and said why: {refused}; not called this time: {missed}; {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(rows.finish(args.json.as_deref())?)
}
