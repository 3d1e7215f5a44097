//! What is tried on a kernel with cgroups of version 2: limits that the kernel keeps, in what systemd has delegated.

use std::time::Duration;

use anyhow::Context as _;
use tether_tests::ground::{Ground, Said, Unready, uml};

use super::files;

/// Longest time for all of it, with the boot.
const DEADLINE: Duration = Duration::from_secs(240);

/// Says what it sees, line by line, each with a word in front.
const SCRIPT: &str = include_str!("kernel.sh");

/// One claim, judged by what was said.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) expected: &'static str,
    pub(super) judge: fn(&Said) -> anyhow::Result<String>,
}

/// In the order they are looked at.
pub(super) const ALL: &[Row] = &[
    Row {
        name: "a worker has a cgroup of its own, apart from the agent's unit",
        expected: "G1, below tether-workers.slice",
        judge: |said| {
            has(said, "level", "G1")?;
            has(said, "group", "/tether.slice/tether-workers.slice/tether-")
        },
    },
    Row {
        name: "its limit is the kernel's to keep",
        expected: "memory.max of 96 MiB, and all die together",
        judge: |said| {
            has(said, "oom-group", "1")?;
            has(said, "max", "100663296")
        },
    },
    Row {
        name: "a worker out of memory dies with its daemon, and the death says why",
        expected: "OOM_KILLED with the peak of its tree; its daemon gone",
        judge: |said| {
            has(said, "daemon", "gone")?;
            let event: serde_json::Value =
                serde_json::from_str(&has(said, "death", "OOM_KILLED")?)?;
            let peak = event["death"]["measures"]["peak_memory_bytes"].as_u64();
            let peak = peak.context("no peak")?;
            Ok(format!("OOM_KILLED at {} MiB, its daemon gone", peak >> 20))
        },
    },
    Row {
        name: "the agent does not die of its worker's death",
        expected: "the same process, no restart",
        judge: |said| has(said, "agent", "same, 0 restarts, active, success"),
    },
    Row {
        name: "a worker outlives a restart of its agent in its cgroup",
        expected: "the same process and cgroup",
        judge: |said| has(said, "restarted", "same process, same group"),
    },
    Row {
        name: "what cgroup.kill ends is a worker with its daemon, and another is started",
        expected: "both gone, and another started",
        judge: |said| has(said, "cgroup-kill", "both gone, another started"),
    },
    Row {
        name: "the stop of all leaves nothing on a kernel with cgroups of version 2",
        expected: "nothing",
        judge: |said| has(said, "left", "nothing"),
    },
];

/// The line that begins with this word says so.
fn has(said: &Said, word: &str, what: &str) -> anyhow::Result<String> {
    let mut lines = said.out.lines().filter_map(|line| line.split_once(": "));
    let line = lines.find(|line| line.0 == word).map(|line| line.1);
    match line {
        Some(line) if line.contains(what) => Ok(line.to_owned()),
        Some(line) => anyhow::bail!("`{word}` is `{line}`"),
        None => anyhow::bail!("`{word}` was not seen: {}{}", said.out, said.err),
    }
}

/// Boots it, and has it say what it sees.
pub(super) async fn run() -> Result<Said, Unready> {
    let mut ground = Ground::new().await?;
    files::put(&mut ground);
    ground.script(
        "usr/local/bin/install-tether",
        &format!("#!/bin/sh -e\n{}", files::install()),
    );
    ground.write("opt/end.sh", files::commands("What outlives what"));
    uml(ground, SCRIPT, DEADLINE).await
}
