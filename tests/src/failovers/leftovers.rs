//! What a world leaves behind, whether it ended in good order or its harness was killed: frozen disks and
//! processes first, since nothing that waits for them can end.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tether_tests::{mentioning, tidy};

use crate::{disks, frost};

/// Folders of ours begin so, and go on with the id of the process that made them.
const PREFIX: &str = "tether-failover-";

/// Longest time for what was killed to be gone.
const GONE: Duration = Duration::from_secs(10);

/// Where a world of this process keeps its files.
pub(crate) fn folder(world: u32) -> PathBuf {
    let name = format!("{PREFIX}{}-{world}", std::process::id());
    env::temp_dir().join(name)
}

/// Worlds of runs that were killed.
pub(crate) fn clear_stale() {
    for entry in fs::read_dir(env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if let Some(maker) = maker
            && !fs::exists(format!("/proc/{maker}")).unwrap_or(true)
        {
            clear(&entry.path());
        }
    }
}

/// Everything that stands still goes on.
pub(crate) fn thaw(folder: &Path) {
    for disk in disks::mounted(folder).unwrap_or_default() {
        say_nothing(Command::new("fsfreeze").arg("-u").arg(disk));
    }
    frost::thaw(folder);
}

/// Thaws a world, ends its processes, and takes its disks and files away.
pub(crate) fn clear(folder: &Path) {
    thaw(folder);
    let start = Instant::now();
    while start.elapsed() < GONE {
        let left = mentioning(folder);
        let own = std::process::id();
        let left: Vec<_> = left.iter().filter(|process| process.pid != own).collect();
        if left.is_empty() {
            break;
        }
        for process in left {
            let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
            if let Some(pidfd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().join("workers").exists() {
            tidy(&entry.path());
        }
    }
    for disk in disks::mounted(folder).unwrap_or_default() {
        say_nothing(Command::new("umount").arg(disk));
    }
    frost::remove(folder);
    // A disk that could not be taken away keeps its files.
    if disks::mounted(folder).is_ok_and(|mounted| mounted.is_empty()) {
        let _ = fs::remove_dir_all(folder);
    }
}

fn say_nothing(command: &mut Command) {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _ = quiet.status();
}
