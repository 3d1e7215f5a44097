//! The scenes of the demonstration, in order.

use std::{any::Any, panic::AssertUnwindSafe, time::Duration};

use anyhow::Context as _;
use futures::FutureExt as _;
use rustix::process::Signal;
use tether_client::Problem;
use tether_proto::common::WorkerRef;
use tether_tests::{
    Cluster, DEADLINE, Owner, Setup,
    digits::{PredictRequest, TrainRequest, TrainResponse},
    digits_client, eventually, eventually_within,
    evidence::{Evidence, Report},
    held_out, kill, signal_all, worker_client,
};
use tether_types::{Reason, WorkerId};
use tokio::time::{Instant, timeout};
use tonic::{Code, Streaming};

/// How long workers may outlive their owner in the scenes about that.
const TIMEOUT: Duration = Duration::from_secs(4);

/// A worker that forks children, daemonises one of them, and listens to nobody's SIGTERM.
const UNRULY: &str = "unruly.py --ignore-sigterm --daemonize-child --fork-children 2";

/// Longer than an embedded store and one node take to serve.
const SERVING: Duration = Duration::from_secs(5);

/// Longer than a worker takes to be seen dead, started again and ready.
const BACK: Duration = Duration::from_secs(10);

pub(crate) async fn play(report: &mut Report) {
    scene(
        report,
        "A pool of real Python workers, through the gateway",
        main_job,
    )
    .await;
    scene(
        report,
        "Coupled: the client process is killed with SIGKILL",
        coupled,
    )
    .await;
    scene(
        report,
        "Coupled: the client and `tether up` are killed with SIGKILL in the same instant",
        both_at_once,
    )
    .await;
    scene(
        report,
        "Independent: a training outlives its client",
        independent,
    )
    .await;
    scene(report, "A worker is killed under load", under_load).await;
}

/// Plays one scene. One that breaks off is a line that failed: what the others show counts all the
/// same.
async fn scene(
    report: &mut Report,
    name: &str,
    play: impl AsyncFnOnce(&mut Report) -> anyhow::Result<()>,
) {
    report.scene(name);
    // The harness panics where something is not seen in time. The report is whole between two lines.
    let why = match AssertUnwindSafe(play(report)).catch_unwind().await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => text(panic.as_ref()),
    };
    report.add(Evidence::failed(
        format!("{name}: played to its end"),
        format!("broken off: {}", why.trim_end()),
    ));
}

fn text(panic: &(dyn Any + Send)) -> String {
    let literal = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    literal
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

async fn main_job(report: &mut Report) -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await;
    report.add(Evidence::new(
        "`tether up` serves on its embedded store",
        format!("within {}", ms(SERVING)),
        ms(cluster.start_time),
        cluster.start_time < SERVING,
    ));

    let file = cluster.pool_file("digits", "coupled", 4, "worker.py", "", "");
    let mut owner = Owner::start(&cluster, "demo", &["--file", &file.display().to_string()]);
    let ready = owner.until("ready").await;
    let workers = ready["workers"].as_u64().unwrap_or_default();
    report.add(Evidence::new(
        "workers ready, from asking to the last one",
        "4 workers",
        format!(
            "{workers} workers in {:.0} ms",
            ready["ms"].as_f64().unwrap_or_default()
        ),
        workers == 4,
    ));

    let digits = held_out(360);
    let mut client = digits_client(cluster.client().channel(), "digits");
    let (mut right, mut times, mut pids) = (0, Vec::new(), std::collections::BTreeSet::new());
    for digit in &digits {
        let start = Instant::now();
        let answer = client
            .predict(PredictRequest {
                pixels: digit.pixels.clone(),
            })
            .await?
            .into_inner();
        times.push(start.elapsed());
        right += usize::from(answer.label == digit.label);
        pids.insert(answer.pid);
    }
    times.sort();
    let share = right * 100 / digits.len();
    report.add(Evidence::new(
        "digits nobody trained on, recognised through the gateway",
        "at least 90 % of 360",
        format!(
            "{share} %, {} each at the median",
            ms(times[times.len() / 2])
        ),
        share >= 90,
    ));

    let asked = Instant::now();
    kill(owner.pid(), Signal::TERM);
    let code = owner.gone().await;
    let left = cluster.no_orphans().await;
    report.add(Evidence::new(
        "the client says goodbye: its coupled workers end in good order",
        "exit code 0, 0 processes left",
        format!(
            "exit code {code:?}, 0 left {} after it was asked",
            ms(asked.elapsed().max(left))
        ),
        code == Some(0),
    ));
    cluster.stop().await;
    Ok(())
}

async fn coupled(report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 4, UNRULY, "", "");
    let owner = Owner::with_pool(&cluster, "demo", &file).await;
    let traces = cluster.traces();
    let before = traces.find().len();
    let start = Instant::now();
    kill(owner.pid(), Signal::KILL);
    let left = eventually_within(DEADLINE, async || traces.find().is_empty().then_some(())).await;
    let after = start.elapsed();
    let found = traces.find().len();
    report.add(Evidence::new(
        "every worker and every process they forked is gone (they ignore SIGTERM, one child each is a daemon)",
        "0 left within 1000 ms",
        format!("{found} of {before} processes left, {}", ms(after)),
        left.is_some() && before >= 16 && after < Duration::from_secs(1),
    ));
    let causes = causes(&cluster, 4).await;
    report.add(Evidence::new(
        "`tether events` says why they died",
        "4 times OWNER_GONE",
        causes.join(", "),
        causes.len() == 4 && causes.iter().all(|cause| cause == "OWNER_GONE"),
    ));
    Ok(())
}

/// The causes of all deaths so far, once there are `count`.
async fn causes(cluster: &Cluster, count: usize) -> Vec<String> {
    let tether = cluster.tether();
    let found = eventually_within(DEADLINE, async || {
        let events = tether.json_lines(&["events"]).await;
        let deaths = events.iter().filter(|event| event["kind"] == "WORKER_DIED");
        let causes: Vec<_> = deaths
            .map(|event| event["death"]["cause"].as_str().unwrap_or("?").to_owned())
            .collect();
        (causes.len() >= count).then_some(causes)
    });
    found.await.map(|(causes, _)| causes).unwrap_or_default()
}

async fn both_at_once(report: &mut Report) -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 4, UNRULY, "", "");
    let owner = Owner::with_pool(&cluster, "demo", &file).await;
    let traces = cluster.traces();
    let before = traces.find().len();
    let start = Instant::now();
    signal_all(&[owner.pid(), cluster.pid()], Signal::KILL);
    let left = eventually_within(DEADLINE, async || traces.find().is_empty().then_some(())).await;
    let after = start.elapsed();
    report.add(Evidence::new(
        "nobody is there any more to give orders, and nothing is left",
        "0 left within 1000 ms",
        format!(
            "{} of {before} processes left, {}",
            traces.find().len(),
            ms(after)
        ),
        left.is_some() && before >= 16 && after < Duration::from_secs(1),
    ));
    cluster.gone().await;
    Ok(())
}

async fn independent(report: &mut Report) -> anyhow::Result<()> {
    let cluster = Setup::default()
        .set("lease.node_ttl", "6s")
        .set("lease.node_beat", "1s")
        .start()
        .await;
    let policy = format!(
        "[pool.trainer.policy]\nheartbeat_interval = \"200ms\"\nheartbeat_timeout = \"{}s\"\npartition_grace = \"0s\"",
        TIMEOUT.as_secs()
    );
    let stop = "[template.digits.stop]\ngrace = \"500ms\"";
    let file = cluster.pool_file("trainer", "independent", 2, "worker.py", stop, &policy);
    let file = file.display().to_string();
    let train = [
        "--pool",
        "trainer",
        "--train",
        "night",
        "--epochs",
        "400",
        "--throttle-ms",
        "25",
    ];

    let mut first = Owner::start(&cluster, "demo", &[&["--file", &file], &train[..]].concat());
    let mut seen = 0;
    let mut pid = 0;
    while seen < 20 {
        let step = first.until("progress").await;
        (seen, pid) = (
            step["epoch"].as_u64().unwrap_or_default(),
            step["pid"].as_u64().unwrap_or_default(),
        );
    }
    first.kill().await;

    let mut second = Owner::start(&cluster, "demo", &train);
    let taken_over = second.until("session").await;
    let mut back = Vec::new();
    while back.len() < 20 {
        let step = second.until("progress").await;
        back.push((
            step["epoch"].as_u64().unwrap_or_default(),
            step["pid"].as_u64().unwrap_or_default(),
        ));
    }
    let forward = back
        .iter()
        .fold((true, seen), |(so_far, last), &(epoch, _)| {
            (so_far && epoch >= last, epoch)
        })
        .0;
    let same = back.iter().all(|&(_, other)| other == pid);
    report.add(Evidence::new(
        "a new client with the same owner name takes up the stream of the same training",
        "same pid, progress never goes back",
        format!(
            "pid {pid} before and {} after, epoch {seen} before and {} to {} after, pools taken over: {}",
            back[0].1,
            back[0].0,
            back[back.len() - 1].0,
            taken_over["pools"]
        ),
        forward && same,
    ));

    report.scene("Independent: nobody comes back");
    let traces = cluster.traces();
    let start = Instant::now();
    second.kill().await;
    let left = eventually_within(DEADLINE, async || traces.find().is_empty().then_some(())).await;
    let after = start.elapsed();
    // Counted from the last heartbeat, up to 200 ms before the kill; a worker that obeys SIGTERM leaves
    // at the beginning of the last part of it, 500 ms before the end; the rest is for a machine under load.
    let earliest = TIMEOUT - Duration::from_millis(200 + 500 + 700);
    report.add(Evidence::new(
        "the workers end by themselves when the configured timeout is over",
        format!(
            "gone {} to {} after the kill",
            ms(earliest),
            ms(TIMEOUT + Duration::from_millis(500))
        ),
        format!("{} left after {}", traces.find().len(), ms(after)),
        left.is_some() && after >= earliest && after <= TIMEOUT + Duration::from_millis(500),
    ));
    let causes = causes(&cluster, 2).await;
    report.add(Evidence::new(
        "`tether events` says why",
        "2 times OWNER_GONE",
        causes.join(", "),
        causes.len() == 2 && causes.iter().all(|cause| cause == "OWNER_GONE"),
    ));
    Ok(())
}

async fn under_load(report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 4, "worker.py", "", "");
    let _owner = Owner::with_pool(&cluster, "demo", &file).await;
    let digit = held_out(1)
        .into_iter()
        .next()
        .context("the data set is empty")?;
    let victim = cluster
        .workers("digits")
        .await
        .into_iter()
        .next()
        .context("there is no worker")?;

    let id = WorkerRef::required(victim.worker.as_ref())?;
    let mut stream = endless_call(&cluster, &id).await?;

    let stop = tokio_util::sync::CancellationToken::new();
    // A scene that breaks off must not leave its load to the next.
    let _stops = stop.clone().drop_guard();
    let mut callers = Vec::new();
    for _ in 0..8 {
        let mut client = digits_client(cluster.client().channel(), "digits");
        let (pixels, stop) = (digit.pixels.clone(), stop.clone());
        callers.push(tokio::spawn(async move {
            let (mut fine, mut failed) = (Vec::new(), Vec::new());
            while !stop.is_cancelled() {
                match client
                    .predict(PredictRequest {
                        pixels: pixels.clone(),
                    })
                    .await
                {
                    Ok(_) => fine.push(Instant::now()),
                    Err(_) => failed.push(Instant::now()),
                }
            }
            (fine, failed)
        }));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let killed = Instant::now();
    kill(victim.pid, Signal::KILL);
    let (_, back) = eventually("the worker was started again", async || {
        let workers = cluster.workers("digits").await;
        let ready = workers
            .iter()
            .filter(|worker| worker.phase() == tether_proto::common::WorkerPhase::Ready);
        (ready.count() == 4 && workers.iter().all(|worker| worker.pid != victim.pid)).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.cancel();

    let (mut fine_after, mut fine_meanwhile, mut failed) = (0, 0, Vec::new());
    for caller in callers {
        let (fine, broken) = caller.await?;
        fine_meanwhile += fine
            .iter()
            .filter(|&&at| at > killed && at < killed + back)
            .count();
        fine_after += fine.iter().filter(|&&at| at > killed).count();
        failed.extend(broken);
    }
    let in_flight = failed
        .iter()
        .filter(|&&at| at < killed + Duration::from_secs(1))
        .count();
    let late = failed.len() - in_flight;
    report.add(Evidence::new(
        "calls keep succeeding on the others",
        "only calls in flight on the killed worker may fail (at most 8)",
        format!(
            "{fine_after} calls answered after the kill, {fine_meanwhile} of them before the worker was back; {in_flight} in flight failed, {late} later"
        ),
        fine_meanwhile > 0 && in_flight <= 8 && late == 0,
    ));
    let problem = timeout(DEADLINE, how_it_ended(&mut stream)).await?;
    report.add(Evidence::new(
        "a call that was in flight says why it failed",
        format!("UNAVAILABLE, WORKER_DIED, names {id} and signal 9"),
        problem.as_ref().map_or_else(
            || "it ended as if all was well".to_owned(),
            |problem| {
                let reason = problem.reason.map_or("no reason", Reason::word);
                format!("{:?}, {reason}: {}", problem.code, problem.text)
            },
        ),
        problem.is_some_and(|problem| {
            problem.code == Code::Unavailable
                && problem.reason == Some(Reason::WorkerDied)
                && problem.text.contains(&id.to_string())
                && problem.text.contains("signal 9")
        }),
    ));
    report.add(Evidence::new(
        "it is started again and ready",
        format!("4 ready within {}", ms(BACK)),
        ms(back),
        back < BACK,
    ));
    let causes = causes(&cluster, 1).await;
    report.add(Evidence::new(
        "`tether events` says why it died",
        "SIGNALED",
        causes.join(", "),
        causes == ["SIGNALED"],
    ));
    Ok(())
}

/// A call to this worker that lasts far longer than the scene, and is under way.
async fn endless_call(
    cluster: &Cluster,
    worker: &WorkerId,
) -> anyhow::Result<Streaming<TrainResponse>> {
    let request = TrainRequest {
        job: "endless".to_owned(),
        epochs: 100_000,
        throttle_ms: 100,
        ..TrainRequest::default()
    };
    let mut client = worker_client(cluster.client().channel(), worker);
    let mut stream = client.train(request).await?.into_inner();
    stream
        .message()
        .await?
        .context("the training says nothing")?;
    Ok(stream)
}

/// How a call failed; none when it ended well.
async fn how_it_ended(stream: &mut Streaming<TrainResponse>) -> Option<Problem> {
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(status) => return Some(Problem::from(status)),
        }
    }
}
