//! What is done to the stack while calls go on, and what has to follow.

use std::{pin::Pin, time::Duration};

use anyhow::Context as _;
use tether_tests::{eventually_within, evidence::Evidence};
use tokio::time::Instant;

use crate::{
    guide,
    load::{self, Counts, Since},
    losses,
    stack::{Edition, PROJECT, Stack},
};

/// Longest time for anything on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Workers of the application's pool.
pub(crate) const WORKERS: usize = 4;

/// Calls that show that calls go on.
pub(crate) const SOME: u64 = 200;

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
    ("BEAM killed", |stack| Box::pin(losses::beam(stack))),
    ("worker killed", |stack| Box::pin(losses::worker(stack))),
    ("agent killed", |stack| Box::pin(losses::agent(stack))),
    ("node cut off", |stack| Box::pin(losses::cut(stack))),
    ("node lost", |stack| Box::pin(losses::lost(stack))),
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
    guide::follow(stack, guide::CLUSTER, "Up").await?;
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
    let demo = demo(stack).await?;
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
        demo,
        spread,
        Evidence::new(
            "targets that Prometheus reaches",
            "5, and no alert",
            up,
            true,
        ),
    ])
}

/// The example's own client, from a container beside them: images are recognised, and a model is trained.
async fn demo(stack: &Stack) -> anyhow::Result<Evidence> {
    let network = format!("{PROJECT}_default");
    let image = format!("tether-agent:{}", Edition::First.tag());
    let client = async |words: &[&str]| {
        let run = ["run", "--rm", "--network", &network, "--entrypoint"];
        let to = ["python3", &image, "client.py", "--target", "gateway:7437"];
        let of = ["--pool", "digits"];
        let place = ["--workdir", "/opt/digits"];
        let all = [&run[..4], &place, &run[4..], &to, &of, words].concat();
        stack.docker(&all).await
    };
    let told = client(&["predict", "0", "1", "2"]).await?;
    let recognised = told.lines().filter(|line| line.contains(" shows "));
    let recognised = recognised.count();
    let trained = client(&["train", "demo", "--epochs", "5"]).await?;
    let last = trained.trim().lines().last().unwrap_or_default().to_owned();
    Ok(Evidence::new(
        "the demo's client",
        "3 images answered, 5 epochs trained",
        format!("{recognised} images; `{last}`"),
        recognised == 3 && last.contains("epoch 5 of 5") && last.ends_with(", done"),
    ))
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

async fn scale(stack: &mut Stack) -> anyhow::Result<Vec<Evidence>> {
    let before = load::counts(stack).await?;
    let workers = stack.deaths().await?;
    // Up to three of each, and down again.
    guide::follow(stack, guide::CLUSTER, "Scale").await?;
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
    guide::follow(stack, guide::CLUSTER, "Upgrade").await?;
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
pub(crate) async fn at_rest(stack: &Stack) -> anyhow::Result<()> {
    within("all is as it should be", async || {
        let rest = stack.healthy(SERVICES).await && stack.nodes().await.ok()?.len() >= 2;
        (rest && stack.serving().await.ok()?.len() == WORKERS).then_some(())
    })
    .await
}

pub(crate) async fn one(stack: &Stack, service: &str) -> anyhow::Result<String> {
    let containers = stack.containers(service).await?;
    containers
        .into_iter()
        .next()
        .with_context(|| format!("no {service} runs"))
}

/// Kills one of a service and sees it dead; the engine starts it again.
pub(crate) async fn kill_one(stack: &Stack, service: &str) -> anyhow::Result<String> {
    let victim = one(stack, service).await?;
    let started = stack.inspect(&victim, "{{.State.StartedAt}}").await?;
    stack.kill(&victim).await?;
    started_again(stack, &victim, &started).await?;
    Ok(victim)
}

/// Waits until the engine has started a container that began at `before`.
pub(crate) async fn started_again(
    stack: &Stack,
    container: &str,
    before: &str,
) -> anyhow::Result<()> {
    within("it is started again", async || {
        let now = stack
            .inspect(container, "{{.State.StartedAt}}")
            .await
            .ok()?;
        (now != before).then_some(())
    })
    .await
}

pub(crate) async fn within<T>(
    what: &str,
    look: impl AsyncFnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let seen = eventually_within(PATIENCE, look).await;
    let (seen, _) = seen.with_context(|| format!("not within {PATIENCE:?}: {what}"))?;
    Ok(seen)
}

pub(crate) fn no_failure(name: &str, since: &Since) -> Evidence {
    Evidence::new(name, "none failed", of(since), since.failed == 0)
}

pub(crate) fn of(since: &Since) -> String {
    match since.failed {
        0 => format!("0 of {} failed", since.calls),
        failed => format!("{failed} of {} failed: {:?}", since.calls, since.errors),
    }
}

pub(crate) fn seconds(span: Duration) -> String {
    format!("{:.1} s", span.as_secs_f64())
}
