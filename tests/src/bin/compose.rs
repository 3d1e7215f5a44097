//! `docker-compose.yml` on a real engine: brought up, called through, cut, killed, scaled, upgraded under load, and taken
//! down, with what was seen beside what had to follow.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tether_tests::evidence::{Evidence, Report};

#[path = "../ground/docker.rs"]
mod docker;
#[path = "../compose/images.rs"]
mod images;
#[path = "../compose/load.rs"]
mod load;
#[path = "../compose/scenes.rs"]
mod scenes;
#[path = "../compose/stack.rs"]
mod stack;

use docker::Engine;
use images::Parts;
use stack::{Edition, Stack};

/// Brings up the whole cluster of `docker-compose.yml`, and sees what becomes of it.
#[derive(Debug, Parser)]
struct Args {
    /// The folder with static programs, which images are made of.
    #[arg(long)]
    programs: PathBuf,
    /// Only scenes whose names contain one of these, separated by `|`, after it is up.
    #[arg(long)]
    only: Option<String>,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    let engine = match Engine::start().await {
        Ok(engine) => engine,
        Err(why) => {
            report.scene(&format!("skipped: {why:#}"));
            report.skip(scenes::ALL.len());
            return report.finish(args.json.as_deref());
        }
    };
    let whose = if engine.is_own() {
        "an engine of its own"
    } else {
        "the machine's engine"
    };
    report.scene(&format!("on {whose}"));
    let mut stack = Stack::new(engine);
    if let Err(why) = play(&mut stack, &args, &mut report).await {
        report.add(Evidence::failed("the stack", format!("{why:#}")));
        explain(&stack, &report).await;
    }
    let left = take_down(&stack).await;
    report.add(match left {
        Ok(left) => {
            let seen = if left.is_empty() {
                "nothing".to_owned()
            } else {
                left.join(", ")
            };
            Evidence::new("left after `down`", "nothing", seen, left.is_empty())
        }
        Err(why) => Evidence::failed("left after `down`", format!("{why:#}")),
    });
    let left = stack.engine.stop().await;
    let seen = if left.is_empty() {
        "nothing".to_owned()
    } else {
        left.join(", ")
    };
    report.add(Evidence::new(
        "left of the engine",
        "nothing",
        seen,
        left.is_empty(),
    ));
    report.finish(args.json.as_deref())
}

async fn play(stack: &mut Stack, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let parts = Parts {
        programs: args.programs.clone(),
    };
    images::provide(&stack.engine, &parts).await?;
    for edition in [Edition::Next, Edition::First] {
        stack.choose(edition);
        stack.compose(&["build", "--quiet"]).await?;
    }
    report.scene("up");
    report.add(scenes::up(stack).await?);
    load::begin(stack).await?;
    for (name, scene) in scenes::ALL {
        let only = args.only.as_deref().unwrap_or_default();
        if only.split('|').any(|text| name.contains(text)) {
            report.scene(name);
            match scene(stack).await {
                Ok(rows) => rows.into_iter().for_each(|row| report.add(row)),
                Err(why) => {
                    report.add(Evidence::failed(*name, format!("{why:#}")));
                    explain(stack, report).await;
                }
            }
        }
    }
    Ok(())
}

/// What runs, and what was written last.
async fn explain(stack: &Stack, report: &Report) {
    for arguments in [&["ps"][..], &["logs", "--no-color", "--tail", "15"]] {
        let said = stack.compose(arguments).await;
        report.scene(&said.unwrap_or_else(|why| format!("{why:#}")));
    }
}

async fn take_down(stack: &Stack) -> anyhow::Result<Vec<String>> {
    // Never begun where the stack did not come up.
    let _ = load::end(stack).await;
    stack.down().await?;
    stack.left().await
}
