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
use tether_tests::{is_of_gone_maker, mentioning, tidy};

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
        if is_of_gone_maker(&name, PREFIX) {
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
    patiently(|| end(folder));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().join("workers").exists() {
            tidy(&entry.path());
        }
    }
    // A process is gone from the table before the kernel has closed its files and let go of its cgroup.
    let gone = || {
        for disk in disks::mounted(folder).ok()? {
            say_nothing(Command::new("umount").arg(disk));
        }
        let none = disks::mounted(folder).ok()?.is_empty();
        (frost::remove(folder) && none).then_some(())
    };
    // A disk that cannot be taken away keeps its files, and the next run tries again.
    if patiently(gone) {
        let _ = fs::remove_dir_all(folder);
    }
}

/// Kills what there is of a world; done when there is nothing.
fn end(folder: &Path) -> Option<()> {
    let own = std::process::id();
    let mut left = mentioning(folder);
    left.retain(|process| process.pid != own);
    for process in &left {
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        if let Some(pidfd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
    left.is_empty().then_some(())
}

/// Tries until it is done; tells whether it is.
fn patiently(mut done: impl FnMut() -> Option<()>) -> bool {
    let start = Instant::now();
    loop {
        if done().is_some() {
            return true;
        }
        if start.elapsed() > GONE {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn say_nothing(command: &mut Command) {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _ = quiet.status();
}
