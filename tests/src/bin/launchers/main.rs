//! Workers that systemd has, on a booted Debian 12: what was promised of the launcher `systemd`, beside what was seen.

#[path = "../../beams/application.rs"]
mod application;
mod beam;
mod machine;
mod silence;

use std::{path::PathBuf, pin::Pin, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Parser;
use machine::Machine;
use serde_json::Value;
use tether_tests::{
    evidence::{Evidence, Report},
    ground::Refused,
};

/// Deploys, breaks what was deployed, and looks.
#[derive(Debug, Parser)]
struct Args {
    /// Only rows whose names contain one of these, separated by `|`, with those they go on from.
    #[arg(long, default_value = "")]
    only: String,
    /// Writes the evidence to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

type Played<'a> = Pin<Box<dyn Future<Output = anyhow::Result<String>> + 'a>>;

/// What is done, and what is to follow.
struct Row {
    name: &'static str,
    expected: &'static str,
    play: for<'a> fn(&'a mut Machine) -> Played<'a>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    let wanted = |rows: &[Row]| {
        let mut names = args.only.split('|');
        names.any(|text| rows.iter().any(|row| row.name.contains(text)))
    };
    if wanted(ALL) {
        report.scene("Workers that systemd has");
        play(ALL, Machine::boot(|_| {}).await, &mut report).await;
    }
    if wanted(silence::ALL) {
        report.scene("A systemd that does not answer");
        play(silence::ALL, silence::boot().await, &mut report).await;
    }
    if wanted(beam::ALL) {
        report.scene("A BEAM beside them, in a unit of its own");
        play(beam::ALL, beam::boot().await, &mut report).await;
    }
    report.finish(args.json.as_deref())
}

/// Plays rows on a machine of their own.
async fn play(rows: &[Row], machine: Result<Machine, Refused>, report: &mut Report) {
    let mut machine = match machine {
        Ok(machine) => machine,
        Err(Refused(why)) => {
            let why = format!("no machine with systemd: {why}");
            return report.skip(rows.iter().map(|row| row.name), &why);
        }
    };
    for row in rows {
        report.add(match (row.play)(&mut machine).await {
            Ok(seen) => Evidence::new(row.name, row.expected, seen, true),
            Err(error) => Evidence::new(row.name, row.expected, format!("{error:#}"), false),
        });
    }
    if let Err(error) = machine.power_off().await {
        report.add(Evidence::failed(
            "the machine powers off",
            format!("{error:#}"),
        ));
    }
}

/// In the order they are played: each goes on where the last one ended.
const ALL: &[Row] = &[
    Row {
        name: "a pool with launcher systemd serves",
        expected: "its worker in a unit of its own, a call answered",
        play: |machine| Box::pin(serves(machine)),
    },
    Row {
        name: "the unit has the template's limits",
        expected: "MemoryMax, CPUQuota and TasksMax",
        play: |machine| Box::pin(limits(machine)),
    },
    Row {
        name: "kill -9 of the worker",
        expected: "another incarnation, the cause told",
        play: |machine| Box::pin(killed_worker(machine)),
    },
    Row {
        name: "kill -9 of the unit's main process",
        expected: "nothing left of it, another incarnation",
        play: |machine| Box::pin(killed_shim(machine)),
    },
    Row {
        name: "systemctl stop of the unit",
        expected: "an order of an operator, another incarnation",
        play: |machine| Box::pin(stopped_unit(machine)),
    },
    Row {
        name: "restart of Tether, whose own unit is killed whole",
        expected: "the same worker, adopted",
        play: |machine| Box::pin(adopted(machine, "unit/0")),
    },
    Row {
        name: "Tether gone for longer than its lease",
        expected: "no worker when the lease is over",
        play: |machine| Box::pin(lease_over(machine)),
    },
    Row {
        name: "a pool that is removed",
        expected: "no unit left",
        play: |machine| Box::pin(removed(machine, "unit")),
    },
    Row {
        name: "kill -9 of an owner",
        expected: "its worker goes on",
        play: |machine| Box::pin(owner_killed(machine, false)),
    },
    Row {
        name: "kill -9 of an owner to which its workers are bound",
        expected: "the unit has BindsTo= the owner's, and ends with it",
        play: |machine| Box::pin(owner_killed(machine, true)),
    },
    Row {
        name: "units that an administrator has written",
        expected: "started, ready, a call answered",
        play: |machine| Box::pin(templates(machine)),
    },
    Row {
        name: "kill -9 of such a unit's main process",
        expected: "systemd starts it again; another incarnation, the cause told",
        play: |machine| Box::pin(killed_service(machine)),
    },
    Row {
        name: "restart of Tether beside them",
        expected: "the same process, adopted",
        play: |machine| Box::pin(adopted(machine, "written/0")),
    },
    Row {
        name: "kill -9 of agent, shim and keeper at once",
        expected: "systemd stops the unit that they stood for",
        play: |machine| Box::pin(killed_keeper(machine)),
    },
    Row {
        name: "a pool of them that is removed",
        expected: "they are stopped",
        play: |machine| Box::pin(removed_services(machine)),
    },
    Row {
        name: "connect only",
        expected: "neither started nor stopped by Tether",
        play: |machine| Box::pin(connected(machine)),
    },
];

/// A worker as `tether ps` has it, once it is ready in another incarnation than this.
async fn ready(machine: &Machine, worker: &str, not: &str) -> anyhow::Result<Value> {
    let what = format!("{worker} is ready, and not {not}");
    machine
        .until(&what, async || {
            let all = machine.json(&["ps"]).await.ok()?;
            all.as_array()?
                .iter()
                .find(|row| {
                    let name = text(row, "worker");
                    row["phase"] == "ready" && name.starts_with(worker) && name != not
                })
                .cloned()
        })
        .await
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

/// What is said of the last death of a worker.
fn death(row: &Value) -> String {
    let death = &row["last_death"];
    let signal = death["signal"].as_i64();
    let signal = signal.map_or_else(String::new, |signal| format!(" {signal}"));
    format!("{}{signal} {}", text(death, "cause"), text(death, "detail"))
        .trim_end()
        .to_owned()
}

/// The unit of a worker that lives.
async fn unit_of(machine: &Machine, row: &Value) -> anyhow::Result<String> {
    let name = text(row, "worker").replacen('/', ".", 1);
    let line = format!("systemctl list-units --plain --no-legend 'tether-{name}.*.service'");
    let units = machine.sh(&line).await?;
    let unit = units.split_whitespace().next();
    Ok(unit
        .with_context(|| format!("no unit of {name}"))?
        .to_owned())
}

async fn serves(machine: &Machine) -> anyhow::Result<String> {
    machine.start_tether().await?;
    machine.apply("unit", UNIT).await?;
    let row = ready(machine, "unit/0", "").await?;
    let unit = unit_of(machine, &row).await?;
    let active = machine.show(&unit, "ActiveState").await?;
    let slice = machine.show(&unit, "Slice").await?;
    ensure!(
        (active.as_str(), slice.as_str()) == ("active", "tether-workers.slice"),
        "{unit} is {active} in {slice}"
    );
    machine.call("unit").await?;
    Ok(format!("{unit} in {slice}"))
}

async fn limits(machine: &Machine) -> anyhow::Result<String> {
    let unit = unit_of(machine, &ready(machine, "unit/0", "").await?).await?;
    let mut seen = Vec::new();
    for (property, wanted) in [
        ("MemoryMax", "1073741824"),
        ("CPUQuotaPerSecUSec", "1.500000s"),
        ("TasksMax", "66"),
    ] {
        let has = machine.show(&unit, property).await?;
        let same = has == wanted || has == "1.5s" && property == "CPUQuotaPerSecUSec";
        ensure!(same, "{property} is {has}");
        seen.push(format!("{property}={has}"));
    }
    Ok(seen.join(" "))
}

async fn killed_worker(machine: &Machine) -> anyhow::Result<String> {
    let before = ready(machine, "unit/0", "").await?;
    machine.sh(&format!("kill -9 {}", before["pid"])).await?;
    let after = ready(machine, "unit/0", text(&before, "worker")).await?;
    let why = death(&after);
    ensure!(why.contains("SIGNALED") && why.contains('9'), "{why}");
    machine.call("unit").await?;
    Ok(format!("{} after {why}", text(&after, "worker")))
}

async fn killed_shim(machine: &Machine) -> anyhow::Result<String> {
    let before = ready(machine, "unit/0", "").await?;
    let unit = unit_of(machine, &before).await?;
    machine
        .sh(&format!("kill -9 $(systemctl show -P MainPID {unit})"))
        .await?;
    let after = ready(machine, "unit/0", text(&before, "worker")).await?;
    let why = death(&after);
    ensure!(why.contains("SIGNALED"), "{why}");
    gone(machine, &before["pid"]).await?;
    let state = machine.show(&unit, "LoadState").await?;
    ensure!(state == "not-found", "{unit} is {state}");
    Ok(why)
}

async fn gone(machine: &Machine, pid: &Value) -> anyhow::Result<()> {
    machine
        .until(&format!("process {pid} is gone"), async || {
            let there = machine.sh(&format!("test ! -e /proc/{pid}")).await;
            there.ok()
        })
        .await
        .map(drop)
}

async fn stopped_unit(machine: &Machine) -> anyhow::Result<String> {
    let before = ready(machine, "unit/0", "").await?;
    let unit = unit_of(machine, &before).await?;
    machine.sh(&format!("systemctl stop {unit}")).await?;
    let after = ready(machine, "unit/0", text(&before, "worker")).await?;
    let why = death(&after);
    ensure!(why.contains("ORDERED_BY_OPERATOR"), "{why}");
    Ok(why)
}

async fn adopted(machine: &Machine, worker: &str) -> anyhow::Result<String> {
    let before = ready(machine, worker, "").await?;
    let pool = worker.split('/').next().unwrap_or_default();
    machine.sh("systemctl kill -s KILL tether").await?;
    machine.start_tether().await?;
    let after = ready(machine, worker, "").await?;
    let same = |key: &str| before[key] == after[key];
    ensure!(same("worker") && same("pid"), "{before} became {after}");
    machine.call(pool).await?;
    Ok(format!(
        "{}, process {}",
        text(&after, "worker"),
        after["pid"]
    ))
}

async fn lease_over(machine: &Machine) -> anyhow::Result<String> {
    let before = ready(machine, "unit/0", "").await?;
    machine.sh("systemctl kill -s KILL tether").await?;
    let killed = std::time::Instant::now();
    gone(machine, &before["pid"]).await?;
    let took = killed.elapsed();
    // A second for the look itself, on a loaded machine.
    let most = machine::NODE_TTL + Duration::from_secs(1);
    ensure!(took < most, "it lived for {took:?}");
    machine.start_tether().await?;
    let after = ready(machine, "unit/0", text(&before, "worker")).await?;
    let why = death(&after);
    ensure!(why.contains("LEASE_EXPIRED"), "{why}");
    Ok(format!("gone after {:.1} s: {why}", took.as_secs_f64()))
}

async fn removed(machine: &Machine, pool: &str) -> anyhow::Result<String> {
    machine.tether(&["pool", "rm", pool]).await?;
    no_units(machine, pool).await
}

async fn no_units(machine: &Machine, pool: &str) -> anyhow::Result<String> {
    machine
        .until("no unit of it", async || {
            let line = format!("systemctl list-units --all --plain --no-legend 'tether-{pool}.*'");
            let left = machine.sh(&line).await.ok()?;
            left.is_empty().then_some("none".to_owned())
        })
        .await
}

/// An owner in a service of its own, killed.
async fn owner_killed(machine: &Machine, bound: bool) -> anyhow::Result<String> {
    let pool = if bound { "bound" } else { "free" };
    let policy = format!("[pool.{pool}.policy]\nbound = {bound}\n");
    let file = UNIT.replace("pool.unit", &format!("pool.{pool}")) + &policy;
    machine.start_owner(pool, &file).await?;
    let row = ready(machine, &format!("{pool}/0"), "").await?;
    let unit = unit_of(machine, &row).await?;
    let binds_to = machine.show(&unit, "BindsTo").await?;
    let wanted = if bound { "owner-bound.service" } else { "" };
    ensure!(binds_to == wanted, "{unit} has BindsTo={binds_to}");
    machine
        .sh(&format!("systemctl kill -s KILL owner-{pool}"))
        .await?;
    let seen = if bound {
        gone(machine, &row["pid"]).await?;
        let events = machine.tether(&["events"]).await?;
        let line = events.lines().find(|line| line.contains("OWNER_GONE"));
        line.context("no death with OWNER_GONE")?.trim().to_owned()
    } else {
        machine
            .until("Tether knows", async || {
                let events = machine.tether(&["events"]).await.ok()?;
                events.contains("owner-free").then_some(())
            })
            .await?;
        machine.call(pool).await?;
        let after = ready(machine, "free/0", "").await?;
        ensure!(after["pid"] == row["pid"], "{row} became {after}");
        format!("{}, process {}", text(&after, "worker"), after["pid"])
    };
    if bound {
        // Its pool went with it.
        no_units(machine, pool).await?;
    } else {
        removed(machine, pool).await?;
    }
    Ok(seen)
}

async fn templates(machine: &Machine) -> anyhow::Result<String> {
    machine.write_service().await?;
    machine.apply("written", WRITTEN).await?;
    let first = ready(machine, "written/0", "").await?;
    ready(machine, "written/1", "").await?;
    for unit in ["worker@1.service", "worker@2.service"] {
        let active = machine.show(unit, "ActiveState").await?;
        ensure!(active == "active", "{unit} is {active}");
    }
    machine.call("written").await?;
    let status = text(&first, "status");
    ensure!(
        status.contains("worker@1.service"),
        "its status is `{status}`"
    );
    Ok(status.to_owned())
}

async fn killed_service(machine: &Machine) -> anyhow::Result<String> {
    let before = ready(machine, "written/0", "").await?;
    let pid = machine.show("worker@1.service", "MainPID").await?;
    machine.sh(&format!("kill -9 {pid}")).await?;
    let after = ready(machine, "written/0", text(&before, "worker")).await?;
    let why = death(&after);
    ensure!(
        why.contains("SIGNALED") && why.contains("Result=signal"),
        "{why}"
    );
    // Whatever systemd was about to begin by itself was stopped, and this is the start of the next incarnation.
    let restarts = machine.show("worker@1.service", "NRestarts").await?;
    ensure!(restarts == "0", "systemd counts {restarts} restarts");
    machine.call("written").await?;
    Ok(why)
}

async fn killed_keeper(machine: &Machine) -> anyhow::Result<String> {
    let row = ready(machine, "written/0", "").await?;
    let unit = unit_of(machine, &row).await?;
    let line = format!("systemctl kill -s KILL tether; systemctl kill -s KILL {unit}");
    machine.sh(&line).await?;
    machine
        .until("worker@1 is stopped", async || {
            let state = machine.show("worker@1.service", "ActiveState").await.ok()?;
            (state == "inactive").then_some(())
        })
        .await?;
    machine.start_tether().await?;
    let after = ready(machine, "written/0", text(&row, "worker")).await?;
    machine.call("written").await?;
    Ok(format!("stopped; then {}", text(&after, "worker")))
}

async fn removed_services(machine: &Machine) -> anyhow::Result<String> {
    machine.tether(&["pool", "rm", "written"]).await?;
    machine
        .until("both are stopped", async || {
            let line = "systemctl is-active worker@1 worker@2 || true";
            let states = machine.sh(line).await.ok()?;
            let stopped = states.lines().all(|state| state == "inactive");
            stopped.then_some(states.replace('\n', ", "))
        })
        .await
}

async fn connected(machine: &Machine) -> anyhow::Result<String> {
    machine.apply("joined", JOINED).await?;
    machine
        .until("it waits for its unit", async || {
            let all = machine.json(&["ps", "joined"]).await.ok()?;
            (all[0]["phase"] == "starting").then_some(())
        })
        .await?;
    let state = machine.show("worker@7.service", "ActiveState").await?;
    ensure!(state == "inactive", "it was started");
    machine.sh("systemctl start worker@7").await?;
    ready(machine, "joined/0", "").await?;
    machine.call("joined").await?;
    let pid = machine.show("worker@7.service", "MainPID").await?;
    removed(machine, "joined").await?;
    let after = machine.show("worker@7.service", "MainPID").await?;
    ensure!(pid == after, "process {pid} is {after}");
    machine
        .sh("systemctl stop worker@7")
        .await
        .context("it can be stopped")?;
    Ok(format!("process {pid} before and after"))
}

const UNIT: &str = "
[template.digits]
command = '/usr/bin/python3'
args = ['WORKSPACE/examples/digits/worker.py']
env = { PYTHONPATH = 'PACKAGES' }
stop = { grace = '2s' }
limits = { memory = '1GiB', cpus = 1.5, pids = 64 }
[pool.unit]
template = 'digits'
mode = 'supervised'
size = 1
";

const WRITTEN: &str = "
[template.digits]
stop = { grace = '3s' }
[template.digits.service]
name = 'worker@{1..2}.service'
address = 'unix:/run/worker-{instance}.sock'
[pool.written]
template = 'digits'
mode = 'supervised'
size = 2
";

const JOINED: &str = "
[template.digits]
[template.digits.service]
name = 'worker@{7..7}.service'
address = 'unix:/run/worker-{instance}.sock'
connect_only = true
[pool.joined]
template = 'digits'
mode = 'supervised'
size = 1
";
