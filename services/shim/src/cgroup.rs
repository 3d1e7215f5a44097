//! The worker's cgroup v2 leaf: joined at birth, killed as one, removed at the end.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A leaf that belongs to one incarnation of one worker.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    /// Out-of-memory kills counted before the worker started.
    oom_kills: u64,
}

impl Cgroup {
    /// Makes the leaf where it is missing.
    pub(crate) fn open(path: Vec<u8>) -> io::Result<Self> {
        let path = PathBuf::from(OsString::from_vec(path));
        if let Err(error) = fs::create_dir(&path)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        let mut cgroup = Self { path, oom_kills: 0 };
        cgroup.oom_kills = cgroup.count_oom_kills();
        Ok(cgroup)
    }

    /// Moves the calling process into it.
    pub(crate) fn join(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), "0")
    }

    /// Kills every member at once. Kernels before 5.14 cannot; the tree walk does it there.
    pub(crate) fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// Whether any member is left, in it or below it.
    pub(crate) fn is_populated(&self) -> bool {
        field(&self.path.join("cgroup.events"), "populated").is_some_and(|count| count > 0)
    }

    /// Whether the kernel killed a member for want of memory since the worker started.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.count_oom_kills() > self.oom_kills
    }

    fn count_oom_kills(&self) -> u64 {
        field(&self.path.join("memory.events"), "oom_kill").unwrap_or(0)
    }

    /// Removes it and what the worker made below it. A populated one stays, for the agent's sweep.
    pub(crate) fn remove(&self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// The number after `name` in a file of `name number` lines.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|line| line.0 == name)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kills_for_memory_since_the_start_count() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("memory.events");
        fs::write(&events, "low 0\noom 5\noom_kill 2\noom_group_kill 0\n").unwrap();
        let cgroup = Cgroup::open(dir.path().as_os_str().to_owned().into_vec()).unwrap();

        assert!(!cgroup.ran_out_of_memory());

        fs::write(&events, "low 0\noom 6\noom_kill 3\noom_group_kill 0\n").unwrap();
        assert!(cgroup.ran_out_of_memory());
    }
}
