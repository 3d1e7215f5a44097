//! The supervisor matrix: supervisord, runsvdir, runsv and what they run killed with SIGKILL, with workers that have
//! daemonised children, and what of them was left when the lease and a second were over.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use futures::{StreamExt as _, stream};
use tether_tests::{
    Setup,
    evidence::{Evidence, Report},
};

#[path = "../supervisors/plan.rs"]
mod plan;
#[path = "../supervisors/play.rs"]
mod play;

use plan::{Outcome, Row};
use play::Seen;

/// Kills supervisors and what they run, and counts what is left.
#[derive(Debug, Parser)]
struct Args {
    /// Only rows whose names contain one of these, separated by `|`.
    #[arg(long)]
    only: Option<String>,
    /// How often each row is played.
    #[arg(long, default_value_t = 50)]
    repeat: usize,
    /// Repetitions side by side.
    #[arg(long, default_value_t = 4)]
    together: usize,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    let wanted = |row: &Row| {
        let only = args.only.as_deref().unwrap_or_default();
        only.split('|').any(|text| row.name().contains(text))
    };
    let cluster = Setup::default()
        .set("lease.node_ttl", &format!("{:?}", play::TTL))
        .set("lease.node_beat", &format!("{:?}", play::BEAT))
        .start()
        .await;
    let rows = Row::all().into_iter().filter(wanted);
    for (number, row) in rows.enumerate() {
        let first = number * args.repeat;
        let cluster = &cluster;
        let played: Vec<_> = stream::iter(first..first + args.repeat)
            .map(|number| async move { play::play(row, cluster, number).await })
            .buffer_unordered(args.together.max(1))
            .collect()
            .await;
        report.add(judge(row, played));
    }
    drop(cluster);
    report.finish(args.json.as_deref())
}

fn judge(row: Row, played: Vec<anyhow::Result<Seen>>) -> Evidence {
    let all = played.len();
    let mut good = 0;
    let mut left = 0;
    let mut slowest = Duration::ZERO;
    let mut first_wrong = None;
    for seen in played {
        match seen {
            Ok(seen) => {
                left += seen.left;
                slowest = slowest.max(seen.gone_after);
                match seen.wrong {
                    None if seen.left == 0 => good += 1,
                    None => {}
                    Some(wrong) => first_wrong = first_wrong.or(Some(wrong)),
                }
            }
            Err(error) => first_wrong = first_wrong.or_else(|| Some(format!("{error:#}"))),
        }
    }
    let seen = match row.outcome() {
        Outcome::Unharmed => format!("{good} of {all}"),
        _ => format!("{good} of {all}, {left} left, the slowest gone after {slowest:.2?}"),
    };
    let seen = match first_wrong {
        Some(wrong) => format!("{seen}; {wrong}"),
        None => seen,
    };
    Evidence::new(row.name(), row.expected(), seen, good == all)
}
