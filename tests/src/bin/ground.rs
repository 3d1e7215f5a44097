//! Tether deployed to real grounds, and what was seen there beside what was promised.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use tether_tests::evidence::Report;

#[path = "../deployed/systemd.rs"]
mod systemd;

/// Deploys, breaks what was deployed, and looks.
#[derive(Debug, Parser)]
struct Args {
    /// Where to.
    ground: Ground,
    /// Only rows whose names contain one of these, separated by `|`.
    #[arg(long, default_value = "")]
    only: String,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Ground {
    /// Units of a Debian 12.
    Systemd,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    match args.ground {
        Ground::Systemd => systemd::play(&args.only, &mut report).await,
    }
    report.finish(args.json.as_deref())
}
