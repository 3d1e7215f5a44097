//! The main process of one run of a service, held by its pidfd: the supervisor knows it by its number alone.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    time::{Duration, SystemTime},
};

use rustix::process::{Signal, pidfd_send_signal};
use tether_kit::process::start_ticks;
use tether_sys::{Exit, Seen, exit_of, has_ended, look};
use tokio::{
    io::unix::AsyncFd,
    time::{sleep, timeout},
};

use super::{
    last_word::{End, How},
    supervisor::Life,
};
use crate::polled;

/// Between two looks at a supervisor that tells nothing by itself.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The same after the process has ended, which its supervisor is about to notice.
const LOOK_SOON: Duration = Duration::from_millis(10);

/// In the incarnation's directory: which process it is, for whoever comes after a keeper that was killed.
const FILE: &str = "service-main";

/// Longest time for what was killed to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// One process.
pub(super) struct Watched {
    pub(super) pid: u32,
    start: u64,
    /// From when on it was watched.
    pub(super) since: SystemTime,
    pidfd: AsyncFd<OwnedFd>,
}

impl Watched {
    /// None where it has ended.
    pub(super) fn open(pid: u32) -> io::Result<Option<Self>> {
        let start = start_ticks(pid);
        let pidfd = match look(pid, || start.map(|start| start_ticks(pid) == Some(start))) {
            Seen::Alive(pidfd) => pidfd,
            Seen::Gone => return Ok(None),
            Seen::Not => {
                let why = format!(
                    "process {pid} of the service cannot be looked at: its user is another one, and this agent has neither CAP_SYS_PTRACE nor a /proc with all processes (`ProtectProc=` of its unit)"
                );
                return Err(io::Error::other(why));
            }
        };
        Ok(Some(Self {
            pid,
            start: start.unwrap_or_default(),
            since: SystemTime::now(),
            pidfd: polled::readable(pidfd)?,
        }))
    }

    /// The one that a keeper of this directory has watched last; none where none was, or it has ended.
    pub(super) fn recall(dir: &Path) -> Option<Self> {
        let name = fs::read_to_string(dir.join(FILE)).ok()?;
        let pid = name.split_once('-')?.0.parse().ok()?;
        let watched = Self::open(pid).ok()??;
        (watched.name() == name).then_some(watched)
    }

    /// Has it known in this directory.
    pub(super) fn remember(&self, dir: &Path) {
        // Not said, it can be found by its supervisor, or by what is marked.
        let _ = fs::write(dir.join(FILE), self.name());
    }

    fn name(&self) -> String {
        format!("{}-{}", self.pid, self.start)
    }

    /// Kills it where it still runs although its supervisor has another one, or none: nobody else would end it. Tells
    /// whether it did, and nobody has stopped it before.
    pub(super) async fn leave_nothing(&self) -> bool {
        let runs = !self.has_ended();
        if runs {
            self.signal(Signal::KILL);
            let _ = timeout(GONE_WITHIN, self.pidfd.readable()).await;
        }
        runs
    }

    /// The run of the service that this is.
    pub(super) fn life(&self, said: &str) -> Life {
        Life {
            name: self.name(),
            pid: self.pid,
            said: said.to_owned(),
        }
    }

    /// Whether its number is no other process's by now.
    pub(super) fn has_its_number(&self) -> bool {
        !self.has_ended() || start_ticks(self.pid).is_none_or(|start| start == self.start)
    }

    pub(super) fn has_ended(&self) -> bool {
        has_ended(self.pidfd.as_raw_fd())
    }

    /// How it ended, as the kernel tells; nothing from those before 6.15.
    pub(super) fn exit(&self) -> Option<Exit> {
        exit_of(self.pidfd.get_ref())
    }

    pub(super) fn signal(&self, signal: Signal) {
        // Gone is as good.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), signal);
    }
}

/// Waits until the process ends, or it is time to look again.
pub(super) async fn changed(watched: Option<&Watched>) {
    match watched {
        Some(watched) if watched.has_ended() => sleep(LOOK_SOON).await,
        Some(watched) => {
            tokio::select! {
                _ = watched.pidfd.readable() => {}
                () = sleep(LOOK_AGAIN) => {}
            }
        }
        None => sleep(LOOK_AGAIN).await,
    }
}

/// An end as the kernel tells it.
pub(super) fn end(exit: Exit, said: String) -> End {
    let how = match exit {
        Exit::Code(code) => How::Exited(code),
        Exit::Signal(signal) => How::Signaled(signal),
    };
    End::new(how, said)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn what_was_watched_is_known_to_whoever_comes_after() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Watched::recall(dir.path()).is_none());
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let watched = Watched::open(child.id()).unwrap().unwrap();
        watched.remember(dir.path());

        let recalled = Watched::recall(dir.path()).unwrap();
        assert_eq!(recalled.life(""), watched.life(""));
        assert!(recalled.leave_nothing().await && !recalled.leave_nothing().await);

        assert!(watched.has_ended());
        child.wait().unwrap();
        assert!(Watched::recall(dir.path()).is_none());
        // Another process that has got its number since is not it.
        let other = format!("{}-1", std::process::id());
        fs::write(dir.path().join(FILE), other).unwrap();
        assert!(Watched::recall(dir.path()).is_none());
    }

    #[tokio::test]
    async fn the_end_of_a_process_that_is_no_child_comes_at_once() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let watched = Watched::open(child.id()).unwrap().unwrap();
        assert!(!watched.has_ended());
        watched.signal(Signal::KILL);
        child.wait().unwrap();

        changed(Some(&watched)).await;

        assert!(watched.has_ended());
        assert!(Watched::open(child.id()).unwrap().is_none());
        assert_eq!(
            end(Exit::Signal(9), "runit".to_owned()).how,
            How::Signaled(9)
        );
    }
}
