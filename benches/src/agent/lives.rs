//! What our agent does in the life of workers: rates, replacements, memory, adoption.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context as _;
use tether_clock::{BootClock, Clock as _};
use tether_proto::{
    common::WorkerPhase,
    pool::{ForkedFrom, ReadinessKind, Template},
};

use super::{
    Cost, IN_FLIGHT,
    ours::{Ours, PATIENCE, forget, incarnation, supervisors, template, workers},
};
use crate::{
    figure::median,
    ground::Ground,
    processes::{Pinned, cpu_below, kernel_bytes, pss_bytes, settled},
};

/// Spawns, deaths and burials per second, so many at a time, for about this long.
pub(super) async fn spawn_rate(
    ground: &Ground,
    agent: &Path,
    template: &Template,
    time: Duration,
) -> anyhow::Result<Cost> {
    let mut ours = Ours::start(ground, agent, false, None).await?;
    let orders = (0..IN_FLIGHT).map(|_| ours.another(template)).collect();
    let cpu = cpu_below(std::process::id());
    let start = BootClock.now();
    ours.puppet.order(orders);
    let (mut deaths, mut last) = (0_u32, start);
    while last.since(start) < time {
        let (at, report) = ours.puppet.report(PATIENCE).await?;
        let Some(death) = &report.death else {
            continue;
        };
        anyhow::ensure!(
            death.exit_code == Some(0),
            "a worker that exits with 0 was reported as {death:?}"
        );
        (deaths, last) = (deaths + 1, at);
        let next = ours.another(template);
        ours.puppet.order(vec![forget(&report), next]);
    }
    let cost = Cost {
        value: f64::from(deaths) / last.since(start).as_secs_f64(),
        cpu_seconds: cpu_below(std::process::id())
            .saturating_sub(cpu)
            .as_secs_f64(),
    };
    ours.end().await?;
    Ok(cost)
}

/// Milliseconds from the SIGKILL of a ready worker to the report that its successor is ready.
pub(super) async fn replacement(
    ground: &Ground,
    agent: &Path,
    worker: &str,
    times: usize,
) -> anyhow::Result<Cost> {
    let template = template(worker, &["ready"], ReadinessKind::Connect);
    let mut ours = Ours::start(ground, agent, false, None).await?;
    ours.workers(1, &template, WorkerPhase::Ready).await?;
    let cpu = cpu_below(std::process::id());
    let mut millis = Vec::new();
    for _ in 0..times {
        let pinned = Pinned::new(&workers());
        let killed = BootClock.now();
        pinned.signal(rustix::process::Signal::KILL);
        loop {
            let (at, report) = ours.puppet.report(PATIENCE).await?;
            if report.death.is_some() {
                let next = ours.another(&template);
                ours.puppet.order(vec![next, forget(&report)]);
            }
            if report.phase() == WorkerPhase::Ready {
                millis.push(at.since(killed).as_secs_f64() * 1e3);
                break;
            }
        }
    }
    let cost = Cost {
        value: median(millis).context("nothing was measured")?,
        cpu_seconds: cpu_below(std::process::id())
            .saturating_sub(cpu)
            .as_secs_f64(),
    };
    ours.end().await?;
    Ok(cost)
}

/// Bytes that supervision takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Supervisors without a worker.
    pub(super) base: f64,
    /// What they grow by, per worker.
    pub(super) per_worker: f64,
    /// That, and what the kernel takes for all processes of it, the worker's own included, per worker.
    pub(super) with_kernel: f64,
}

/// Memory of supervisors with `few` and with `many` idle workers.
pub(super) async fn memory(
    ground: &Ground,
    agent: &Path,
    worker: &str,
    few: usize,
    many: usize,
) -> anyhow::Result<Memory> {
    let pss = || {
        supervisors()
            .iter()
            .map(|process| pss_bytes(process.pid))
            .sum::<u64>() as f64
    };
    let template = template(worker, &["ready"], ReadinessKind::Connect);
    let mut ours = Ours::start(ground, agent, false, None).await?;
    let (base, kernel) = (pss(), kernel_bytes()? as f64);
    ours.workers(few, &template, WorkerPhase::Ready).await?;
    let per_worker = (settled(pss) - base) / few as f64;
    ours.workers(many - few, &template, WorkerPhase::Ready)
        .await?;
    let grown = settled(pss) - base + kernel_bytes()? as f64 - kernel;
    ours.end().await?;
    Ok(Memory {
        base,
        per_worker,
        with_kernel: grown / many as f64,
    })
}

/// What it took to take workers over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adoption {
    /// Milliseconds from the new agent's start to the hello that lists all.
    pub(super) listed: f64,
    /// Milliseconds from there to the last word that one of them runs and is steered again.
    pub(super) steered: f64,
    pub(super) cpu_seconds: f64,
}

/// Kills the agent of so many workers, and starts the next one.
pub(super) async fn adoption(
    ground: &Ground,
    agent: &Path,
    worker: &str,
    count: usize,
) -> anyhow::Result<Adoption> {
    let template = template(worker, &["ready"], ReadinessKind::Connect);
    let mut ours = Ours::start(ground, agent, false, None).await?;
    let before: BTreeMap<_, _> = ours
        .workers(count, &template, WorkerPhase::Ready)
        .await?
        .iter()
        .map(|report| (incarnation(report), report.pid))
        .collect();
    let cpu = cpu_below(std::process::id());
    let started = ours.replace_agent()?;
    let mut listed = None;
    let mut left = before.clone();
    let mut steered = started;
    while !left.is_empty() {
        let (at, heard) = ours.puppet.next(PATIENCE).await?;
        let reports = match heard {
            crate::puppet::Heard::Hello(hello) => {
                anyhow::ensure!(
                    hello.workers.len() == count,
                    "the new agent lists {} workers",
                    hello.workers.len()
                );
                listed = Some(at);
                hello.workers
            }
            crate::puppet::Heard::Report(report) => vec![report],
            crate::puppet::Heard::FirstBeat | crate::puppet::Heard::OwnerExit(_) => continue,
        };
        for report in reports {
            anyhow::ensure!(
                report.death.is_none(),
                "a worker died while it was taken over: {report:?}"
            );
            let runs = matches!(report.phase(), WorkerPhase::Starting | WorkerPhase::Ready);
            // The same process as before: taken over, not started anew.
            if runs && report.adopted && left.get(&incarnation(&report)) == Some(&report.pid) {
                left.remove(&incarnation(&report));
                steered = at;
            }
        }
    }
    let adoption = Adoption {
        listed: listed.context("no hello")?.since(started).as_secs_f64() * 1e3,
        steered: steered.since(started).as_secs_f64() * 1e3,
        cpu_seconds: cpu_below(std::process::id())
            .saturating_sub(cpu)
            .as_secs_f64(),
    };
    ours.end().await?;
    Ok(adoption)
}

/// Milliseconds from the order to start a Python worker, from nothing or forked, to the report that it accepts
/// connections.
pub(super) async fn python(
    ground: &Ground,
    agent: &Path,
    python: &Path,
    forked: bool,
    times: usize,
) -> anyhow::Result<f64> {
    let script = ground.dir().join("worker.py");
    std::fs::write(
        &script,
        "import os, socket, signal\nimport grpc, numpy\n\
         server = socket.socket(socket.AF_UNIX)\n\
         server.bind(os.environ['TETHER_LISTEN'].removeprefix('unix:'))\n\
         server.listen()\nsignal.pause()\n",
    )?;
    let script = script.display().to_string();
    let imports = ["grpc", "numpy"].map(str::to_owned).to_vec();
    let template = Template {
        forked_from: forked.then_some(ForkedFrom { imports }),
        ..template(
            python.display().to_string(),
            &[&script],
            ReadinessKind::Connect,
        )
    };
    let mut ours = Ours::start(ground, agent, false, None).await?;
    if forked {
        // The first one waits for the imports.
        ours.workers(1, &template, WorkerPhase::Ready).await?;
    }
    let mut millis = Vec::new();
    for _ in 0..times {
        let ordered = BootClock.now();
        ours.workers(1, &template, WorkerPhase::Ready).await?;
        millis.push(ordered.elapsed_ms());
    }
    ours.end().await?;
    median(millis).context("nothing was measured")
}

trait Elapsed {
    fn elapsed_ms(self) -> f64;
}

impl Elapsed for tether_clock::Tick {
    fn elapsed_ms(self) -> f64 {
        BootClock.now().since(self).as_secs_f64() * 1e3
    }
}
