//! The end of the process that started this one, as a reason to stop.
//!
//! supervisord and runit leave what they started running when they are killed: nobody would start it again,
//! stop it or read its log. A process that is told `--parent-death=terminate` watches its parent by pidfd, and
//! stops in good order when that has ended.

use std::{
    env, fs, io,
    os::fd::OwnedFd,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, getppid, pidfd_open},
};
use tokio_util::sync::CancellationToken;

/// What starts and keeps services and can be the first process of a machine or container.
const MANAGERS: &[&str] = &[
    "systemd",
    "init",
    "runit",
    "runsvdir",
    "runsv",
    "supervisord",
    "s6-svscan",
    "s6-supervise",
    "dinit",
    "openrc-init",
    "tether-zygote",
];

/// systemd says here which process it has started, and all that comes of that inherits it.
const STARTED_BY_SYSTEMD: &str = "SYSTEMD_EXEC_PID";

/// What the end of the parent means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ParentDeath {
    /// Nothing: this process lives on.
    #[default]
    Ignore,
    /// It stops in good order, as when it is asked to.
    Terminate,
}

impl ParentDeath {
    /// Each, by its name.
    pub const ALL: &[(&str, Self)] = &[("ignore", Self::Ignore), ("terminate", Self::Terminate)];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, found)| *found)
    }
}

/// Why a parent cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has ended before it was looked at.
    #[error(
        "`--parent-death=terminate`: the process that started this one (pid {0}) has ended already"
    )]
    Ended(u32),
    /// It is the first process, and starts no services.
    #[error(
        "`--parent-death=terminate`: the parent is process 1 (`{0}`), which is no service manager, so that this process is an orphan or has nobody whose end could be seen; start it from supervisord, runsv or systemd, with `exec` where a script does, or leave `--parent-death` away"
    )]
    Orphan(String),
    /// It is of another PID namespace.
    #[error(
        "`--parent-death=terminate`: the parent is outside of this PID namespace and cannot be watched; leave `--parent-death` away"
    )]
    Elsewhere,
    /// The system refused.
    #[error("`--parent-death=terminate`: cannot watch the parent (pid {pid})")]
    Refused {
        /// The parent.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
}

/// The parent under watch.
#[derive(Debug)]
pub struct Parent {
    pid: u32,
    name: String,
    pidfd: OwnedFd,
}

/// A parent that is watched, or not.
#[derive(Debug, Clone, Default)]
pub struct Fate(Option<Arc<Watched>>);

#[derive(Debug)]
struct Watched {
    pid: u32,
    name: String,
    has_ended: AtomicBool,
}

/// The parent has ended, and so this process was stopped.
#[derive(Debug, thiserror::Error)]
#[error(
    "stopped because its parent, `{name}` (pid {pid}), has ended, as `--parent-death=terminate` asks"
)]
pub struct Gone {
    pid: u32,
    name: String,
}

impl Fate {
    /// To be asked at the end: that is what this process ended of.
    ///
    /// # Errors
    /// When the parent was watched and has ended.
    pub fn check(&self) -> Result<(), Gone> {
        let watched = self.0.as_ref();
        match watched.filter(|watched| watched.has_ended.load(Ordering::Acquire)) {
            None => Ok(()),
            Some(watched) => Err(Gone {
                pid: watched.pid,
                name: watched.name.clone(),
            }),
        }
    }
}

impl Parent {
    /// Opens the parent, to be done first of all: the later, the likelier that it has ended before.
    ///
    /// # Errors
    /// When it has ended, or cannot be watched.
    pub fn open() -> Result<Self, Error> {
        let pid = number().ok_or(Error::Elsewhere)?;
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or(Error::Elsewhere)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|errno| match errno {
            rustix::io::Errno::SRCH => Error::Ended(pid),
            errno => Error::Refused {
                pid,
                source: errno.into(),
            },
        })?;
        // Whoever is the parent still was it when it was opened.
        if number() != Some(pid) {
            return Err(Error::Ended(pid));
        }
        let name = name(pid);
        if pid == 1 {
            let started = env::var(STARTED_BY_SYSTEMD).ok();
            let started = started.and_then(|pid| pid.parse().ok());
            check_first(&name, started, process::id())?;
        }
        Ok(Self { pid, name, pidfd })
    }

    /// Cancels `stop` once the parent has ended. A thread of its own waits for that, which no busy runtime delays.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn watch(self, stop: CancellationToken) -> io::Result<Fate> {
        let Self { pid, name, pidfd } = self;
        let watched = Arc::new(Watched {
            pid,
            name,
            has_ended: AtomicBool::new(false),
        });
        let fate = Fate(Some(Arc::clone(&watched)));
        thread::Builder::new()
            .name("parent".to_owned())
            .spawn(move || {
                if let Err(error) = ended(&pidfd) {
                    tracing::error!(%error, "The parent is no longer watched");
                    return;
                }
                tracing::error!(
                    parent = watched.name,
                    pid = watched.pid,
                    "The parent has ended: stopping, as `--parent-death=terminate` asks"
                );
                watched.has_ended.store(true, Ordering::Release);
                stop.cancel();
            })?;
        Ok(fate)
    }
}

/// The number of the parent; none where this namespace has none for it.
fn number() -> Option<u32> {
    getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok())
}

fn ended(pidfd: &OwnedFd) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Refuses a first process that has inherited this one rather than started it.
fn check_first(name: &str, started_by_systemd: Option<u32>, own: u32) -> Result<(), Error> {
    let inherited = name == "systemd" && started_by_systemd.is_some_and(|started| started != own);
    if MANAGERS.contains(&name) && !inherited {
        return Ok(());
    }
    Err(Error::Orphan(name.to_owned()))
}

/// How a process is called: by its command line where that names a manager, as a program that is run from memory
/// has no other name.
fn name(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = line.split(|&byte| byte == 0).next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    let last = first.rsplit('/').next().unwrap_or_default();
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let comm = comm.trim_end();
    match MANAGERS.contains(&last) && !MANAGERS.contains(&comm) {
        true => last.to_owned(),
        false => comm.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_process_is_a_parent_where_it_starts_services_and_started_this_one() {
        let fits = |name, started| check_first(name, started, 70).is_ok();

        assert!(fits("supervisord", None) && fits("runit", None) && fits("init", None));
        assert!(fits("systemd", None) && fits("systemd", Some(70)));
        assert!(!fits("systemd", Some(69)), "the one it started has ended");
        assert!(fits("runsv", Some(69)), "systemd is further up");
        assert!(!fits("tini", None) && !fits("sh", None) && !fits("", None));
    }

    #[test]
    fn each_meaning_is_known_by_its_name_and_no_other() {
        for (name, meaning) in ParentDeath::ALL {
            assert_eq!(ParentDeath::named(name), Some(*meaning));
        }
        assert_eq!(ParentDeath::named("kill"), None);
    }

    #[test]
    fn a_living_process_is_called_as_the_system_calls_it() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(name(process::id()), own.trim_end());
    }
}
