//! Leaves nothing behind when a test ends, however it ends: independent workers would live on under
//! their leases, and a killed agent cannot remove its cgroup.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Traces;

/// Longest time for what was killed to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Ends what is left of the workers of a runtime directory, and the cgroups its agents said in `log` that
/// they made.
pub fn tidy(runtime: &Path, log: &str) {
    let traces = Traces::of(runtime);
    let cgroups: Vec<_> = log.lines().filter_map(cgroup).collect();
    let start = Instant::now();
    while start.elapsed() < GONE {
        let left = traces.find();
        for process in &left {
            let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
            if let Some(pidfd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        for cgroup in &cgroups {
            remove(cgroup);
        }
        if left.is_empty() && cgroups.iter().all(|cgroup| !cgroup.exists()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The cgroup that a line of an agent's log names.
fn cgroup(line: &str) -> Option<PathBuf> {
    let (_, rest) = line.split_once("Workers get cgroups of their own cgroup=")?;
    Some(rest.split_whitespace().next()?.into())
}

/// Removes a cgroup with all below it, where nobody is in it any more.
fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}
