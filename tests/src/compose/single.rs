//! `deploy/docker/single.yml`: one node in a container, as its guide has it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tether_tests::{eventually_within, evidence::Evidence};
use tokio::time::timeout;

use crate::{docker::repository, guide, scenes, stack::Stack};

pub(crate) const NAME: &str = "one node";

const GUIDE: &str = "docs/how-to/single-container.md";

const FILE: [&str; 2] = ["--file", "deploy/docker/single.yml"];

/// What an owner is told whose process no agent can watch.
const REFUSED: &str = "no agent can watch that process";

/// Workers of the pool in the image.
const WORKERS: usize = 2;

/// The lookout for an owner's end, with the time of the look.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// What its file gives it to stop.
const STOPS_WITHIN: Duration = Duration::from_secs(30);

/// Brings it up, does what its guide says and what faults do, and takes it down.
pub(crate) async fn play(stack: &Stack) -> Vec<Evidence> {
    let mut rows = Vec::new();
    let played = scene(stack, &mut rows).await;
    let mut ended = match played {
        Ok(()) => Ok(()),
        Err(why) => Err(format!("{why:#}; {}", log(stack).await)),
    };
    let down = guide::follow(stack, GUIDE, "Down").await;
    if let (Ok(()), Err(why)) = (&ended, down) {
        ended = Err(format!("{why:#}"));
    }
    if let Err(why) = ended {
        rows.push(Evidence::failed(NAME, why));
    }
    rows
}

async fn scene(stack: &Stack, rows: &mut Vec<Evidence>) -> anyhow::Result<()> {
    let start = Instant::now();
    guide::follow(stack, GUIDE, "Up").await?;
    guide::follow(stack, GUIDE, "A pool").await?;
    rows.push(Evidence::new(
        "up, and a pool in it",
        "a call is served",
        format!("after {}", scenes::seconds(start.elapsed())),
        true,
    ));
    let container = scenes::one(stack, "tether").await?;
    scenes::within("it is healthy", async || {
        stack.healthy(&[("tether", 1)]).await.then_some(())
    })
    .await?;
    let ready = ready(stack).await?;
    let seen = format!("{ready} ready");
    rows.push(Evidence::new(
        "workers seen from the machine, at 127.0.0.1:7437",
        "2 ready",
        seen,
        ready == WORKERS,
    ));

    rows.push(refused(stack).await?);
    rows.push(restarted(stack, &container).await?);
    rows.push(owner_killed(stack, &container).await?);

    let start = Instant::now();
    let stop = [&FILE[..], &["stop"]].concat();
    stack.compose(&stop).await?;
    let took = start.elapsed();
    let status = stack.inspect(&container, "{{.State.ExitCode}}").await?;
    rows.push(Evidence::new(
        "stop",
        "status 0, within 30 s",
        format!("status {status} after {}", scenes::seconds(took)),
        status == "0" && took < STOPS_WITHIN,
    ));
    Ok(())
}

/// An owner on the machine cannot be watched from the container.
async fn refused(stack: &Stack) -> anyhow::Result<Evidence> {
    let run = [
        "run",
        "--file",
        "deploy/docker/digits.toml",
        "--owner",
        "outside",
    ];
    let (succeeded, said) = outside(stack, &run).await?;
    let why = said.lines().find(|line| line.contains(REFUSED));
    let why = why.unwrap_or(&said);
    Ok(Evidence::new(
        "a coupled pool of an owner on the machine",
        "refused, with what to do",
        why.trim(),
        !succeeded && said.contains(REFUSED),
    ))
}

/// Kills `tether up`: the container's first process starts it again.
async fn restarted(stack: &Stack, container: &str) -> anyhow::Result<Evidence> {
    let started = stack.inspect(container, "{{.State.StartedAt}}").await?;
    let before = all_workers(stack, container).await?;
    let first = stack.inspect(container, "{{.State.Pid}}").await?;
    let all = stack.processes(container, "tether up").await?;
    let up = all.into_iter().find(|pid| *pid != first);
    let up = up.context("`tether up` is not beside the container's first process")?;
    let start = Instant::now();
    stack.kill_numbered(&up).await?;
    scenes::within("it serves again", async || {
        let ready = ready(stack).await.ok()?;
        let all = stack.processes(container, "tether up").await.ok()?;
        (ready == WORKERS && !all.contains(&up)).then_some(())
    })
    .await?;
    let took = start.elapsed();
    let after = all_workers(stack, container).await?;
    let left = after.iter().filter(|pid| before.contains(pid)).count();
    let is_same = stack.inspect(container, "{{.State.StartedAt}}").await? == started;
    let whose = if is_same { "the same" } else { "ANOTHER" };
    let seen = format!(
        "{WORKERS} ready after {} in {whose} container, {left} left of before",
        scenes::seconds(took)
    );
    Ok(Evidence::new(
        "kill -9 of `tether up`",
        "started again in the same container; coupled workers end with their agent, and come again",
        seen,
        is_same && left == 0,
    ))
}

async fn owner_killed(stack: &Stack, container: &str) -> anyhow::Result<Evidence> {
    all_workers(stack, container).await?;
    let owners = stack.processes(container, "--owner guide").await?;
    ensure!(owners.len() == 1, "owners are {owners:?}");
    let start = Instant::now();
    stack.kill_numbered(&owners[0]).await?;
    let gone = eventually_within(scenes::PATIENCE, async || {
        let left = workers(stack, container).await.ok()?;
        left.is_empty().then_some(())
    });
    gone.await.context("its workers are still there")?;
    let took = start.elapsed();
    Ok(Evidence::new(
        "kill -9 of the owner",
        "no worker left",
        format!("0 left after {}", scenes::seconds(took)),
        took < GONE_WITHIN,
    ))
}

/// As many processes as there are to be workers.
async fn all_workers(stack: &Stack, container: &str) -> anyhow::Result<Vec<String>> {
    scenes::within("each worker has its process", async || {
        let found = workers(stack, container).await.ok()?;
        (found.len() == WORKERS).then_some(found)
    })
    .await
}

async fn workers(stack: &Stack, container: &str) -> anyhow::Result<Vec<String>> {
    stack.processes(container, "worker.py").await
}

/// How many workers are ready, as the machine sees it.
async fn ready(stack: &Stack) -> anyhow::Result<usize> {
    let (succeeded, said) = outside(stack, &["--output", "json", "ps"]).await?;
    ensure!(succeeded, "{said}");
    let workers: serde_json::Value = serde_json::from_str(&said)?;
    let workers = workers.as_array().context("no list")?.iter();
    Ok(workers.filter(|worker| worker["phase"] == "ready").count())
}

/// `tether` on the machine, whether it succeeded, and all that it said.
async fn outside(stack: &Stack, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let program = repository().join("target/debug/tether");
    let mut command = stack.command(&program.display().to_string());
    command.args(["--gateway", "127.0.0.1:7437"]);
    let output = command.args(arguments).output();
    let output = timeout(scenes::PATIENCE, output).await;
    let output = output.with_context(|| format!("tether {arguments:?} does not end"))??;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    Ok((output.status.success(), said))
}

async fn log(stack: &Stack) -> String {
    let logs = [&FILE[..], &["logs", "--no-color", "--tail", "15"]].concat();
    stack
        .compose(&logs)
        .await
        .unwrap_or_else(|why| format!("{why:#}"))
}
