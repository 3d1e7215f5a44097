//! A runtime directory that an agent has left for good, as seen by somebody who wants to remove it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use tether_shim_protocol::DEATH_FILE;

use crate::{config::LOCK, journal, link::Reached};

/// A runtime directory whose agent is gone; no other can take it meanwhile.
#[derive(Debug)]
pub struct Abandoned {
    workers: PathBuf,
    _lock: File,
}

impl Abandoned {
    /// Takes it where its agent is provably gone; none where there is one, may be one, or never was.
    pub fn take(runtime: &Path) -> Option<Self> {
        let lock = File::open(runtime.join(LOCK)).ok()?;
        // Who is about to lock it has not written into it yet, and is not to find it taken.
        if lock.metadata().ok()?.len() == 0 {
            return None;
        }
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Self {
            workers: runtime.join("workers"),
            _lock: lock,
        })
    }

    /// Whether something of a worker may live that needs the directory.
    pub fn has_workers(&self) -> bool {
        match fs::read_dir(&self.workers) {
            Ok(entries) => entries
                .into_iter()
                .any(|entry| entry.map_or(true, |entry| may_live(&entry.path()))),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

/// A shim that has ended says so in a file, and at the socket of one that was killed nobody answers.
fn may_live(dir: &Path) -> bool {
    if journal::is_history(dir) || dir.join(DEATH_FILE).exists() {
        return false;
    }
    let reached = Reached::connect(dir);
    // One without a socket may be about to make it.
    !matches!(reached, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tether_shim_protocol::SOCKET_FILE;

    use super::*;

    #[test]
    fn a_directory_is_taken_from_no_agent_that_lives_or_is_about_to() {
        let dir = tempfile::tempdir().unwrap();
        let take = || Abandoned::take(dir.path());
        assert!(take().is_none(), "no agent was ever there");

        let path = dir.path().join(LOCK);
        let lock = File::create(&path).unwrap();
        assert!(take().is_none(), "one is about to lock it");
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        fs::write(&path, "1\n").unwrap();
        assert!(take().is_none(), "it lives");
        drop(lock);

        let taken = take();
        assert!(taken.is_some());
        assert!(take().is_none(), "somebody else is at it");
    }

    #[test]
    fn workers_live_until_it_is_known_that_they_do_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK), "1\n").unwrap();
        let left = Abandoned::take(dir.path()).unwrap();
        assert!(!left.has_workers());

        let worker = dir.path().join("workers/digits.0.1");
        fs::create_dir_all(&worker).unwrap();
        assert!(!left.has_workers(), "nothing was started");
        fs::write(worker.join("order"), "").unwrap();
        assert!(left.has_workers(), "its shim may be about to listen");
        let socket = worker.join(SOCKET_FILE);
        let shim = UnixListener::bind(&socket).unwrap();
        assert!(left.has_workers(), "its shim listens");
        drop(shim);
        assert!(!left.has_workers(), "its shim was killed");

        fs::remove_file(&socket).unwrap();
        fs::write(worker.join(DEATH_FILE), "").unwrap();
        assert!(!left.has_workers(), "its shim says that it is dead");
    }
}
