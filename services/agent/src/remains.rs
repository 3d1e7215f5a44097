//! What is left of a worker when its shim is gone: found, killed, and seen gone before its death is
//! reported, so that nothing lives twice.
//!
//! Members of its cgroup are its remains for certain. Elsewhere they are known by their environment:
//! everything a worker forks, daemonised or not, inherits `TETHER_DIR`. A process that wiped its
//! environment is not found that way, which is the one thing only a cgroup can promise.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::journal::Entry;

/// Between two looks; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Looks after which somebody should know that a process does not die.
const PATIENCE: u32 = 20;

/// Comes back when nothing is left of the worker of this directory. A process that cannot be killed
/// (uninterruptible sleep) is waited for as long as it takes: its place must not be given away.
pub(crate) async fn end(dir: &Path) {
    let noted = Entry::read(dir).unwrap_or_default();
    let cgroup = &noted.cgroup;
    let mut pause = FIRST_PAUSE;
    let mut looks = 0;
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
            break;
        }
        looks += 1;
        if looks == PATIENCE {
            tracing::error!(dir = %dir.display(), left, "Processes of a dead worker cannot be killed; its place stays empty until they are gone");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    for cgroup in cgroup.iter().chain(&noted.limiting) {
        remove_cgroup(cgroup);
    }
}

/// Kills every process whose environment names `dir`; tells how many there were.
fn kill_marked(dir: &Path) -> usize {
    let marker = [b"TETHER_DIR=", dir.as_os_str().as_encoded_bytes()].concat();
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| is_marked(pid, &marker) && kill(pid, &marker))
        .count()
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

/// Removes what earlier agents left below their common parent: leaves without members.
pub(crate) fn remove_empty(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let leaf = entry.path();
        if leaf.is_dir() && !is_populated(&leaf) {
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

        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&remains.wait().unwrap()),
            Some(9)
        );
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
}
