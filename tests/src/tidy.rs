//! Leaves nothing behind when a test ends, however it ends: independent workers would live on under
//! their leases, and a killed agent cannot remove its cgroups.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Traces;

/// Longest time for what was killed to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Ends what is left of the workers of a runtime directory, and the cgroups of its agents.
pub fn tidy(runtime: &Path) {
    let traces = Traces::of(runtime);
    let start = Instant::now();
    while start.elapsed() < GONE {
        let left = traces.find();
        for process in &left {
            let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
            if let Some(pidfd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        // Looked for anew each time: a shim that outlived its agent may be about to make one.
        let cgroups = cgroups(runtime);
        for cgroup in &cgroups {
            remove(cgroup);
        }
        if left.is_empty() && cgroups.iter().all(|cgroup| !cgroup.exists()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The cgroups, in every hierarchy, that an agent on this runtime directory made below its own, which is also
/// the caller's: an agent names them after itself and the directory's inode.
pub fn cgroups(runtime: &Path) -> Vec<PathBuf> {
    let Ok(workers) = fs::metadata(runtime.join("workers")) else {
        return Vec::new();
    };
    let end = format!("-{:x}", workers.ino());
    let below = hierarchies()
        .into_iter()
        .filter_map(|own| fs::read_dir(own).ok());
    let entries = below.flatten().flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("tether-") && name.ends_with(&end)
    });
    ours.map(|entry| entry.path()).collect()
}

/// Where this process is in each hierarchy of cgroups.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, mount, kind @ ("cgroup" | "cgroup2"), options, ..] = fields[..] else {
            continue;
        };
        found.extend(own.lines().filter_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
            let fits = match kind {
                "cgroup2" => controllers.is_empty(),
                _ => !controllers.is_empty() && options.ends_with(controllers),
            };
            fits.then(|| Path::new(mount).join(path))
        }));
    }
    found
}

/// Removes a cgroup with all below it, and kills who is in one below it.
fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = fs::write(entry.path().join("cgroup.kill"), "1");
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}
