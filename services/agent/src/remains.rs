//! What is left of a worker when its shim is gone: found, killed, and seen gone before its death is
//! reported, so that nothing lives twice.
//!
//! Members of its cgroup are its remains for certain. Elsewhere they are known by their environment:
//! everything a worker forks, daemonised or not, inherits `TETHER_DIR`. A process that wiped its
//! environment is not found that way, which is the one thing only a cgroup can promise.

use std::{collections::BTreeSet, ffi::OsStr, fs, path::Path, time::Duration};

use crate::{journal::Entry, sweep};

/// Between two looks at a cgroup; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Looks after which somebody should know that a process does not die.
const PATIENCE: u32 = 20;

/// How many processes there were to end.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// Members of its cgroup.
    pub(crate) in_cgroup: u64,
    /// Found by their environment.
    pub(crate) found: u64,
}

/// Comes back when nothing is left of the worker of this directory. A process that cannot be killed
/// (uninterruptible sleep) is waited for as long as it takes: its place must not be given away.
pub(crate) async fn end(dir: &Path) -> Ended {
    let noted = Entry::read(dir).unwrap_or_default();
    let mut ended = Ended::default();
    if let Some(cgroup) = &noted.cgroup {
        ended.in_cgroup = members(cgroup);
        empty(cgroup).await;
    }
    if !noted.is_sealed() {
        ended.found = sweep::end(dir).await;
    }
    for cgroup in noted.cgroup.iter().chain(&noted.limiting) {
        remove_cgroup(cgroup);
    }
    ended
}

/// How many processes of the worker of this directory there are, as far as its cgroup says; one where it has
/// none.
pub(crate) fn count(dir: &Path) -> u32 {
    let noted = Entry::read(dir).unwrap_or_default();
    let members = noted.cgroup.as_deref().map_or(1, members);
    u32::try_from(members).unwrap_or(u32::MAX).max(1)
}

/// How many processes are in a cgroup at the moment, without those in cgroups of their own below.
fn members(cgroup: &Path) -> u64 {
    let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    members.lines().count() as u64
}

/// Kills every member of a cgroup until none is left.
async fn empty(cgroup: &Path) {
    let mut pause = FIRST_PAUSE;
    let mut looks = 0;
    loop {
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        if !is_populated(cgroup) {
            return;
        }
        looks += 1;
        if looks == PATIENCE {
            tracing::error!(cgroup = %cgroup.display(), "Processes of a dead worker cannot be killed; its place stays empty until they are gone");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
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
pub(crate) fn remove_empty(parent: &Path, journal: &BTreeSet<&OsStr>) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let leaf = entry.path();
        let is_over = !journal.contains(entry.file_name().as_os_str());
        if is_over && leaf.is_dir() && !is_populated(&leaf) {
            remove_cgroup(&leaf);
        }
    }
}
