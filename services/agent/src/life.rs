//! Whether a worker's main process lives: seen by its pidfd, and before that, where the worker has one, by a lock that it
//! holds for as long as it lives.
//!
//! ```text
//!  SIGKILL --> the lock is let go of --> memory is taken apart --> pidfd, SIGCHLD, FIN
//!              `- Dying, once the kernel      (110 ms per GiB)      `- Gone
//!                 says that it is so
//! ```

use std::{fs, os::fd::OwnedFd, time::Duration};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tether_sys::{Exit, exit_of};
use tokio::{
    io::unix::AsyncFd,
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::polled;

/// How long after its lock was let go of a process is looked at. Longer than the kernel takes to mark all of its threads;
/// one that lives on has only lost the thread that held it.
const LOOK_FOR: Duration = Duration::from_millis(20);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Of `flags` in `/proc/PID/stat`: it is on its way out.
const PF_EXITING: u32 = 0x4;

/// What is seen, with how it ends where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// It executes nothing any more.
    Dying(Option<Exit>),
    /// It is gone.
    Gone(Option<Exit>),
}

/// One main process; none where there is nothing to see.
#[derive(Debug, Default)]
pub(crate) struct Life {
    pid: u32,
    /// Not waited for yet: those that are found are heard on threads where nothing can be waited for.
    opened: Option<OwnedFd>,
    pidfd: Option<AsyncFd<OwnedFd>>,
    let_go: Option<oneshot::Receiver<()>>,
    /// Until when it is looked at whether it is dying.
    suspected: Option<Instant>,
}

impl Life {
    /// That of a process which was just said to run. Where it has ended already, and its number is another's, its shim
    /// tells of its death before anything is seen here.
    pub(crate) fn of(pid: u32) -> Self {
        let opened = || {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
            pidfd_open(pid, PidfdFlags::empty()).ok()
        };
        Self {
            pid,
            opened: opened(),
            ..Self::default()
        }
    }

    /// It holds a lock, and this tells when it does not any more.
    pub(crate) fn on_hold(&mut self, let_go: oneshot::Receiver<()>) {
        self.let_go = Some(let_go);
    }

    /// The next sign of its end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Sign {
        if let Some(opened) = self.opened.take() {
            self.pidfd = polled::readable(opened).ok();
        }
        loop {
            if let Some(until) = self.suspected {
                let seen = Stat::of(self.pid).filter(Stat::is_dying);
                if seen.is_some() || Instant::now() >= until {
                    self.suspected = None;
                }
                if let Some(stat) = seen {
                    return Sign::Dying(Some(stat.exit));
                }
            }
            let Self {
                pidfd,
                let_go,
                suspected,
                ..
            } = self;
            tokio::select! {
                biased;
                () = ended(pidfd) => {
                    // Reaped or not: its shim is about to.
                    let exit = Stat::of(self.pid).filter(Stat::is_dying).map(|stat| stat.exit);
                    let exit = exit.or_else(|| exit_of(self.pidfd.as_ref()?.get_ref()));
                    self.pidfd = None;
                    self.let_go = None;
                    return Sign::Gone(exit);
                }
                told = told(let_go) => {
                    self.let_go = None;
                    self.suspected = told.then(|| Instant::now() + LOOK_FOR);
                }
                () = sleep(LOOK_AGAIN), if suspected.is_some() => {}
            }
        }
    }
}

async fn ended(pidfd: &Option<AsyncFd<OwnedFd>>) {
    match pidfd {
        Some(pidfd) if pidfd.readable().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

/// Whether the lock was let go of, rather than that nobody waits for it.
async fn told(let_go: &mut Option<oneshot::Receiver<()>>) -> bool {
    match let_go {
        Some(let_go) => let_go.await.is_ok(),
        None => std::future::pending().await,
    }
}

/// What the kernel shows of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    flags: u32,
    threads: u32,
    exit: Exit,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name before that may hold anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Numbered from 3, as in proc_pid_stat(5).
        let field = |number: usize| fields.get(number - 3).copied();
        let status: i32 = field(52)?.parse().ok()?;
        Some(Self {
            flags: field(9)?.parse().ok()?,
            threads: field(20)?.parse().ok()?,
            exit: match status & 0x7f {
                0 => Exit::Code(status >> 8 & 0xff),
                signal => Exit::Signal(signal),
            },
        })
    }

    /// Whether all of it is on its way out: one whose first thread has ended alone looks much the same, but ended
    /// with nothing to tell, and the others are there.
    fn is_dying(&self) -> bool {
        self.flags & PF_EXITING != 0 && (self.exit != Exit::Code(0) || self.threads <= 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(flags: u32, threads: u32, status: i32) -> Stat {
        let between = "0 ".repeat(31);
        let text = format!(
            "7 (a) b) R 1 7 7 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 {threads} {between}{status}\n"
        );
        Stat::parse(&text).unwrap()
    }

    #[test]
    fn a_process_is_dying_when_all_of_it_is() {
        assert!(!stat(0x40_0000, 1, 0).is_dying());
        assert!(stat(0x40_0004, 1, 0).is_dying());
        assert!(stat(0x40_0004, 12, 9).is_dying());
        assert!(!stat(0x40_0004, 12, 0).is_dying(), "its first thread ended");
        assert_eq!(stat(4, 1, 9).exit, Exit::Signal(9));
        assert_eq!(stat(4, 1, 3 << 8).exit, Exit::Code(3));
        assert_eq!(stat(4, 1, 0x80 | 11).exit, Exit::Signal(11), "with a core");
    }

    #[test]
    fn the_kernel_shows_this_very_process_as_alive() {
        assert!(!Stat::of(std::process::id()).unwrap().is_dying());
    }

    #[test]
    fn one_that_is_found_is_made_where_nothing_can_be_waited_for() {
        let mut life = Life::of(std::process::id());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let sign = tokio::time::timeout(Duration::ZERO, life.next()).await;
            assert!(sign.is_err(), "it lives");
        });
    }

    #[tokio::test]
    async fn an_end_is_seen_with_how_it_came_while_nobody_has_reaped_it() {
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let mut life = Life::of(child.id());
        child.kill().unwrap();

        assert_eq!(life.next().await, Sign::Gone(Some(Exit::Signal(9))));
        child.wait().unwrap();
    }
}
