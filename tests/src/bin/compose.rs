//! `docker-compose.yml` on a real engine: brought up, called through, cut, killed, scaled, upgraded under load, and taken
//! down, with what was seen beside what had to follow.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tether_tests::evidence::{Evidence, Report};
use tokio::signal::unix::{SignalKind, signal};

#[path = "../ground/docker.rs"]
mod docker;
#[path = "../compose/guide.rs"]
mod guide;
#[path = "../compose/images.rs"]
mod images;
#[path = "../compose/load.rs"]
mod load;
#[path = "../compose/losses.rs"]
mod losses;
#[path = "../compose/scenes.rs"]
mod scenes;
#[path = "../compose/single.rs"]
mod single;
#[path = "../compose/stack.rs"]
mod stack;

use docker::Engine;
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
    /// Only with this program, `docker-compose` or `docker-compose-2`.
    #[arg(long)]
    with: Option<String>,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let asked = async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            asked = tokio::signal::ctrl_c() => asked,
        }
    };
    // What is dropped here takes down what it has started.
    tokio::select! {
        ended = run(&args) => ended,
        _ = asked => ExitCode::FAILURE,
    }
}

async fn run(args: &Args) -> ExitCode {
    let mut report = Report::default();
    let engine = match Engine::start().await {
        Ok(engine) => engine,
        Err(why) => {
            let all = scenes::ALL
                .iter()
                .map(|scene| scene.0)
                .chain([single::NAME]);
            report.skip(all, &format!("{why:#}"));
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
    if let Err(why) = images::provide(&stack.engine, &args.programs).await {
        report.add(Evidence::failed("images", format!("{why:#}")));
        return report.finish(args.json.as_deref());
    }
    let wanted = |name: &str| args.with.as_deref().is_none_or(|with| with == name);
    for (compose, scenes) in COMPOSES.iter().filter(|(name, _)| wanted(name)) {
        report.scene(&format!("with {compose}"));
        if let Err(why) = play(&mut stack, compose, scenes, args, &mut report).await {
            report.add(Evidence::failed(
                format!("with {compose}"),
                format!("{why:#}"),
            ));
            explain(&stack, &report).await;
        }
        let left = take_down(&mut stack)
            .await
            .unwrap_or_else(|why| vec![format!("{why:#}")]);
        report.add(nothing("left after `down`", &left));
        if matches(args, single::NAME) {
            report.scene(single::NAME);
            let rows = single::play(&stack).await;
            rows.into_iter().for_each(|row| report.add(row));
            let left = stack.left().await;
            let left = left.unwrap_or_else(|why| vec![format!("{why:#}")]);
            report.add(nothing("left of one node", &left));
        }
    }
    let left = stack.engine.stop().await;
    report.add(nothing("left of the engine", &left));
    report.finish(args.json.as_deref())
}

/// The programs of both generations, and which scenes are played with each: faults are the engine's, whoever has started
/// the containers.
const COMPOSES: &[(&str, &[(&str, scenes::Scene)])] = &[
    ("docker-compose", scenes::ALL),
    ("docker-compose-2", scenes::OF_COMPOSE),
];

async fn play(
    stack: &mut Stack,
    compose: &str,
    scenes: &[(&str, scenes::Scene)],
    args: &Args,
    report: &mut Report,
) -> anyhow::Result<()> {
    stack.choose(Edition::First);
    stack.call_compose(compose)?;
    report.add(scenes::up(stack).await?);
    load::begin(stack).await?;
    for (name, scene) in scenes {
        if matches(args, name) {
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

fn matches(args: &Args, name: &str) -> bool {
    let only = args.only.as_deref().unwrap_or_default();
    only.split('|').any(|text| name.contains(text))
}

fn nothing(name: &str, left: &[String]) -> Evidence {
    let seen = if left.is_empty() {
        "nothing".to_owned()
    } else {
        left.join(", ")
    };
    Evidence::new(name, "nothing", seen, left.is_empty())
}

/// What runs, and what was written last.
async fn explain(stack: &Stack, report: &Report) {
    for arguments in [&["ps"][..], &["logs", "--no-color", "--tail", "15"]] {
        let said = stack.compose(arguments).await;
        report.scene(&said.unwrap_or_else(|why| format!("{why:#}")));
    }
}

async fn take_down(stack: &mut Stack) -> anyhow::Result<Vec<String>> {
    // Never begun where the stack did not come up.
    let _ = load::end(stack).await;
    guide::follow(stack, guide::CLUSTER, "Down").await?;
    stack.left().await
}
