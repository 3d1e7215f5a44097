//! What benchmarks share: one form for results, and what a process cost.

pub mod agent;
mod calls;
pub mod cores;
pub mod discovery;
pub mod etcd;
pub mod failover;
pub mod figure;
pub mod gateway;
pub mod ground;
pub mod isolation;
pub mod leases;
pub mod net;
pub mod peer;
pub mod processes;
pub mod proxies;
pub mod puppet;
pub mod scene;
mod table;
mod turns;

use std::{fs, io, path::Path, time::Duration};

use serde::Serialize;

/// One figure beside those of its peers.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    name: String,
    unit: &'static str,
    ours: f64,
    peers: std::collections::BTreeMap<String, f64>,
    /// Ours over the first peer's.
    ratio: f64,
    target: Option<f64>,
    met: Option<bool>,
}

impl Row {
    /// A figure of ours beside one peer's; with a target for the ratio of the two.
    pub fn new(
        name: &str,
        unit: &'static str,
        ours: f64,
        peer: (&str, f64),
        target: Option<f64>,
    ) -> Self {
        let ratio = ours / peer.1;
        Self {
            name: name.to_owned(),
            unit,
            ours,
            peers: [(peer.0.to_owned(), peer.1)].into(),
            ratio,
            target,
            met: target.map(|target| ratio <= target),
        }
    }

    /// For people.
    pub fn line(&self) -> String {
        let peers: Vec<_> = self
            .peers
            .iter()
            .map(|(name, value)| format!("{name} {value:.2}"))
            .collect();
        format!(
            "{:<44} ours {:.2} {}, {}, ratio {:.2}",
            self.name,
            self.ours,
            self.unit,
            peers.join(", "),
            self.ratio
        )
    }
}

/// All figures of one run.
#[derive(Debug, Serialize)]
pub struct Results<R = Row> {
    machine: String,
    rows: Vec<R>,
}

impl<R: Serialize> Results<R> {
    /// Results of this machine.
    pub fn new(rows: Vec<R>) -> Self {
        // Of the machine, not those that a bench keeps itself to.
        let cores = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = cores.lines().filter(|line| line.starts_with("processor"));
        let cores = cores.count();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            machine: format!("{cores} cores, Linux {}", kernel.trim()),
            rows,
        }
    }

    /// Writes them as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")
    }
}

/// Processor time a process has used so far.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // Fields 14 and 15 are user and system time; the first after the name is field 3.
    let ticks: u64 = after_name
        .split(' ')
        .skip(14 - 3)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // Linux tells them in hundredths of a second on every architecture.
    Ok(Duration::from_millis(ticks * 10))
}

/// Processor time that the threads of a process have used so far which still run, to the nanosecond.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time_of_threads(pid: u32) -> io::Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended since is left out.
        let times = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        let running = times
            .split(' ')
            .next()
            .and_then(|first| first.parse::<u64>().ok());
        nanos += running.unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory of a process in bytes.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    Ok(kib * 1024)
}
