//! A worker that is no child of its shim: it was forked by a fork server, and is held by three things that
//! need no parent, its pidfd, its cgroup and the connection over which it was asked for.
//!
//! ```text
//! ask --> waits for the answer --> runs --> has ended --> its cgroup is empty
//!              |                              how is told by the server, or by the kernel
//!              +--> refused, or given up: nothing of it ever runs
//! ```

use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use tether_clock::{BootClock, Clock, Tick};
use tether_shim_protocol::{Cause, SpawnFailure, Stage};

use super::{RESTLESS, Shim};
use crate::cgroup::Limiting;
use crate::death::Ending;
use crate::files;
use crate::forkserver::{self, Answer, Told};
use crate::launch::{Worker, failed, failed_at};
use crate::stdio::{Ours, Stdio};

/// Between two looks at how a worker ended that nobody has reaped yet, and how long that is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const LOOK_FOR: Duration = Duration::from_millis(500);

/// The end of a worker that was asked for.
#[derive(Debug)]
pub(crate) struct Forked {
    /// To the fork server. Where it closes, the kernel kills the worker.
    connection: Option<OwnedFd>,
    /// The worker's end of its standard error: the reason of a refusal goes there.
    error: Option<OwnedFd>,
    /// Says when its cgroup has lost its last member.
    events: OwnedFd,
    /// When its end was seen, and when to look again how it came.
    ended: Option<Tick>,
    look_at: Tick,
    /// What its parent told of its end.
    pub(crate) told: Option<Told>,
}

impl Forked {
    /// When to look again.
    pub(crate) fn next(&self) -> Tick {
        self.look_at
    }
}

impl Shim {
    /// Asks the fork server for the worker; its answer comes later.
    pub(super) fn fork_from(&mut self, server: &[u8]) -> Result<Ours, SpawnFailure> {
        let at = failed_at;
        // Without one nobody could name what the worker leaves: no agent asks for that.
        let cgroup = self.cgroup.as_ref();
        let cgroup = cgroup.ok_or_else(|| failed(Stage::Cgroup, Errno::OPNOTSUPP))?;
        let events = cgroup.events().map_err(at(Stage::Cgroup))?;
        let (ours, theirs) = Stdio::open(&self.launch.input).map_err(at(Stage::Pipe))?;
        let error = rustix::io::fcntl_dupfd_cloexec(theirs.error(), 3).map_err(at(Stage::Pipe))?;
        let limiting = self.limiting.iter().map(Limiting::path);
        let cgroups: Vec<&[u8]> = core::iter::once(cgroup.path()).chain(limiting).collect();
        let descriptors: Vec<_> = theirs
            .descriptors()
            .into_iter()
            .chain(self.passed())
            .collect();
        let connection = forkserver::ask(server, &self.launch, &cgroups, &descriptors)
            .map_err(at(Stage::Fork))?;
        self.childless = false;
        self.forked = Some(Forked {
            connection: Some(connection),
            error: Some(error),
            events,
            ended: None,
            look_at: Tick::NEVER,
            told: None,
        });
        Ok(ours)
    }

    /// What tells of a forked worker.
    pub(crate) fn forked_sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let forked = self.forked.as_ref();
        let connection = forked.and_then(|forked| forked.connection.as_ref());
        let running = forked.filter(|forked| forked.ended.is_none());
        let main = running.and(self.worker.as_ref());
        // Its first look has been taken: what is told is a change since then.
        let events = forked.filter(|_| self.is_leaf_held());
        [
            connection.map(|connection| (connection.as_fd(), PollFlags::IN)),
            main.map(|worker| (worker.pidfd.as_fd(), PollFlags::IN)),
            events.map(|forked| (forked.events.as_fd(), PollFlags::PRI)),
        ]
        .into_iter()
        .flatten()
    }

    /// Something may have happened to a forked worker.
    pub(crate) fn on_forked(&mut self) {
        self.hear_forkserver();
        let has_ended = |worker: &Worker| tether_sys::has_ended(worker.pidfd.as_raw_fd());
        if !self.childless && self.worker.as_ref().is_some_and(has_ended) {
            self.on_forked_end();
        }
        if let Some(forked) = self.forked.as_mut().filter(|_| self.childless) {
            // A look at what is there has the next change told.
            let _ = rustix::io::read(&forked.events, &mut [0; 64]);
            let _ = rustix::fs::seek(&forked.events, SeekFrom::Start(0));
        }
    }

    fn hear_forkserver(&mut self) {
        while let Some(forked) = &mut self.forked
            && let Some(answer) = forked.connection.as_ref().and_then(forkserver::hear)
        {
            match answer {
                Answer::Worker(pidfd) => {
                    forked.error = None;
                    self.on_forked_start(pidfd);
                }
                Answer::Refused(errno, why) => self.on_refusal(errno, &why),
                Answer::Ended(told) => forked.told = Some(told),
                Answer::Gone => {
                    forked.connection = None;
                    if self.worker.is_none() && !self.childless {
                        self.on_refusal(Errno::CONNRESET, b"the fork server went away");
                    }
                }
            }
        }
    }

    fn on_forked_start(&mut self, pidfd: OwnedFd) {
        // One that was reaped by now has no number any more, and nobody needs one.
        let pid = pid_of(&pidfd);
        self.worker = Some(Worker {
            pid: pid.unwrap_or_else(getpid),
            pidfd,
        });
        match pid {
            Some(pid) => self.on_started(pid),
            None => self.rest_at = BootClock.now() + RESTLESS,
        }
    }

    fn on_refusal(&mut self, errno: Errno, why: &[u8]) {
        self.childless = true;
        if let Some(error) = self.forked.as_mut().and_then(|forked| forked.error.take()) {
            // The pipe is empty; a reason is shorter than what it takes.
            let _ = rustix::io::write(&error, &[b"tether-forkserver: ", why, b"\n"].concat());
        }
        self.refuse(failed(Stage::Fork, errno));
    }

    /// Its main process has ended: what is left is to learn how, and to see the rest gone.
    fn on_forked_end(&mut self) {
        let now = BootClock.now();
        let (Some(forked), Some(worker)) = (&mut self.forked, &self.worker) else {
            return;
        };
        let since = *forked.ended.get_or_insert(now);
        let told = forked.told.map(|told| Ending::from_raw(told.status));
        // Its parent knows more than the kernel tells, and says so once it has reaped it.
        let may_be_told = forked.connection.is_some() && now < since + LOOK_FOR;
        let seen = || tether_sys::exit_of(&worker.pidfd).map(Ending::from);
        let ending = told.or_else(|| if may_be_told { None } else { seen() });
        if ending.is_none() && now < since + LOOK_FOR {
            forked.look_at = now + LOOK_AGAIN;
            return;
        }
        forked.look_at = Tick::NEVER;
        forked.connection = None;
        self.status = ending;
        self.childless = true;
        let cause = ending.map_or(Cause::Unknown, |ending| self.cause_of(ending));
        let step = self.plan.on_exit(cause, now);
        if !self.is_gone() {
            self.carry_out(step);
        }
    }

    /// Sends `signal` to every process in its cgroup.
    pub(super) fn signal_forked(&mut self, signal: Signal) {
        self.give_up_forked();
        let Some(cgroup) = &self.cgroup else { return };
        for pid in cgroup.pids() {
            let pidfd =
                Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            // Still there once it is pinned: so it is that one, and no other with its number.
            if let Some(pidfd) = pidfd.filter(|_| cgroup.pids().contains(&pid)) {
                let _ = pidfd_send_signal(&pidfd, signal);
            }
        }
    }

    /// Kills its main process; its cgroup is killed as any.
    pub(super) fn kill_forked(&mut self) {
        self.give_up_forked();
        if let Some(worker) = &self.worker {
            let _ = pidfd_send_signal(&worker.pidfd, Signal::KILL);
        }
    }

    /// Where there is no answer yet, hangs up: the fork server forks nothing for one that is gone, and what
    /// it was about to let go is killed as the connection closes, before its first line or in its cgroup.
    fn give_up_forked(&mut self) {
        if let Some(forked) = self.forked.as_mut().filter(|_| self.worker.is_none()) {
            forked.connection = None;
            self.childless = true;
        }
    }
}

/// The process id behind a pidfd, as it is seen from here.
fn pid_of(pidfd: &OwnedFd) -> Option<Pid> {
    let info = files::text(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()).as_bytes())?;
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    line.trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 0)
        .and_then(Pid::from_raw)
}
