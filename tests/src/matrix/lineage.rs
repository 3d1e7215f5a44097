//! Who descends from whom, by the kernel's own lists, and processes pinned so that a reused pid is never hit.

use std::{fs, io, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// One process below a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kin {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) name: String,
}

/// Everything that descends from `root`, parents before children.
pub(crate) fn descendants(root: u32) -> Vec<Kin> {
    let mut found: Vec<Kin> = Vec::new();
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for pid in children(parent) {
            // A process that moves while the tree is read can be met twice.
            if found.iter().any(|kin| kin.pid == pid) {
                continue;
            }
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name = name.trim_end().to_owned();
            found.push(Kin { pid, parent, name });
            next.push(pid);
        }
    }
    found
}

fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found
}

/// The nearest process of this name from which `pid` descends.
pub(crate) fn ancestor(kin: &[Kin], pid: u32, name: &str) -> Option<u32> {
    let mut at = kin.iter().find(|kin| kin.pid == pid)?;
    loop {
        at = kin.iter().find(|kin| kin.pid == at.parent)?;
        if at.name == name {
            return Some(at.pid);
        }
    }
}

/// State letter of a process, as in `/proc/PID/stat`.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// A process held by a descriptor.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) pid: u32,
    fd: OwnedFd,
}

impl Pinned {
    /// Pins a process.
    pub(crate) fn new(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::other("no pid"))?;
        let fd = pidfd_open(raw, PidfdFlags::empty())?;
        Ok(Self { pid, fd })
    }

    /// Pins a process that is still called so once it is pinned.
    pub(crate) fn named(pid: u32, name: &str) -> Option<Self> {
        let pinned = Self::new(pid).ok()?;
        let now = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (now.trim_end() == name).then_some(pinned)
    }

    pub(crate) fn kill(&self) -> bool {
        pidfd_send_signal(&self.fd, Signal::KILL).is_ok()
    }

    pub(crate) fn terminate(&self) -> bool {
        pidfd_send_signal(&self.fd, Signal::TERM).is_ok()
    }

    pub(crate) fn lives(&self) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&now)) == Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_grandchild_is_found_by_its_descent_and_a_pin_sees_the_end() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & read line"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let start = std::time::Instant::now();
        let (kin, sleep) = loop {
            let kin = descendants(std::process::id());
            if let Some(sleep) = kin
                .iter()
                .find(|kin| kin.name == "sleep")
                .map(|kin| kin.pid)
            {
                break (kin, sleep);
            }
            assert!(start.elapsed().as_secs() < 10, "{kin:?}");
        };

        assert_eq!(ancestor(&kin, sleep, "sh"), Some(child.id()));
        assert_eq!(ancestor(&kin, sleep, "other"), None);
        assert!(Pinned::named(sleep, "other").is_none());
        let pinned = Pinned::named(sleep, "sleep").unwrap();
        assert!(pinned.lives());
        assert!(pinned.kill());
        while pinned.lives() {
            assert!(start.elapsed().as_secs() < 10);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
