//! What an agent and its zygote have at one moment: memory, descriptors, threads, files, cgroups.

use std::fs;

use serde::Serialize;
use tether_tests::cgroups;

use crate::node::Node;

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Measure {
    /// Resident memory of the agent.
    pub(crate) agent_rss_kib: u64,
    /// Memory of the zygote, shared pages in shares.
    pub(crate) zygote_pss_kib: u64,
    pub(crate) agent_fds: usize,
    pub(crate) zygote_fds: usize,
    pub(crate) agent_threads: usize,
    /// Entries below the runtime directory.
    pub(crate) files: usize,
    /// Cgroups of workers.
    pub(crate) cgroups: usize,
    /// Processes beside agent and zygote.
    pub(crate) processes: usize,
}

impl Measure {
    /// Looks now.
    pub(crate) fn of(node: &Node) -> Self {
        let agent = node.agent.as_ref().map_or(0, |agent| agent.pid);
        let zygote = node.zygote().map_or(0, |zygote| zygote.pid);
        let holdings = node.holdings();
        Self {
            agent_rss_kib: kib(&format!("/proc/{agent}/status"), "VmRSS:"),
            zygote_pss_kib: kib(&format!("/proc/{zygote}/smaps_rollup"), "Pss:"),
            agent_fds: holdings.agent_fds,
            zygote_fds: holdings.zygote_fds,
            agent_threads: entries(&format!("/proc/{agent}/task")),
            files: below(&node.path("run")),
            cgroups: cgroups(&node.path("run"))
                .iter()
                .map(|cgroup| below_only_directories(cgroup))
                .sum(),
            processes: node.kin().len().saturating_sub(1),
        }
    }
}

fn kib(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

fn entries(dir: &str) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn below(dir: &std::path::Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            1 + if is_dir { below(&entry.path()) } else { 0 }
        })
        .sum()
}

fn below_only_directories(dir: &std::path::Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).count()
}
