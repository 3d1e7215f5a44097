//! Losses of what has workers, owns them, or is one, while calls go on.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use tether_tests::evidence::Evidence;
use tokio::time::{Instant, sleep_until};

use crate::{
    load::{self, Since},
    scenes::{
        SOME, WORKERS, at_rest, kill_one, no_failure, of, one, seconds, started_again, within,
    },
    stack::{PROJECT, Stack},
};

/// Of the nodes' leases, as arbiters grant them unless told otherwise.
const LEASE: Duration = Duration::from_secs(20);

/// Of each call: the last that is sent before a lease is over fails so much later.
const DEADLINE: Duration = Duration::from_secs(10);

/// What may fail where a node falls silent. No breaker opens: a call that its caller gives up on says nothing of a worker.
/// Each of four callers waits for its deadline of 10 s, twice and a bit until the lease is over.
const AT_MOST_SILENT: u64 = 12;

pub(crate) async fn beam(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    let before = (load::counts(stack).await?, stack.serving().await?);
    let app = one(stack, "app").await?;
    let started = stack.inspect(&app, "{{.State.StartedAt}}").await?;
    let beams = stack.processes(&app, "beam.smp").await?;
    let [beam] = &beams[..] else {
        anyhow::bail!("{} BEAMs in the application's container", beams.len());
    };
    stack.kill_numbered(beam).await?;
    let start = Instant::now();
    started_again(stack, &app, &started).await?;
    let next = within("the next BEAM's calls are served", async || {
        let now = stack.inspect(&app, "{{.State.StartedAt}}").await.ok()?;
        let (calls, failed) = stack.app_counts_since(&now).await.ok()?;
        (calls > failed).then_some((calls, failed, start.elapsed()))
    });
    let (calls, failed, took) = next.await?;
    at_rest(stack).await?;
    let since = load::more(stack, &before.0, SOME).await?;
    let same = stack.serving().await? == before.1;
    Ok(vec![
        Evidence::new(
            "workers over a BEAM's death",
            "the same",
            if same { "the same" } else { "OTHERS" },
            same,
        ),
        Evidence::new(
            "calls of the next BEAM",
            "none failed",
            format!(
                "{failed} of its first {calls} failed, {} after the kill",
                seconds(took)
            ),
            failed == 0,
        ),
        no_failure("calls of others over a BEAM's death", &since),
    ])
}

pub(crate) async fn worker(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    let before = load::counts(stack).await?;
    let workers = stack.serving().await?;
    let (victim, node) = workers.first_key_value().context("no worker serves")?;
    let (place, _) = victim.split_once('.').context("no incarnation")?;
    let process = stack.worker_process(victim).await?;
    let kill = format!("kill -KILL {process}");
    // Its number is one of the container's own.
    stack.quietly(&["exec", node, "sh", "-c", &kill]).await?;
    let start = Instant::now();
    let told = format!("worker_down {victim} ");
    let told = async {
        within("its owner is told", async || {
            let why = stack.app_says(&told).await.ok().flatten()?;
            Some((why, start.elapsed()))
        })
        .await
    };
    let replaced = async {
        within("it is replaced", async || {
            let serving = stack.serving().await.ok()?;
            let next = serving.keys().find(|name| {
                let same = name.split_once('.').is_some_and(|(its, _)| its == place);
                same && *name != victim
            })?;
            Some((next.clone(), start.elapsed()))
        })
        .await
    };
    let ((why, told), (next, replaced)) = tokio::try_join!(told, replaced)?;
    at_rest(stack).await?;
    let since = load::more(stack, &before, SOME).await?;
    let serving = stack.serving().await?;
    let others: Vec<_> = workers.keys().filter(|name| *name != victim).collect();
    let stayed = others.iter().all(|name| serving.contains_key(*name));
    Ok(vec![
        Evidence::new(
            "what its owner is told of a killed worker",
            "{:signal, :sigkill}",
            format!("{why} after {}", seconds(told)),
            why == "{:signal, :sigkill}",
        ),
        Evidence::new(
            "workers over a worker's death",
            "it is replaced, the others not",
            format!(
                "{next} after {}, the others {}",
                seconds(replaced),
                if stayed { "not" } else { "TOO" }
            ),
            stayed && serving.len() == WORKERS,
        ),
        Evidence::new(
            "calls over a worker's death",
            "those under way there may fail",
            of(&since),
            since.failed <= 5,
        ),
    ])
}

pub(crate) async fn agent(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    let before = load::counts(stack).await?;
    let workers = stack.serving().await?;
    let victim = kill_one(stack, "agent").await?;
    let node = stack.node(&victim).await?;
    let start = Instant::now();
    let lost: Vec<_> = workers
        .iter()
        .filter(|(_, on)| **on == node)
        .map(|(name, _)| name.clone())
        .collect();
    within("its workers are replaced", async || {
        let serving = stack.serving().await.ok()?;
        let gone = lost.iter().all(|name| !serving.contains_key(name));
        (gone && serving.len() == WORKERS).then_some(())
    })
    .await?;
    let took = start.elapsed();
    at_rest(stack).await?;
    let since = load::more(stack, &before, SOME).await?;
    let stayed = stack.serving().await?;
    let stayed = workers
        .iter()
        .filter(|(_, on)| **on != node)
        .all(|(name, _)| stayed.contains_key(name));
    let later = load::counts(stack).await?;
    let later = load::more(stack, &later, SOME).await?;
    Ok(vec![
        Evidence::new(
            "workers of a killed agent's container",
            "replaced, the others not",
            format!(
                "{} replaced after {}, the others {}",
                lost.len(),
                seconds(took),
                if stayed { "not" } else { "TOO" }
            ),
            stayed && !lost.is_empty(),
        ),
        Evidence::new(
            "calls over an agent's death",
            "at most 5 fail, which is how many may be under way there",
            of(&since),
            since.failed <= 5,
        ),
        no_failure("calls after it", &later),
    ])
}

pub(crate) async fn cut(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    spread(stack).await?;
    let before = load::counts(stack).await?;
    let victim = one(stack, "agent").await?;
    let node = stack.node(&victim).await?;
    let network = format!("{PROJECT}_default");
    ensure!(
        stack.worker_processes(&victim).await? > 0,
        "there are no workers at {node}"
    );
    stack
        .quietly(&["network", "disconnect", &network, &victim])
        .await?;
    let start = Instant::now();
    let placed = async {
        within("its workers' places are filled elsewhere", async || {
            let serving = stack.serving().await.ok()?;
            (serving.len() == WORKERS && serving.values().all(|on| *on != node))
                .then(|| start.elapsed())
        })
        .await
    };
    let ended = async {
        within("its workers end", async || {
            let left = stack.worker_processes(&victim).await.ok()?;
            (left == 0).then(|| start.elapsed())
        })
        .await
    };
    let (placed, ended) = tokio::try_join!(placed, ended)?;
    sleep_until(start + LEASE + DEADLINE).await;
    let lapsed = load::later(stack, &before, SOME).await?;
    // Their addresses may be others after this, so the container begins anew.
    stack
        .quietly(&["network", "connect", &network, &victim])
        .await?;
    stack.quietly(&["restart", "--time", "10", &victim]).await?;
    at_rest(stack).await?;
    let since = load::more(stack, &before, SOME).await?;
    Ok(vec![
        Evidence::new(
            "workers of a node that is cut off",
            "ended before their places are filled",
            format!(
                "ended after {}, filled after {}",
                seconds(ended),
                seconds(placed)
            ),
            ended < placed,
        ),
        until_lease("calls over the cut", &lapsed, &since),
    ])
}

pub(crate) async fn lost(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    spread(stack).await?;
    let victim = one(stack, "agent").await?;
    let seen = for_good(stack, &victim).await;
    // Whatever was seen, the scenes that follow need it.
    stack.quietly(&["start", &victim]).await?;
    at_rest(stack).await?;
    seen
}

/// Takes a node away, for as long as anybody looks.
async fn for_good(stack: &Stack, victim: &str) -> anyhow::Result<Vec<Evidence>> {
    let before = load::counts(stack).await?;
    let workers = stack.serving().await?;
    let node = stack.node(victim).await?;
    let on_node = |(_, on): &(&String, &String)| **on == node;
    let (lost, others): (Vec<_>, Vec<_>) = workers.iter().partition(on_node);
    ensure!(!lost.is_empty(), "there are no workers at {node}");
    // What the engine takes for a wish it does not start again.
    stack.quietly(&["kill", victim]).await?;
    let start = Instant::now();
    let mut earliest = None;
    let (filled, serving) = within("its workers' places are filled elsewhere", async || {
        let serving = stack.serving().await.ok()?;
        let elsewhere = serving.values().filter(|on| **on != node).count();
        if elsewhere > others.len() {
            earliest.get_or_insert_with(|| start.elapsed());
        }
        (serving.len() == WORKERS && elsewhere == WORKERS).then(|| (start.elapsed(), serving))
    })
    .await?;
    let earliest = earliest.unwrap_or(filled);
    sleep_until(start + LEASE + DEADLINE).await;
    let lapsed = load::later(stack, &before, SOME).await?;
    let runs = stack.inspect(victim, "{{.State.Running}}").await?;
    let mut processes = 0;
    for container in stack.containers("agent").await? {
        processes += stack.worker_processes(&container).await?;
    }
    let places: BTreeSet<_> = serving.keys().map(|name| name.split('.').next()).collect();
    let stayed = others.iter().all(|(name, _)| serving.contains_key(*name));
    let since = load::more(stack, &before, SOME).await?;
    Ok(vec![
        Evidence::new(
            "workers of a node that never comes back",
            "elsewhere, after its lease of 20 s",
            format!(
                "{} elsewhere after {} to {}, the others {}",
                lost.len(),
                seconds(earliest),
                seconds(filled),
                if stayed { "not touched" } else { "TOO" }
            ),
            stayed && earliest >= LEASE,
        ),
        Evidence::new(
            "processes for their four places",
            "4, a place each",
            format!("{processes} for {} places", places.len()),
            runs == "false" && processes == WORKERS && places.len() == WORKERS,
        ),
        until_lease("calls over the loss", &lapsed, &since),
    ])
}

/// Has workers on both nodes, wherever an earlier loss has left them: one that is stopped goes where there are fewest.
async fn spread(stack: &Stack) -> anyhow::Result<()> {
    let workers = stack.serving().await?;
    let nodes: BTreeSet<_> = workers.values().collect();
    if nodes.len() > 1 {
        return Ok(());
    }
    let (worker, _) = workers.first_key_value().context("no worker serves")?;
    let (place, _) = worker.split_once('.').context("no incarnation")?;
    stack.tether_plain(&["stop", place]).await?;
    within("there are workers on both nodes", async || {
        let serving = stack.serving().await.ok()?;
        let nodes: BTreeSet<_> = serving.values().collect();
        (serving.len() == WORKERS && nodes.len() > 1).then_some(())
    })
    .await
}

/// Calls may have been sent to a node that is silent until its lease was over, when `lapsed` was counted later.
fn until_lease(name: &str, lapsed: &Since, since: &Since) -> Evidence {
    let later = since.failed - lapsed.failed;
    Evidence::new(
        name,
        format!("at most {AT_MOST_SILENT} until the lease is over, none after it"),
        format!("{}; {later} after the lease", of(since)),
        since.failed <= AT_MOST_SILENT && later == 0,
    )
}
