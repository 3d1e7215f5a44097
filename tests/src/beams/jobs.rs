//! Jobs that go on while BEAMs, an agent and a worker are killed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use tether_proto::job::GetJobRequest;
use tether_tests::{Cluster, Site, kill};

use crate::{
    figures::Times,
    lab::{Beam, Setting},
    world::{Seen, World},
};

/// Long enough for a BEAM to come back on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Ten minutes of work, a second each step, at a twenty-fifth of the time.
const STEPS: u64 = 600;
const STEP_SECONDS: f64 = 0.04;
const SAVE_EVERY: u64 = 10;

/// With saving, starts and whatever else runs on this machine.
const LONG: Duration = Duration::from_secs(180);

/// Where a job stands, as a BEAM tells it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Job {
    state: String,
    progress: f64,
    attempt: u64,
    fence: u64,
    saved: u64,
    result: String,
}

impl Job {
    /// Whether it has a checkpoint.
    pub(crate) fn has_saved(&self) -> bool {
        self.saved > 0
    }

    /// What follows its key in `words`.
    fn read(words: &str) -> anyhow::Result<Self> {
        let read = || {
            let mut words = words.split(' ');
            Some(Self {
                state: words.next()?.to_owned(),
                progress: words.next()?.parse().ok()?,
                attempt: words.next()?.parse().ok()?,
                fence: words.next()?.parse().ok()?,
                saved: words.next()?.parse().ok()?,
                result: words.next()?.to_owned(),
            })
        };
        read().with_context(|| format!("no job: `{words}`"))
    }
}

/// Starts it or finds it; with whether it was found.
pub(crate) async fn start(beam: &mut Beam, key: &str, spec: &str) -> anyhow::Result<(bool, Job)> {
    let begin = format!("job {key} ");
    let line = beam.ask(&format!("job {key} {spec}"), &begin).await?;
    let (found, job) = line[begin.len()..].split_once(' ').context("no job")?;
    Ok((found == "found", Job::read(job)?))
}

async fn look(beam: &mut Beam, key: &str) -> anyhow::Result<Job> {
    let begin = format!("status {key} ");
    // Where an agent is away for a moment somebody else may not answer in time.
    for _ in 0..20 {
        let line = beam.ask(&format!("status {key}"), &begin).await?;
        let words = &line[begin.len()..];
        if !words.starts_with("unknown ") {
            return Job::read(words);
        }
    }
    bail!("nobody tells of job {key}")
}

/// Waits until it is so of the job.
pub(crate) async fn until(
    beam: &mut Beam,
    key: &str,
    what: &str,
    is: impl Fn(&Job) -> bool,
) -> anyhow::Result<Job> {
    let start = Instant::now();
    loop {
        let job = look(beam, key).await?;
        if is(&job) {
            return Ok(job);
        }
        let goes_on = ["RUNNING", "WAITING", "ORPHANED"].contains(&job.state.as_str());
        ensure!(goes_on && start.elapsed() < LONG, "not so: {what}: {job:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a job of so many steps has for its result.
fn result(steps: u64) -> String {
    let total: u64 = (0..steps).map(|step| step * step).sum();
    format!("{steps}:{total}")
}

fn setting(world: &World, gateway: String, size: u32) -> anyhow::Result<Setting> {
    Ok(Setting {
        home: world.lab.home()?,
        gateway: Some(gateway),
        mode: "independent",
        timeout: TIMEOUT,
        owner: "trainer".to_owned(),
        pool: "lab".to_owned(),
        size,
    })
}

/// A BEAM is killed again and again, and the next one finds the job where it would be without that.
pub(crate) async fn found_again(world: &World) -> anyhow::Result<Seen> {
    let cluster = Cluster::start().await;
    let setting = setting(world, cluster.gateway(), 1)?;
    let over = cluster.dir().join("over");
    let spec = format!(
        r#"{{"until":"{}","seconds":0.02,"save_every":10}}"#,
        over.display()
    );
    let mut beam = world.lab.ready(&setting).await?;
    let (_, first) = start(&mut beam, "train", &spec).await?;
    let pids = beam.workers().await?;
    let mut times = Times::default();
    let wanted = world.repeat(100);
    for _ in 0..wanted {
        let started = look(&mut beam, "train").await?.progress;
        let before = until(&mut beam, "train", "it gets on", |job| {
            job.progress > started
        })
        .await?;
        let killed = Instant::now();
        beam.kill().await?;
        beam = world.lab.start(&setting)?;
        let (found, job) = start(&mut beam, "train", &spec).await?;
        times.add(killed.elapsed());
        ensure!(
            found && job.state == "RUNNING" && (job.attempt, job.fence) == (1, first.fence),
            "not the job that was begun: {job:?}"
        );
        ensure!(
            job.progress > before.progress && job.saved >= before.saved,
            "it has not gone on: {before:?}, then {job:?}"
        );
        ensure!(
            beam.workers().await? == pids,
            "the worker is another process"
        );
        world.progress(times.count(), wanted, &times.to_string());
    }
    std::fs::write(over, "")?;
    let done = until(&mut beam, "train", "it is done", |job| job.state == "DONE").await?;
    let steps = done
        .result
        .split_once(':')
        .and_then(|(steps, _)| steps.parse().ok());
    let steps = steps.context("no result")?;
    beam.ask("delete", "deleted").await?;
    let holds = done.result == result(steps) && (done.attempt, done.fence) == (1, first.fence);
    let expected =
        "one process, one attempt, progress never less and the result of an undisturbed run";
    let seen = format!("so, with {steps} steps; found again after the kill: {times}");
    Ok(Seen::new(
        expected,
        if holds { seen } else { format!("{done:?}") },
        holds,
    ))
}

/// Ten minutes of work, scaled down, through three killed BEAMs, a killed agent and a killed worker.
pub(crate) async fn long(world: &World) -> anyhow::Result<Seen> {
    let mut site = Site::with_second_alone().await;
    let setting = setting(world, site.cluster.gateway(), 2)?;
    let spec = |seconds: f64| {
        format!(r#"{{"steps":{STEPS},"seconds":{seconds},"save_every":{SAVE_EVERY}}}"#)
    };
    let mut beam = world.lab.ready(&setting).await?;
    start(&mut beam, "calm", &spec(0.0)).await?;
    let calm = until(&mut beam, "calm", "the undisturbed run is done", |job| {
        job.state == "DONE"
    })
    .await?;

    let (_, begun) = start(&mut beam, "long", &spec(STEP_SECONDS)).await?;
    let pid = pid_of(&site).await?;
    for part in [0.05, 0.1, 0.15] {
        until(&mut beam, "long", "it gets on", |job| job.progress >= part).await?;
        beam.kill().await?;
        beam = world.lab.ready(&setting).await?;
        let (found, job) = start(&mut beam, "long", &spec(STEP_SECONDS)).await?;
        ensure!(
            found && (job.attempt, job.fence) == (1, begun.fence),
            "not the job that was begun: {job:?}"
        );
        world.progress(
            0,
            1,
            &format!("at {:.0} %, with another BEAM", job.progress * 100.0),
        );
    }
    site.kill_agent().await;
    site.start_agent();
    let at = look(&mut beam, "long").await?.progress;
    let job = until(&mut beam, "long", "it gets on with the next agent", |job| {
        job.progress > at
    })
    .await?;
    ensure!(
        (job.attempt, job.fence) == (1, begun.fence),
        "another attempt: {job:?}"
    );
    ensure!(pid_of(&site).await? == pid, "another process");

    kill(pid, Signal::KILL);
    let next = until(&mut beam, "long", "another worker goes on", |job| {
        job.attempt == 2 && job.progress > 0.0
    })
    .await?;
    let steps = |job: &Job| job.progress * 600.0;
    #[expect(clippy::cast_precision_loss, reason = "some hundred steps")]
    let from_saved = steps(&next) > job.saved as f64;
    ensure!(from_saved, "it begins anew: {job:?}, then {next:?}");
    let done = until(&mut beam, "long", "it is done", |job| job.state == "DONE").await?;
    beam.ask("delete", "deleted").await?;
    let holds = done.result == calm.result && done.result == result(STEPS) && done.attempt == 2;
    let expected = format!(
        "{} in two attempts, the second from what was saved",
        calm.result
    );
    let seen = format!(
        "{} in {} attempts, the second from step {} or later",
        done.result, done.attempt, job.saved
    );
    Ok(Seen::new(expected, seen, holds))
}

/// The process of the long job's worker.
async fn pid_of(site: &Site) -> anyhow::Result<u32> {
    let ask = GetJobRequest {
        pool: "lab".to_owned(),
        key: "long".to_owned(),
    };
    let answer = site.cluster.client().jobs().get_job(ask).await?;
    let job = answer.into_inner().job.context("no job")?;
    let workers = site.cluster.workers("lab").await;
    let its = workers.iter().find(|worker| worker.worker == job.worker);
    Ok(its.context("no worker has it")?.pid)
}
