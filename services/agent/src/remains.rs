//! What is left of a worker when its shim is gone: found, killed, and seen gone before its death is
//! reported, so that nothing lives twice.
//!
//! Members of its cgroup are its remains for certain. Elsewhere they are known by their environment:
//! everything a worker forks, daemonised or not, inherits `TETHER_DIR`. A process that wiped its
//! environment is not found that way, which is the one thing only a cgroup can promise.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::journal::{self, Entry};

/// Between two looks; doubles up to the longest once patience is over.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Looks in a row that must find nothing: a chain of processes, each of which forks the next and ends, can
/// slip through one look, between the list of processes and its last entry, but not through many.
const EMPTY_LOOKS: u32 = 6;

/// Looks after which somebody should know that a process does not die.
const PATIENCE: u32 = 20;

/// Comes back when nothing is left of the worker of this directory. A process that cannot be killed
/// (uninterruptible sleep) is waited for as long as it takes: its place must not be given away.
pub(crate) async fn end(dir: &Path) {
    let noted = Entry::read(dir).unwrap_or_default();
    let cgroup = &noted.cgroup;
    let mut pause = FIRST_PAUSE;
    let (mut looks, mut empty) = (0, 0);
    loop {
        if let Some(cgroup) = cgroup {
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        }
        // Looking at every process of the machine takes milliseconds, and a thousand may have died.
        let marked = if noted.is_sealed() {
            0
        } else {
            kill_marked(dir)
        };
        let left = marked + usize::from(cgroup.as_deref().is_some_and(is_populated));
        if left == 0 {
            empty += 1;
            if noted.is_sealed() || empty == EMPTY_LOOKS {
                break;
            }
            tokio::time::sleep(FIRST_PAUSE).await;
            continue;
        }
        empty = 0;
        looks += 1;
        if looks == PATIENCE {
            tracing::error!(dir = %dir.display(), left, "Processes of a dead worker cannot be killed; its place stays empty until they are gone");
        }
        tokio::time::sleep(pause).await;
        // Only what does not die of SIGKILL can wait; a chain is run after at full speed.
        if looks >= PATIENCE {
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
    for cgroup in cgroup.iter().chain(&noted.limiting) {
        remove_cgroup(cgroup);
    }
}

/// Kills every process whose environment names `dir`; tells how many there were.
fn kill_marked(dir: &Path) -> usize {
    let marker = [b"TETHER_DIR=", dir.as_os_str().as_encoded_bytes()].concat();
    newest_first()
        .into_iter()
        .filter(|&pid| is_marked(pid, &marker) && kill(pid, &marker))
        .count()
}

/// All processes, beginning with the one that was made last: that is the living end of a chain, and it is
/// looked at before it can fork once more.
fn newest_first() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let last = load.split_ascii_whitespace().next_back();
    let last = last.and_then(|pid| pid.parse().ok()).unwrap_or(i32::MAX);
    // Numbers above the last one are from before the count began anew.
    pids.sort_by_key(|&pid| (pid > last, std::cmp::Reverse(pid)));
    pids
}

/// A zombie's environment reads as empty, so the dead do not count.
fn is_marked(pid: i32, marker: &[u8]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|&byte| byte == 0)
        .any(|variable| variable == marker)
}

fn kill(pid: i32, marker: &[u8]) -> bool {
    let Some(raw) = Pid::from_raw(pid) else {
        return false;
    };
    let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else {
        return false;
    };
    // Looked at again now that the descriptor pins the process: a reused pid is nobody of ours.
    is_marked(pid, marker) && pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
}

fn is_populated(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Removes a cgroup with all below it; a populated one stays.
fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

/// Removes what earlier agents left below their common parent: leaves without members. One that stands in
/// the journal may get its member yet: its shim waits for a caller, or was about to fork.
pub(crate) fn remove_empty(parent: &Path, workers: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let leaf = entry.path();
        let is_over = journal::is_history(&workers.join(entry.file_name()));
        if is_over && leaf.is_dir() && !is_populated(&leaf) {
            remove_cgroup(&leaf);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn a_daemon_without_a_shim_is_found_by_its_environment_and_nobody_else_is_hit() {
        let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = |dir: &Path| {
            let mut command = Command::new("sleep");
            command
                .arg("60")
                .env("TETHER_DIR", dir)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        };
        let mut remains = start(ours.path());
        let mut bystander = start(other.path());

        end(ours.path()).await;

        let own = i32::try_from(std::process::id()).unwrap();
        let child = i32::try_from(bystander.id()).unwrap();
        let seen = newest_first();
        let place = |pid| seen.iter().position(|seen| *seen == pid).unwrap();
        assert!(place(child) < place(own) || child < own, "{seen:?}");
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&remains.wait().unwrap()),
            Some(9)
        );
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
}
