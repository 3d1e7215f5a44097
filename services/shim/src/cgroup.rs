//! The worker's cgroup v2 leaf: it is born there, killed as one, and the leaf removed at the end.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::files::{self, join};

/// A leaf that belongs to one incarnation of one worker, with others that keep its limits.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: Vec<u8>,
    directory: OwnedFd,
    /// Out-of-memory kills counted before the worker started; nothing where memory is not counted here.
    oom_kills: Option<u64>,
    /// The most memory its members had at once, read before it was removed.
    peak_memory: Cell<u64>,
    /// Whether it is removed, which the kernel allows only once nobody is in it.
    removed: Cell<bool>,
}

/// A cgroup of version 1 that keeps a limit of the worker's tree.
#[derive(Debug)]
pub(crate) struct Limiting {
    path: Vec<u8>,
    oom_kills: u64,
}

impl Cgroup {
    /// Makes the leaf. One that is there already is another's, or was killed once, after which the kernel
    /// kills whoever is born in it.
    pub(crate) fn make(path: Vec<u8>) -> Result<Self, Errno> {
        rustix::fs::mkdir(path.as_slice(), Mode::from_raw_mode(0o755))?;
        Self::open(path)
    }

    /// The leaf that was made for this incarnation.
    pub(crate) fn open(path: Vec<u8>) -> Result<Self, Errno> {
        // Nobody removes a leaf that nobody has.
        let directory = files::open(&path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let directory = directory.inspect_err(|_| {
            remove(&path);
        })?;
        Ok(Self {
            oom_kills: count_oom_kills(&path),
            path,
            directory,
            peak_memory: Cell::new(0),
            removed: Cell::new(false),
        })
    }

    /// For a child that is born in it.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    /// A file that tells, by an exceptional readiness after each look at it, that the last member has gone.
    pub(crate) fn events(&self) -> Result<OwnedFd, Errno> {
        files::open(
            &join(&self.path, b"cgroup.events"),
            OFlags::RDONLY,
            Mode::empty(),
        )
    }

    /// Moves the calling process into it.
    pub(crate) fn enter(&self) -> Result<(), Errno> {
        enter(&self.path)
    }

    /// Kills every member at once. Kernels before 5.14 cannot; the tree walk does it there.
    pub(crate) fn kill(&self) {
        let _ = files::tell(&join(&self.path, b"cgroup.kill"), b"1");
    }

    /// How many processes are in it, those below it not counted.
    pub(crate) fn members(&self) -> u32 {
        u32::try_from(self.pids().len()).unwrap_or(u32::MAX)
    }

    /// The processes in it, those below it left out.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let list = files::text(&join(&self.path, b"cgroup.procs")).unwrap_or_default();
        list.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Whether any member is left, in it or below it.
    pub(crate) fn is_populated(&self) -> bool {
        let populated = || field(&join(&self.path, b"cgroup.events"), "populated");
        !self.removed.get() && populated().is_some_and(|count| count > 0)
    }

    /// Whether the kernel killed a member for want of memory since the worker started.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let count = self.oom_kills.and_then(|_| count_oom_kills(&self.path));
        count > self.oom_kills
    }

    /// The most memory its members had at once, in bytes, where it counts that.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.peak_memory.get()
    }

    /// Removes it, with what the worker made below it, if nobody is in it: that the kernel does it is the
    /// proof that nobody is. A populated one stays, in the end for the agent's sweep.
    pub(crate) fn remove(&self) -> bool {
        if !self.removed.get() {
            if self.oom_kills.is_some() {
                self.peak_memory
                    .set(number(&join(&self.path, b"memory.peak")));
            }
            self.removed.set(remove(&self.path));
        }
        self.removed.get()
    }
}

impl Limiting {
    pub(crate) fn open(path: Vec<u8>) -> Self {
        let mut limiting = Self { path, oom_kills: 0 };
        limiting.oom_kills = limiting.count_oom_kills();
        limiting
    }

    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    pub(crate) fn enter(&self) -> Result<(), Errno> {
        enter(&self.path)
    }

    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.count_oom_kills() > self.oom_kills
    }

    fn count_oom_kills(&self) -> u64 {
        field(&join(&self.path, b"memory.oom_control"), "oom_kill").unwrap_or(0)
    }

    pub(crate) fn peak_memory(&self) -> u64 {
        number(&join(&self.path, b"memory.max_usage_in_bytes"))
    }

    pub(crate) fn remove(&self) {
        remove(&self.path);
    }
}

fn enter(path: &[u8]) -> Result<(), Errno> {
    files::tell(&join(path, b"cgroup.procs"), b"0")
}

/// Whether nothing is left of it.
fn remove(path: &[u8]) -> bool {
    // Most have nothing below them, and then this is the one call it takes.
    if is_removed(path) {
        return true;
    }
    // A list rather than a call in a call: how deep it goes is the worker's to say.
    let mut all = vec![path.to_vec()];
    let mut next = 0;
    while let Some(above) = all.get(next) {
        let below = files::entries(above).unwrap_or_default().into_iter();
        let below = below.filter(|(_, is_directory)| *is_directory);
        let below: Vec<Vec<u8>> = below.map(|(name, _)| join(above, &name)).collect();
        all.extend(below);
        next += 1;
    }
    // Each after those below it, and the leaf itself last.
    all.iter().rev().fold(true, |_, path| is_removed(path))
}

fn is_removed(path: &[u8]) -> bool {
    matches!(files::remove_directory(path), Ok(()) | Err(Errno::NOENT))
}

fn count_oom_kills(path: &[u8]) -> Option<u64> {
    field(&join(path, b"memory.events"), "oom_kill")
}

/// The number after `name` in a file of `name number` lines.
fn field(path: &[u8], name: &str) -> Option<u64> {
    let text = files::text(path)?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|line| line.0 == name)?.1.trim().parse().ok()
}

/// The number that is all of a file; 0 where there is none.
fn number(path: &[u8]) -> u64 {
    let text = files::text(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn only_kills_for_memory_since_the_start_count() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("memory.events");
        fs::write(&events, "low 0\noom 5\noom_kill 2\noom_group_kill 0\n").unwrap();
        let cgroup = Cgroup::open(dir.path().as_os_str().as_bytes().to_vec()).unwrap();

        assert!(!cgroup.ran_out_of_memory());

        fs::write(&events, "low 0\noom 6\noom_kill 3\noom_group_kill 0\n").unwrap();
        assert!(cgroup.ran_out_of_memory());
    }
}
