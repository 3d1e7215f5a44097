//! A systemd that hangs, or its bus: it says nothing of the units that it has, and keeps none of them from ending.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;
use tether_tests::ground::Unready;

use super::{Row, WRITTEN, machine::Machine, no_units, ready, text};

/// In the order they are played.
pub(crate) const ALL: &[Row] = &[
    Row {
        name: "a bus that hangs",
        expected: "units go on, and end in time when they are asked to",
        play: |machine| Box::pin(hangs(machine, Who::Bus)),
    },
    Row {
        name: "a systemd that hangs",
        expected: "the same",
        play: |machine| Box::pin(hangs(machine, Who::Systemd)),
    },
];

/// What is waited for longest is an answer to one call; this is longer.
const HANGS: Duration = Duration::from_secs(15);

/// The grace of the template, and a second for the look itself, on a loaded machine.
const ENDED_WITHIN: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy)]
enum Who {
    Bus,
    Systemd,
}

impl Who {
    async fn hang(self, machine: &Machine, hangs: bool) -> anyhow::Result<()> {
        match self {
            Self::Bus => {
                let signal = if hangs { "STOP" } else { "CONT" };
                let line = format!("systemctl kill --signal={signal} dbus.service");
                machine.sh(&line).await.map(drop)
            }
            Self::Systemd => machine.hang(hangs),
        }
    }
}

/// Boots a machine with units that an administrator has written, and starts Tether there.
pub(crate) async fn boot() -> Result<Machine, Unready> {
    let machine = Machine::boot(|_| {}).await?;
    machine.write_service().await?;
    machine.start_tether().await?;
    Ok(machine)
}

async fn hangs(machine: &Machine, who: Who) -> anyhow::Result<String> {
    machine.apply("written", WRITTEN).await?;
    let before = kept(machine, "written/0").await?;
    kept(machine, "written/1").await?;
    let service = machine.show("worker@1.service", "MainPID").await?;

    who.hang(machine, true).await?;
    let seen = alone(machine, &before, &service).await;
    who.hang(machine, false).await?;

    let seen = seen?;
    let state = machine
        .until("it is stopped", async || {
            let state = machine.show("worker@1.service", "ActiveState").await.ok()?;
            matches!(state.as_str(), "inactive" | "failed").then_some(state)
        })
        .await?;
    no_units(machine, "written").await?;
    Ok(format!("{seen}; {state} after that"))
}

/// It is ready, and its keeper has seen its process: from then on there is something to go by.
async fn kept(machine: &Machine, worker: &str) -> anyhow::Result<Value> {
    machine
        .until("its status names its process", async || {
            let now = ready(machine, worker, "").await.ok()?;
            text(&now, "status").contains(", process ").then_some(now)
        })
        .await
}

/// Its worker goes on, and ends when it is asked to, while nobody answers for the unit.
async fn alone(machine: &Machine, before: &Value, service: &str) -> anyhow::Result<String> {
    let start = Instant::now();
    machine
        .until("its status says so", async || {
            let now = ready(machine, "written/0", "").await.ok()?;
            let status = text(&now, "status");
            status.contains("systemd does not answer").then_some(())
        })
        .await?;
    let told = start.elapsed();
    let mut calls = 0;
    while start.elapsed() < HANGS {
        machine.call("written").await?;
        calls += 1;
    }
    let after = ready(machine, "written/0", "").await?;
    let same = |key: &str| before[key] == after[key];
    ensure!(same("worker") && same("pid"), "{before} became {after}");

    let asked = Instant::now();
    machine.tether(&["pool", "rm", "written"]).await?;
    ended(machine, service).await?;
    let service_ended = asked.elapsed();
    ended(machine, &before["pid"].to_string()).await?;
    let keeper_ended = asked.elapsed();
    ensure!(
        keeper_ended < ENDED_WITHIN,
        "its keeper lived for {keeper_ended:?}"
    );
    Ok(format!(
        "told after {:.1} s, the same process for {calls} calls; asked to end, it was gone after {:.1} s, its keeper after {:.1} s",
        told.as_secs_f64(),
        service_ended.as_secs_f64(),
        keeper_ended.as_secs_f64()
    ))
}

/// Waits until a process has ended; who is to reap it may hang.
async fn ended(machine: &Machine, pid: &str) -> anyhow::Result<()> {
    machine
        .until(&format!("process {pid} has ended"), async || {
            let line = format!("! grep -qs '^State:[[:space:]]*[^ZX[:space:]]' /proc/{pid}/status");
            machine.sh(&line).await.ok()
        })
        .await
        .map(drop)
}
