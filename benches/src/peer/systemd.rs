//! systemd, as process 1 of a container made by systemd-nspawn with the unified hierarchy.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    Mode, Peer, Rate, Short, Stage, Venue, folders,
    room::{Room, output},
    until,
};
use crate::processes::{Process, cpu_below, living};

/// Debian's `systemd`.
#[derive(Debug, Clone, Copy)]
pub struct Systemd;

/// Units in one transaction of `systemctl start`.
const BATCH: usize = 200;

/// No delay, no limit and no further ties: what makes it fastest.
const UNIT: &str = "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n";

impl Systemd {
    /// Boots it with these units, by name and text.
    fn boot(venue: Venue<'_>, units: &[(&str, String)]) -> anyhow::Result<Room> {
        folders(venue.ground, "systemd")?;
        let folder = venue.root.join("etc/systemd/system");
        for (name, text) in units {
            fs::write(folder.join(name), text)?;
        }
        let mut nspawn = Command::new("systemd-nspawn");
        nspawn
            .args(["--quiet", "--register=no", "--keep-unit", "--boot"])
            .arg(format!("--directory={}", venue.root.display()))
            .arg(format!("--bind={}:/bench", venue.ground.dir().display()))
            .args([
                "--machine=tether-bench",
                "--console=pipe",
                "systemd.unit=basic.target",
                "quiet",
            ])
            // The machine may be on version 1; workers' trees are ended by what version 2 offers.
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stdout(fs::File::create(
                venue.ground.dir().join("systemd/console"),
            )?);
        let room = Room::start(venue.ground, nspawn)?;
        until(
            || ask(&room, &["is-active", "basic.target"]).ok(),
            Duration::from_millis(50),
        )
        .context("systemd does not come up")?;
        Ok(room)
    }

    fn worker(mode: Mode) -> String {
        let bound = "BindsTo=bench-owner.service\nAfter=bench-owner.service\n";
        let bound = if mode == Mode::Stubborn { bound } else { "" };
        let restart = if mode == Mode::Ready {
            "Restart=always\nRestartSec=0\n"
        } else {
            ""
        };
        format!(
            "{UNIT}{bound}[Service]\nExecStart=/bench/bench-worker {}\nKillSignal=SIGKILL\n{restart}\
             Environment=TETHER_LISTEN=unix:/bench/sockets/%i\n",
            mode.word()
        )
    }

    /// The process of the unit that workers are bound to.
    pub fn owner(stage: &Stage) -> Vec<Process> {
        let mut found = living(stage.room.pid());
        found.retain(|process| process.name == crate::ground::OWNER_NAME);
        found
    }
}

impl Peer for Systemd {
    fn name(&self) -> &'static str {
        "systemd"
    }

    fn start(&self, venue: Venue<'_>, mode: Mode, count: usize) -> anyhow::Result<Stage> {
        let owner = format!("{UNIT}[Service]\nExecStart=/bench/bench-owner wait\n");
        let room = Self::boot(
            venue,
            &[
                ("bench-owner.service", owner),
                ("bench-worker@.service", Self::worker(mode)),
            ],
        )?;
        let units: Vec<_> = (0..count)
            .map(|slot| format!("bench-worker@{slot}.service"))
            .collect();
        let mut line = vec!["start"];
        line.extend(units.iter().map(String::as_str));
        ask(&room, &line)?;
        Stage::new(room, venue.ground).settle(mode, count)
    }

    /// The better of two ways: transactions of many oneshot units, and units that restart without a delay.
    fn rate(
        &self,
        venue: Venue<'_>,
        short: Short,
        in_flight: usize,
        time: Duration,
    ) -> anyhow::Result<Rate> {
        let oneshot = format!(
            "{UNIT}[Service]\nType=oneshot\nExecStart={}\n",
            short.command()
        );
        let restarting = format!(
            "{UNIT}[Service]\nRestart=always\nRestartSec=0\nExecStart={}\n",
            short.command()
        );
        let room = Self::boot(
            venue,
            &[
                ("bench-once@.service", oneshot),
                ("bench-loop@.service", restarting),
            ],
        )?;
        let once = once(&room, time)?;
        let again = again(&room, in_flight, time)?;
        Ok(if once.per_second > again.per_second {
            once
        } else {
            again
        })
    }
}

fn once(room: &Room, time: Duration) -> anyhow::Result<Rate> {
    let units: Vec<_> = (0..BATCH)
        .map(|slot| format!("bench-once@{slot}.service"))
        .collect();
    let mut line = vec!["start"];
    line.extend(units.iter().map(String::as_str));
    let (cpu, start, mut count) = (cpu_below(room.pid()), Instant::now(), 0);
    while start.elapsed() < time {
        ask(room, &line)?;
        count += BATCH;
    }
    Ok(rate(room, count, start, cpu))
}

fn again(room: &Room, in_flight: usize, time: Duration) -> anyhow::Result<Rate> {
    let units: Vec<_> = (0..in_flight)
        .map(|slot| format!("bench-loop@{slot}.service"))
        .collect();
    let line = |words: &[&'static str]| -> Vec<String> {
        words
            .iter()
            .map(|&word| word.to_owned())
            .chain(units.iter().cloned())
            .collect()
    };
    let ask = |words: &[&'static str]| {
        let line = line(words);
        ask(room, &line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let restarts = || -> anyhow::Result<usize> {
        let said = ask(&["show", "--property=NRestarts", "--value"])?;
        Ok(said
            .lines()
            .filter_map(|line| line.parse::<usize>().ok())
            .sum())
    };
    ask(&["start"])?;
    let (cpu, start, before) = (cpu_below(room.pid()), Instant::now(), restarts()?);
    // What is measured is a rate over time, so this is the measure itself and waits for nothing.
    std::thread::sleep(time);
    let rate = rate(room, restarts()? - before, start, cpu);
    ask(&["stop"])?;
    Ok(rate)
}

fn rate(room: &Room, count: usize, start: Instant, cpu: Duration) -> Rate {
    Rate {
        per_second: count as f64 / start.elapsed().as_secs_f64(),
        cpu_seconds: cpu_below(room.pid()).saturating_sub(cpu).as_secs_f64(),
    }
}

/// Calls `systemctl` inside.
fn ask(room: &Room, line: &[&str]) -> anyhow::Result<String> {
    let children = living(room.pid());
    let leader = children.iter().find(|process| process.name == "systemd");
    let leader = leader.context("the container has no process 1")?.pid;
    let mut nsenter = Command::new("nsenter");
    nsenter
        .arg(format!("--target={leader}"))
        .args([
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--root",
            "--wd",
            "systemctl",
        ])
        .args(line)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    output(nsenter)
}
