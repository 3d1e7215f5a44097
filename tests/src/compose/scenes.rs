//! What is done to the stack while calls go on, and what has to follow.

use std::{pin::Pin, time::Duration};

use anyhow::{Context as _, ensure};
use tether_tests::{eventually_within, evidence::Evidence};
use tokio::time::Instant;

use crate::{
    guide,
    load::{self, Counts, Since},
    stack::{Edition, PROJECT, Stack},
};

/// Longest time for anything on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Workers of the application's pool.
const WORKERS: usize = 4;

/// Calls that show that calls go on.
const SOME: u64 = 200;

/// Of four callers, each waits for its deadline of 10 s, twice and a bit before a lease of 20 s is over.
const AT_MOST_CUT: u64 = 12;

/// Each service, and how many of it there are.
pub(crate) const SERVICES: &[(&str, usize)] = &[
    ("etcd-1", 1),
    ("etcd-2", 1),
    ("etcd-3", 1),
    ("arbiter-1", 1),
    ("arbiter-2", 1),
    ("discovery", 1),
    ("gateway", 2),
    ("agent", 2),
    ("app", 1),
    ("prometheus", 1),
];

pub(crate) type Rows<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Vec<Evidence>>> + 'a>>;

/// A scene on a stack at rest, which leaves it at rest.
pub(crate) type Scene = fn(&mut Stack) -> Rows<'_>;

/// Every scene, in the order they are played.
pub(crate) const ALL: &[(&str, Scene)] = &[
    ("calls", |stack| Box::pin(calls(stack))),
    ("arbiter killed", |stack| Box::pin(arbiter(stack))),
    ("etcd killed", |stack| Box::pin(member(stack))),
    ("gateway killed", |stack| Box::pin(gateway(stack))),
    ("agent killed", |stack| Box::pin(agent(stack))),
    ("node cut off", |stack| Box::pin(cut(stack))),
    ("scaled", |stack| Box::pin(scale(stack))),
    ("upgraded", |stack| Box::pin(upgrade(stack))),
];

/// Those in which compose has a part.
pub(crate) const OF_COMPOSE: &[(&str, Scene)] = &[
    ("calls", |stack| Box::pin(calls(stack))),
    ("scaled", |stack| Box::pin(scale(stack))),
    ("upgraded", |stack| Box::pin(upgrade(stack))),
];

/// Brings it up, and tells how long it took to the first call that a worker served.
pub(crate) async fn up(stack: &Stack) -> anyhow::Result<Evidence> {
    stack.compose(&["build", "--quiet"]).await?;
    let start = Instant::now();
    guide::follow(stack, "Up").await?;
    let served = within("a call is served", async || {
        stack
            .app_counts()
            .await
            .ok()
            .filter(|counts| counts.0 > counts.1)
    });
    served.await?;
    let took = start.elapsed();
    within("every container is healthy", async || {
        stack.healthy(SERVICES).await.then_some(())
    })
    .await?;
    let seen = format!(
        "{:.1} s from `up` to the first calls served, of images that are there",
        took.as_secs_f64()
    );
    Ok(Evidence::new("up", "all healthy, calls served", seen, true))
}

async fn calls(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    let since = load::more(stack, &Counts::default(), SOME).await?;
    let (calls, failed) = stack.app_counts().await?;
    let app = Evidence::new(
        "calls from Elixir",
        "none failed",
        format!("{failed} of {calls} failed"),
        failed == 0,
    );
    let nodes = stack
        .serving()
        .await?
        .into_values()
        .collect::<std::collections::BTreeSet<_>>();
    let spread = Evidence::new(
        "nodes with workers",
        "2",
        nodes.len().to_string(),
        nodes.len() == 2,
    );
    let query = [
        "promtool",
        "query",
        "instant",
        "http://localhost:9090",
        "sum(up) + 100 * count(ALERTS{alertstate=\"firing\"} or vector(0)) ",
    ];
    let prometheus = stack.containers("prometheus").await?;
    let prometheus = prometheus.first().context("no Prometheus")?;
    let up = within("Prometheus has asked everybody", async || {
        let said = stack
            .docker(&[&["exec", prometheus], &query[..]].concat())
            .await
            .ok()?;
        said.contains("=> 105 @").then_some(said)
    });
    let up = up.await?.trim().to_owned();
    Ok(vec![
        app,
        no_failure("calls from gRPC's client", &since),
        spread,
        Evidence::new(
            "targets that Prometheus reaches",
            "5, and no alert",
            up,
            true,
        ),
    ])
}

async fn arbiter(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    let leader = stack.leader().await?;
    let before = (load::counts(stack).await?, stack.serving().await?);
    kill_one(stack, leader).await?;
    let start = Instant::now();
    within("another arbiter leads", async || {
        (stack.leader().await.ok()? != leader).then_some(())
    })
    .await?;
    let took = start.elapsed();
    at_rest(stack).await?;
    let since = load::more(stack, &before.0, SOME).await?;
    let same = stack.serving().await? == before.1;
    Ok(vec![
        Evidence::new(
            "another arbiter leads",
            "within 9 s and the look",
            seconds(took),
            took < Duration::from_secs(12),
        ),
        no_failure("calls over the leader's death", &since),
        Evidence::new(
            "workers over the leader's death",
            "the same",
            if same { "the same" } else { "OTHERS" },
            same,
        ),
    ])
}

async fn member(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    let before = (load::counts(stack).await?, stack.serving().await?);
    kill_one(stack, "etcd-1").await?;
    at_rest(stack).await?;
    let since = load::more(stack, &before.0, SOME).await?;
    let same = stack.serving().await? == before.1;
    Ok(vec![
        no_failure("calls over a member's death", &since),
        Evidence::new(
            "workers over a member's death",
            "the same",
            if same { "the same" } else { "OTHERS" },
            same,
        ),
    ])
}

async fn gateway(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    let before = (load::counts(stack).await?, stack.serving().await?);
    kill_one(stack, "gateway").await?;
    at_rest(stack).await?;
    let since = load::more(stack, &before.0, SOME).await?;
    let same = stack.serving().await? == before.1;
    // One under way for each caller, and one of the application's.
    let few = since.failed <= 5;
    Ok(vec![
        Evidence::new(
            "calls over a gateway's death",
            "those under way there may fail",
            of(&since),
            few,
        ),
        Evidence::new(
            "workers over a gateway's death",
            "the same",
            if same { "the same" } else { "OTHERS" },
            same,
        ),
    ])
}

async fn agent(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
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
            "those under way there may fail",
            of(&since),
            since.failed <= 5,
        ),
    ])
}

async fn cut(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
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
        Evidence::new(
            "calls over the cut",
            "those sent there until the lease is over may fail",
            of(&since),
            since.failed <= AT_MOST_CUT,
        ),
    ])
}

async fn scale(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    let before = load::counts(stack).await?;
    let workers = stack.deaths().await?;
    // Up to three of each, and down again.
    guide::follow(stack, "Scale").await?;
    at_rest(stack).await?;
    let since = load::more(stack, &before, SOME).await?;
    let died = stack.deaths().await?.saturating_sub(workers);
    Ok(vec![
        no_failure("calls while there are three of each, and two again", &since),
        Evidence::new(
            "workers that died meanwhile",
            "0",
            died.to_string(),
            died == 0,
        ),
    ])
}

async fn upgrade(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    let before = load::counts(stack).await?;
    let deaths = stack.deaths().await?;
    stack.choose(Edition::Next);
    let start = Instant::now();
    guide::follow(stack, "Upgrade").await?;
    let took = start.elapsed();
    at_rest(stack).await?;
    let since = load::more(stack, &before, SOME).await?;
    let mut old = Vec::new();
    for (service, _) in SERVICES
        .iter()
        .filter(|(service, _)| *service != "prometheus")
    {
        for container in stack.containers(service).await? {
            let image = stack.inspect(&container, "{{.Config.Image}}").await?;
            if !image.ends_with(":next") {
                old.push(format!("{service} is {image}"));
            }
        }
    }
    let died = stack.deaths().await?.saturating_sub(deaths);
    let now = if old.is_empty() {
        format!("all, in {}", seconds(took))
    } else {
        old.join(", ")
    };
    Ok(vec![
        Evidence::new("services that are upgraded", "all", now, old.is_empty()),
        no_failure("calls over the upgrade of everything", &since),
        Evidence::new(
            "workers that died in the upgrade",
            "0",
            died.to_string(),
            died == 0,
        ),
    ])
}

/// Every service as it is to be, every worker ready, both nodes there.
async fn at_rest(stack: &Stack) -> anyhow::Result<()> {
    within("all is as it should be", async || {
        let rest = stack.healthy(SERVICES).await && stack.nodes().await.ok()?.len() >= 2;
        (rest && stack.serving().await.ok()?.len() == WORKERS).then_some(())
    })
    .await
}

async fn one(stack: &Stack, service: &str) -> anyhow::Result<String> {
    let containers = stack.containers(service).await?;
    containers
        .into_iter()
        .next()
        .with_context(|| format!("no {service} runs"))
}

/// Kills one of a service and sees it dead; the engine starts it again.
async fn kill_one(stack: &Stack, service: &str) -> anyhow::Result<String> {
    let victim = one(stack, service).await?;
    let started = stack.inspect(&victim, "{{.State.StartedAt}}").await?;
    stack.kill(&victim).await?;
    within("it is started again", async || {
        let now = stack.inspect(&victim, "{{.State.StartedAt}}").await.ok()?;
        (now != started).then_some(())
    })
    .await?;
    Ok(victim)
}

async fn within<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> anyhow::Result<T> {
    let seen = eventually_within(PATIENCE, look).await;
    let (seen, _) = seen.with_context(|| format!("not within {PATIENCE:?}: {what}"))?;
    Ok(seen)
}

fn no_failure(name: &str, since: &Since) -> Evidence {
    Evidence::new(name, "none failed", of(since), since.failed == 0)
}

fn of(since: &Since) -> String {
    match since.failed {
        0 => format!("0 of {} failed", since.calls),
        failed => format!("{failed} of {} failed: {:?}", since.calls, since.errors),
    }
}

fn seconds(span: Duration) -> String {
    format!("{:.1} s", span.as_secs_f64())
}
