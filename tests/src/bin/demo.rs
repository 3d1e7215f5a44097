//! The main job, end to end, on real workers: each line is something Tether promises, what was seen,
//! and whether it holds.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tether_tests::evidence::Report;

#[path = "demo/scenes.rs"]
mod scenes;

/// Shows the main job on real workers.
#[derive(Debug, Parser)]
struct Args {
    /// Writes the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    scenes::play(&mut report).await;
    report.print_summary();
    if let Some(path) = args.json
        && let Err(error) = report.write(&path)
    {
        report.complain(&format!("cannot write `{}`: {error}", path.display()));
        return ExitCode::FAILURE;
    }
    if report.failed() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
