//! What real BEAMs see that run an application with the Elixir client: killed and stopped ones, ones that come back and
//! ones that do not, two of them on one machine, and long jobs; and what was seen beside what is promised.

use std::{panic::AssertUnwindSafe, path::PathBuf, process::ExitCode};

use clap::Parser;
use futures::FutureExt as _;
use tether_tests::evidence::{Evidence, Report};

#[path = "../beams/application.rs"]
mod application;
#[path = "../beams/crashes.rs"]
mod crashes;
#[path = "../beams/ends.rs"]
mod ends;
#[path = "../beams/figures.rs"]
mod figures;
#[path = "../beams/jobs.rs"]
mod jobs;
#[path = "../beams/kills.rs"]
mod kills;
#[path = "../beams/kin.rs"]
mod kin;
#[path = "../beams/lab.rs"]
mod lab;
#[expect(dead_code, reason = "the kill matrix needs more of it")]
#[path = "../matrix/lineage.rs"]
mod lineage;
#[path = "../beams/others.rs"]
mod others;
#[path = "../beams/restarts.rs"]
mod restarts;
#[path = "../beams/world.rs"]
mod world;

use ends::Way;
use lab::Lab;
use world::{Seen, World};

/// Kills BEAMs, stops them and has them come back, and sees what follows.
#[derive(Debug, Parser)]
struct Args {
    /// Only rows whose names contain one of these, separated by `|`.
    #[arg(long)]
    only: Option<String>,
    /// Each row so often at most; 200 kills, 100 returns and 20 of the others where nobody says.
    #[arg(long)]
    repeat: Option<usize>,
    /// This machine does other work: lateness is judged by a second, and kills by 250 ms by the median too.
    #[arg(long)]
    busy: bool,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
enum Row {
    Killed { embedded: bool, busy: bool },
    Stopped { embedded: bool, mode: &'static str },
    Ended(&'static [Way]),
    WithAgent,
    WorkerCrashed { mode: &'static str },
    Restarted { embedded: bool },
    FoundAgain,
    LeftAlone,
    Apart { embedded: bool },
    Fenced,
    Long,
}

const ROWS: &[(&str, Row)] = &[
    (
        "killed, services in the port, workers idle",
        Row::Killed {
            embedded: true,
            busy: false,
        },
    ),
    (
        "killed, services in the port, workers busy",
        Row::Killed {
            embedded: true,
            busy: true,
        },
    ),
    (
        "killed, services apart, workers idle",
        Row::Killed {
            embedded: false,
            busy: false,
        },
    ),
    (
        "killed, services apart, workers busy",
        Row::Killed {
            embedded: false,
            busy: true,
        },
    ),
    ("coupled, it ends in good order", Row::Ended(Way::IN_ORDER)),
    ("coupled, it crashes", Row::Ended(Way::AT_ONCE)),
    ("coupled, killed with its agent", Row::WithAgent),
    (
        "coupled, restarted again and again, services in the port",
        Row::Restarted { embedded: true },
    ),
    (
        "coupled, restarted again and again, services apart",
        Row::Restarted { embedded: false },
    ),
    (
        "coupled, a worker crashes",
        Row::WorkerCrashed { mode: "coupled" },
    ),
    (
        "independent, a worker crashes",
        Row::WorkerCrashed {
            mode: "independent",
        },
    ),
    (
        "stopped, services in the port",
        Row::Stopped {
            embedded: true,
            mode: "coupled",
        },
    ),
    (
        "stopped, services apart",
        Row::Stopped {
            embedded: false,
            mode: "coupled",
        },
    ),
    (
        "stopped, independent",
        Row::Stopped {
            embedded: false,
            mode: "independent",
        },
    ),
    (
        "independent, another BEAM comes for its job",
        Row::FoundAgain,
    ),
    ("independent, nobody comes back", Row::LeftAlone),
    (
        "two BEAMs, services in their ports",
        Row::Apart { embedded: true },
    ),
    ("two BEAMs, services apart", Row::Apart { embedded: false }),
    ("two BEAMs of one name", Row::Fenced),
    ("ten minutes of work", Row::Long),
];

impl Row {
    async fn play(self, world: &World) -> anyhow::Result<Seen> {
        match self {
            Self::Killed { embedded, busy } => kills::killed(world, embedded, busy).await,
            Self::Stopped { embedded, mode } => kills::stopped(world, embedded, mode).await,
            Self::Ended(ways) => ends::ended(world, ways).await,
            Self::WithAgent => ends::with_agent(world).await,
            Self::WorkerCrashed { mode } => crashes::worker(world, mode).await,
            Self::Restarted { embedded } => restarts::restarted(world, embedded).await,
            Self::FoundAgain => jobs::found_again(world).await,
            Self::LeftAlone => kills::left_alone(world).await,
            Self::Apart { embedded } => others::apart(world, embedded).await,
            Self::Fenced => others::fenced(world).await,
            Self::Long => jobs::long(world).await,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    let lab = match Lab::build().await {
        Ok(lab) => lab,
        Err(why) => {
            report.add(Evidence::failed("the application", format!("{why:#}")));
            return report.finish(args.json.as_deref());
        }
    };
    let world = World {
        lab,
        repeat: args.repeat,
        busy: args.busy,
    };
    let only = args.only.as_deref().unwrap_or_default();
    let wanted = |name: &str| only.split('|').any(|text| name.contains(text));
    for (name, row) in ROWS.iter().filter(|(name, _)| wanted(name)) {
        report.scene(name);
        let played = AssertUnwindSafe(row.play(&world)).catch_unwind().await;
        report.add(match played {
            Ok(Ok(seen)) => Evidence::new(*name, seen.expected, seen.seen, seen.holds),
            Ok(Err(why)) => Evidence::failed(*name, format!("{why:#}")),
            Err(_) => Evidence::failed(*name, "it panicked"),
        });
    }
    report.finish(args.json.as_deref())
}
