//! How much memory a worker's whole tree takes: each process's share of what it maps (PSS), so that what
//! several of them share counts once.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// How often it is measured where the template wants to know. Each look takes the kernel some milliseconds
/// for each GiB.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// Where a worker's processes are found.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    /// All of them, where it has a cgroup of its own.
    pub(crate) cgroup: Option<PathBuf>,
    /// The first of them.
    pub(crate) pid: u32,
}

/// The PSS of all processes of the tree, in bytes; 0 where there is none. What its cgroup counts, where no process may be
/// looked into: those of another user, by an agent without CAP_SYS_PTRACE. Reads files: not to be called where others wait.
pub(crate) fn pss_bytes(tree: &Tree) -> u64 {
    let pids = match &tree.cgroup {
        Some(cgroup) => members(cgroup),
        None => descendants(tree.pid),
    };
    let sum: u64 = pids.into_iter().map(pss_of).sum();
    match &tree.cgroup {
        Some(cgroup) if sum == 0 => counted(cgroup).unwrap_or(0),
        _ => sum,
    }
}

fn counted(cgroup: &Path) -> Option<u64> {
    let text = fs::read_to_string(cgroup.join("memory.current")).ok()?;
    text.trim().parse().ok()
}

/// Members of a cgroup and of what the worker made below it.
fn members(cgroup: &Path) -> Vec<u32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = text.lines().filter_map(|pid| pid.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(members(&entry.path()));
        }
    }
    pids
}

/// A process and all below it.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(
                children
                    .split_ascii_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    found
}

fn pss_of(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_child_that_takes_memory_counts() {
        let script = "import os, time\nif os.fork() == 0:\n    held = bytearray(b'x' * (32 << 20))\n    print('held', flush=True)\ntime.sleep(60)\n";
        let mut parent = Command::new("python3")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let tree = Tree {
            cgroup: None,
            pid: parent.id(),
        };

        let all = pss_bytes(&tree);
        let [own, child] = descendants(parent.id())[..] else {
            panic!("one child is expected");
        };

        assert_eq!(own, parent.id());
        assert!(all > 32 << 20, "{all}");
        assert!(pss_of(own) < 32 << 20);
        for pid in [child, own] {
            let raw = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            let flags = rustix::process::PidfdFlags::empty();
            let pidfd = rustix::process::pidfd_open(raw, flags).unwrap();
            rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).unwrap();
        }
        parent.wait().unwrap();
        assert_eq!(pss_bytes(&tree), 0);
    }
}
