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

    /// Pins the child of this name.
    pub(crate) fn child(parent: u32, name: &str) -> Option<Self> {
        let found = children(parent)
            .into_iter()
            .find_map(|pid| Self::named(pid, name))?;
        // Where it is still a child once it is pinned, and lives after that, it is the child that was pinned.
        let still = children(parent).contains(&found.pid) && found.lives();
        still.then_some(found)
    }

    /// What is seen by its pid; nothing where it did not live until after the look, for the pid may have
    /// been another's then.
    pub(crate) fn look<T>(&self, look: impl FnOnce(u32) -> Option<T>) -> Option<T> {
        look(self.pid).filter(|_| self.lives())
    }

    /// Another descriptor of it.
    pub(crate) fn fd(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// The same process, held once more.
    pub(crate) fn again(&self) -> io::Result<Self> {
        let (pid, fd) = (self.pid, self.fd()?);
        Ok(Self { pid, fd })
    }

    pub(crate) fn kill(&self) -> bool {
        self.signal(Signal::KILL)
    }

    pub(crate) fn terminate(&self) -> bool {
        self.signal(Signal::TERM)
    }

    pub(crate) fn signal(&self, signal: Signal) -> bool {
        pidfd_send_signal(&self.fd, signal).is_ok()
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
            // A look takes its time: what has called `exec` since may still stand there by its name of before.
            if let Some(sleep) = kin
                .iter()
                .find(|other| other.name == "sleep" && ancestor(&kin, other.pid, "sh").is_some())
                .map(|kin| kin.pid)
            {
                break (kin, sleep);
            }
            assert!(start.elapsed().as_secs() < 10, "{kin:?}");
        };

        assert_eq!(ancestor(&kin, sleep, "sh"), Some(child.id()));
        assert_eq!(ancestor(&kin, sleep, "other"), None);
        assert!(Pinned::named(sleep, "other").is_none());
        let pinned = Pinned::child(child.id(), "sleep").unwrap();
        assert!(pinned.lives());
        assert_eq!(pinned.look(Some), Some(sleep));
        assert!(pinned.kill());
        while pinned.lives() {
            assert!(start.elapsed().as_secs() < 10);
        }
        assert_eq!(pinned.look(Some), None, "its pid may be another's");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
