//! A real BEAM as a unit of its own, beside workers that are units: what stops with it, what goes on, and what it is told.
//!
//! It is the application of `cargo xtask matrix beams`, spoken to through a FIFO that is its standard input.

use std::{path::Path, time::Instant};

use anyhow::{Context as _, ensure};
use tether_tests::ground::{Ground, Refused, Unready};

use super::{
    Row, application, gone,
    machine::{self, DEADLINE, Machine},
    no_units, ready, unit_of,
};

/// In the order they are played.
pub(crate) const ALL: &[Row] = &[
    Row {
        name: "systemctl stop of a BEAM",
        expected: "its worker goes on, and serves the next BEAM",
        play: |machine| Box::pin(stopped(machine)),
    },
    Row {
        name: "systemctl stop of a BEAM to which its workers are bound",
        expected: "the worker's unit has BindsTo=beam.service, and ends with it",
        play: |machine| Box::pin(stopped_bound(machine)),
    },
    Row {
        name: "kill -9 of a BEAM",
        expected: "its worker goes on, systemd starts the BEAM again, it reconnects to the same process",
        play: |machine| Box::pin(killed(machine)),
    },
    Row {
        name: "kill -9 of a BEAM to which its workers are bound",
        expected: "the worker's unit has BindsTo=beam.service, and ends with it; the next BEAM has another worker",
        play: |machine| Box::pin(killed_bound(machine)),
    },
    Row {
        name: "kill -9 of a BEAM's worker",
        expected: "the BEAM is told of the signal, another incarnation serves",
        play: |machine| Box::pin(killed_worker(machine)),
    },
    Row {
        name: "reboot of the machine",
        expected: "Tether and BEAM end in good order, nothing of before is left, the pool serves again",
        play: |machine| Box::pin(rebooted(machine)),
    },
];

/// Where Debian has them.
const LANGUAGES: [&str; 2] = ["/usr/lib/erlang", "/usr/lib/elixir"];
const BUILT: &str = "/opt/lab";
const SAID: &str = "/var/log/beam";
const EAR: &str = "/run/beam.in";

const UNIT: &str = "
[Unit]
After=tether.service
[Service]
ExecStart=/opt/beam.sh
ExecStopPost=/bin/sh -c 'echo $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS >> /var/log/beam-ends'
StandardOutput=append:/var/log/beam
Restart=on-failure
RestartSec=200ms
EnvironmentFile=-/etc/beam.env
Environment=PATH=/usr/lib/erlang/bin:/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 ERL_CRASH_DUMP_BYTES=0
Environment=TETHER_PORT_PROGRAM=WORKSPACE/target/debug/tether
Environment=LAB_GATEWAY=unix:/run/tether/gateway.sock LAB_OWNER=beam LAB_POOL=lab LAB_SIZE=1
Environment=LAB_MODE=supervised LAB_SUPERVISOR=systemd LAB_TIMEOUT=12000 LAB_INTERVAL=2000
Environment=LAB_PYTHON=/usr/bin/python3 LAB_WORKER=WORKSPACE/tests/src/beams/worker.py
Environment=LAB_SDK=WORKSPACE/clients/python:PACKAGES LAB_MARK=/tmp/beam
[Install]
WantedBy=multi-user.target
";

/// Boots a machine that has the BEAM and the application, and starts Tether there.
pub(crate) async fn boot() -> Result<Machine, Unready> {
    if let Some(missing) = LANGUAGES.iter().find(|path| !Path::new(path).is_dir()) {
        return Err(Refused(format!("no `{missing}`, as of Debian's package")).into());
    }
    let built = tempfile::tempdir().map_err(|error| Refused(error.to_string()))?;
    application::compile(built.path()).await?;
    let machine = Machine::boot(|ground| put(ground, built.path())).await?;
    // What it is copied from goes.
    machine.sh(&format!("cp -r {BUILT}.host {BUILT}")).await?;
    machine.start_tether().await?;
    Ok(machine)
}

fn put(ground: &mut Ground, built: &Path) {
    for language in LANGUAGES {
        ground.bind(Path::new(language), language);
    }
    ground.bind(built, &format!("{BUILT}.host"));
    let words = application::arguments(Path::new(BUILT));
    let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "#!/bin/sh -e\nrm -f {EAR}\nmkfifo {EAR}\n\
         # Open for writing too, so that it never ends.\n\
         exec 0<>{EAR}\nexec /usr/lib/elixir/bin/elixir {}\n",
        words.join(" ")
    );
    ground.script("opt/beam.sh", &script);
    ground.write("etc/systemd/system/beam.service", machine::filled(UNIT));
}

/// Starts the BEAM with a pool of its own, and tells the process of its worker.
async fn start(machine: &Machine, bound: bool) -> anyhow::Result<u64> {
    machine
        .write("/etc/beam.env", &format!("LAB_BOUND={bound}\n"))
        .await?;
    machine.sh("systemctl start beam").await?;
    until_ready(machine, 1).await?;
    worker(machine).await
}

/// Stops it, and removes its pool and what it has said.
async fn clear(machine: &Machine) -> anyhow::Result<()> {
    machine.sh("systemctl stop beam").await?;
    machine.tether(&["pool", "rm", "lab"]).await?;
    no_units(machine, "lab").await?;
    machine.sh(&format!("rm {SAID}")).await.map(drop)
}

/// The same where its workers are bound to it: tells the process of its worker, and to what its unit is bound.
async fn start_bound(machine: &Machine) -> anyhow::Result<(u64, String)> {
    let pid = start(machine, true).await?;
    let unit = unit_of(machine, &ready(machine, "lab/0", "").await?).await?;
    let binds_to = machine.show(&unit, "BindsTo").await?;
    ensure!(binds_to == "beam.service", "{unit} has BindsTo={binds_to}");
    Ok((pid, binds_to))
}

async fn clear_bound(machine: &Machine) -> anyhow::Result<()> {
    machine.sh("systemctl stop beam").await?;
    // Its pool may have gone with it.
    let _ = machine.tether(&["pool", "rm", "lab"]).await;
    no_units(machine, "lab").await?;
    machine.sh(&format!("rm {SAID}")).await.map(drop)
}

fn said(machine: &Machine, begin: &[&str]) -> Vec<String> {
    let said = machine.read(SAID);
    let begins = |line: &&str| begin.iter().any(|begin| line.starts_with(begin));
    let lines = said.lines().filter(begins);
    lines.map(str::to_owned).collect()
}

/// Waits until a line that begins in one of these ways was said so often.
async fn until_said(machine: &Machine, begin: &[&str], times: usize) -> anyhow::Result<String> {
    let last = machine
        .until(&format!("the BEAM says one of {begin:?}"), async || {
            let said = said(machine, begin);
            (said.len() >= times).then(|| said.last().cloned())?
        })
        .await;
    last.with_context(|| format!("the BEAM has said: {}", machine.read(SAID)))
}

/// Waits until so many BEAMs have had their pool ready.
async fn until_ready(machine: &Machine, beams: usize) -> anyhow::Result<()> {
    until_said(machine, &["ready"], beams).await.map(drop)
}

/// Tells the BEAM what to do, and waits for its answer.
async fn ask(machine: &Machine, line: &str, begin: &[&str]) -> anyhow::Result<String> {
    let before = said(machine, begin).len();
    machine.sh(&format!("echo {line} > {EAR}")).await?;
    until_said(machine, begin, before + 1).await
}

/// The process that the BEAM has for its worker.
async fn worker(machine: &Machine) -> anyhow::Result<u64> {
    let line = ask(machine, "workers", &["workers "]).await?;
    let pid = line.split(' ').nth(1).and_then(|pid| pid.parse().ok());
    pid.context("it has no worker")
}

/// Who answers the BEAM's calls, after those that find nobody.
async fn serves(machine: &Machine) -> anyhow::Result<String> {
    let start = Instant::now();
    loop {
        let who = ask(machine, "serve", &["serves ", "error "]).await?;
        if who.starts_with("serves ") {
            return Ok(who);
        }
        ensure!(start.elapsed() < DEADLINE, "a call ends with `{who}`");
    }
}

async fn lives(machine: &Machine, pid: u64) -> anyhow::Result<()> {
    let there = machine.sh(&format!("test -e /proc/{pid}")).await;
    there.map(drop).context("the worker has ended")
}

async fn stopped(machine: &Machine) -> anyhow::Result<String> {
    let pid = start(machine, false).await?;
    let who = serves(machine).await?;
    machine.sh("systemctl stop beam").await?;
    lives(machine, pid).await?;
    machine.sh("systemctl start beam").await?;
    until_ready(machine, 2).await?;
    let after = worker(machine).await?;
    ensure!(after == pid, "process {after} after {pid}");
    let now = serves(machine).await?;
    ensure!(now == who, "`{now}` after `{who}`");
    clear(machine).await?;
    Ok(format!("process {pid} went on, and serves the next BEAM"))
}

async fn stopped_bound(machine: &Machine) -> anyhow::Result<String> {
    let (pid, binds_to) = start_bound(machine).await?;
    let start = Instant::now();
    machine.sh("systemctl stop beam").await?;
    gone(machine, &pid.into()).await?;
    let took = start.elapsed();
    clear_bound(machine).await?;
    Ok(format!(
        "BindsTo={binds_to}; gone {:.1} s after the stop was asked for",
        took.as_secs_f64()
    ))
}

async fn killed(machine: &Machine) -> anyhow::Result<String> {
    let pid = start(machine, false).await?;
    let who = serves(machine).await?;
    let start = Instant::now();
    machine
        .sh("systemctl kill -s KILL --kill-whom=main beam")
        .await?;
    until_ready(machine, 2).await?;
    let took = start.elapsed();
    let restarts = machine.show("beam", "NRestarts").await?;
    ensure!(restarts == "1", "systemd counts {restarts} restarts");
    let after = worker(machine).await?;
    ensure!(after == pid, "process {after} after {pid}");
    let now = serves(machine).await?;
    ensure!(now == who, "`{now}` after `{who}`");
    clear(machine).await?;
    Ok(format!(
        "process {pid} went on; the next BEAM has it {:.1} s after the kill",
        took.as_secs_f64()
    ))
}

async fn killed_bound(machine: &Machine) -> anyhow::Result<String> {
    let (pid, binds_to) = start_bound(machine).await?;
    let start = Instant::now();
    machine
        .sh("systemctl kill -s KILL --kill-whom=main beam")
        .await?;
    gone(machine, &pid.into()).await?;
    let took = start.elapsed();
    until_ready(machine, 2).await?;
    let after = worker(machine).await?;
    ensure!(after != pid, "the worker is still process {pid}");
    clear_bound(machine).await?;
    Ok(format!(
        "BindsTo={binds_to}; gone {:.1} s after the kill; the next BEAM has process {after}",
        took.as_secs_f64()
    ))
}

async fn killed_worker(machine: &Machine) -> anyhow::Result<String> {
    let pid = start(machine, false).await?;
    let who = serves(machine).await?;
    let is_ready = ["event worker_ready "];
    let times = said(machine, &is_ready).len();
    let start = Instant::now();
    machine.sh(&format!("kill -9 {pid}")).await?;
    let event = until_said(machine, &["event worker_down "], 1).await?;
    let told = start.elapsed();
    ensure!(event.contains("sigkill"), "it was told `{event}`");
    until_said(machine, &is_ready, times + 1).await?;
    let now = serves(machine).await?;
    ensure!(now != who, "it is `{now}` again");
    let served = start.elapsed();
    clear(machine).await?;
    Ok(format!(
        "`{event}` {} ms after the kill; `{now}` after {:.1} s",
        told.as_millis(),
        served.as_secs_f64()
    ))
}

async fn rebooted(machine: &mut Machine) -> anyhow::Result<String> {
    start(machine, false).await?;
    let before = ready(machine, "lab/0", "").await?;
    machine
        .sh("systemctl enable tether beam; rm -f /var/log/*-ends")
        .await?;
    let start = Instant::now();
    machine.reboot().await?;
    let up = start.elapsed();
    for unit in ["tether", "beam"] {
        let end = machine.read(&format!("/var/log/{unit}-ends"));
        ensure!(end == "success exited 0\n", "{unit} ended so: {end}");
    }
    until_ready(machine, 2).await?;
    serves(machine).await?;
    let took = start.elapsed();
    let after = ready(machine, "lab/0", "").await?;
    ensure!(before["worker"] != after["worker"], "{before} is {after}");
    let units = machine
        .sh("systemctl list-units --all --plain --no-legend 'tether-lab.*' | wc -l")
        .await?;
    ensure!(units == "1", "{units} units of the pool");
    clear(machine).await?;
    Ok(format!(
        "both ended with status 0; up after {:.1} s, served after {:.1} s by {} alone",
        up.as_secs_f64(),
        took.as_secs_f64(),
        after["worker"]
    ))
}
