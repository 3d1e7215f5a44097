//! Which processes are a worker's own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tether_kit::process::parent;

/// Longest line of ancestors that is looked at.
const GENERATIONS: usize = 64;

/// How the processes of one worker are known, each way for what the others miss: descent for those that
/// wiped their environment, the environment for daemons of a shim that is gone, the cgroup for both.
#[derive(Debug)]
pub(crate) struct Family {
    marker: Vec<u8>,
    cgroup: Option<PathBuf>,
    /// The parent of its main process, to which its orphans fall.
    head: Option<u32>,
}

impl Family {
    /// The worker of this runtime directory, in this cgroup where it has one.
    pub(crate) fn new(dir: &Path, cgroup: Option<PathBuf>) -> Self {
        Self {
            marker: [b"TETHER_DIR=", dir.as_os_str().as_encoded_bytes()].concat(),
            cgroup,
            head: None,
        }
    }

    /// Its main process runs.
    pub(crate) fn on_running(&mut self, pid: u32) {
        self.head = parent(pid).filter(|&parent| parent > 1 && parent != std::process::id());
    }

    /// Whether the process is one of them. Nobody speaks for one that is gone: its pid may be another's.
    pub(crate) fn has(&self, pid: u32) -> bool {
        self.descends(pid) || self.is_marked(pid) || self.is_inside(pid)
    }

    fn descends(&self, pid: u32) -> bool {
        let Some(head) = self.head else { return false };
        std::iter::successors(parent(pid), |&pid| parent(pid))
            .take(GENERATIONS)
            .any(|ancestor| ancestor == head)
    }

    fn is_marked(&self, pid: u32) -> bool {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|&byte| byte == 0)
            .any(|variable| variable == self.marker)
    }

    fn is_inside(&self, pid: u32) -> bool {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        self.cgroup
            .as_deref()
            .is_some_and(|cgroup| inside(&groups, cgroup))
    }
}

/// Whether `/proc/PID/cgroup` names `cgroup`, given with its mount point, or one below it.
fn inside(groups: &str, cgroup: &Path) -> bool {
    let paths = groups.lines().filter_map(|line| line.strip_prefix("0::/"));
    // Where the mount point ends is not known. A leaf's name alone is no proof; with its parent's, which
    // no other agent has, it is.
    paths
        .flat_map(|path| Path::new(path).ancestors())
        .any(|path| path.components().count() > 1 && cgroup.ends_with(path))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_known_by_descent_or_by_its_environment_and_a_stranger_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let family = Family::new(dir.path(), None);
        let sleeper = |dir: &Path| {
            let mut command = Command::new("sleep");
            let command = command.arg("60").env("TETHER_DIR", dir);
            command.stdout(Stdio::null()).spawn().unwrap()
        };
        let mut marked = sleeper(dir.path());
        let mut stranger = sleeper(Path::new("/elsewhere"));

        // Until it has called exec, a child still has its parent's environment.
        let known = std::iter::repeat_with(|| family.has(marked.id()))
            .take(100_000)
            .any(|known| known);
        assert!(known && !family.has(stranger.id()));
        let descended = Family {
            head: Some(std::process::id()),
            ..Family::new(Path::new("/nowhere"), None)
        };
        assert!(descended.has(stranger.id()) && !descended.has(1));

        for child in [&mut marked, &mut stranger] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(!family.has(marked.id()));
    }

    #[test]
    fn a_cgroup_counts_with_all_below_it_and_no_other_does() {
        let leaf = Path::new("/sys/fs/cgroup/unified/a/tether-n-1f/digits.0.5");
        let is_in = |path: &str| inside(&format!("4:memory:/x\n0::{path}\n"), leaf);

        assert!(is_in("/a/tether-n-1f/digits.0.5"));
        assert!(is_in("/a/tether-n-1f/digits.0.5/own/below"));
        assert!(!is_in("/a/tether-n-1f/digits.0.51"));
        assert!(!is_in("/a/tether-n-1f"));
        assert!(!is_in("/b/tether-n-1f/digits.0.5"));
        assert!(!is_in("/digits.0.5"));
        assert!(!is_in("/"));
    }
}
