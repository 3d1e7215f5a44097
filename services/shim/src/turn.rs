//! One turn of the shim: set the timers, wait for anything at all, and act, deadlines first.

use alloc::vec;
use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
use tether_clock::{BootClock, Clock, Tick};

use crate::link::Link;
use crate::output::Capture;
use crate::owner::Owner;
use crate::shim::{Forked, Shim};

/// More than the longest that an agent says after the launch: a larger piece of stack would stay resident.
const WORD_BYTES: usize = 256;

/// What can wake the shim.
#[derive(Debug, Clone, Copy)]
enum Source {
    Timer,
    Signals,
    Owner,
    Forked,
    Caller,
    Listener,
    Link,
    Stdout,
    Stderr,
}

impl Shim {
    /// Waits for one or more events and acts on them.
    pub(crate) fn turn(&mut self) -> Result<(), Errno> {
        self.set_timers();
        let ready = self.wait()?;
        let now = BootClock.now();
        self.look(now);
        let step = self.plan.check(now);
        self.carry_out(step);
        for source in ready {
            self.act(source);
        }
        Ok(())
    }

    /// Sets the timer to the plan's next moment and the guard to its last.
    pub(crate) fn set_timers(&self) {
        let look_at = self.forked.as_ref().map_or(Tick::NEVER, Forked::next);
        let ours = self.record_at.min(self.leave_at).min(self.rest_at);
        let next = self
            .plan
            .next()
            .min(ours)
            .min(look_at)
            .min(self.seated.look_at);
        if self.guard_at.get() != Some(self.plan.guard()) {
            self.set_guard();
        }
        if self.timer_at.replace(Some(next)) == Some(next) {
            return;
        }
        // Zero switches the timer off, so boot itself counts as one nanosecond later.
        let nanos = if next == Tick::NEVER {
            0
        } else {
            next.as_nanos().max(1)
        };
        let it_value = Timespec {
            tv_sec: (nanos / 1_000_000_000).cast_signed(),
            tv_nsec: (nanos % 1_000_000_000).cast_signed(),
        };
        let it_interval = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Itimerspec {
            it_interval,
            it_value,
        };
        // It also takes back the readiness of the time before. What was not set is tried again.
        if timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &value).is_err() {
            self.timer_at.set(None);
        }
    }

    fn wait(&self) -> Result<Vec<Source>, Errno> {
        let sources = self.sources();
        let mut fds: Vec<_> = sources
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) => {}
            // A moment without memory is no reason to end a worker; the guard holds whatever this does.
            Err(Errno::INTR | Errno::NOMEM) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
        let ready = sources
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = vec![
            (Source::Timer, self.timer.as_fd(), PollFlags::IN),
            (Source::Signals, self.signals.as_fd(), PollFlags::IN),
        ];
        if let Owner::Watched(pidfd) = &self.owner {
            sources.push((Source::Owner, pidfd.as_fd(), PollFlags::IN));
        }
        for socket in self.awaited() {
            sources.push((Source::Caller, socket.as_fd(), PollFlags::IN));
        }
        for (fd, flags) in self.forked_sources() {
            sources.push((Source::Forked, fd, flags));
        }
        if let Some(listener) = &self.listener {
            sources.push((Source::Listener, listener.as_fd(), PollFlags::IN));
        }
        if let Some(link) = &self.link {
            let out = if link.has_unsent() {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
            sources.push((Source::Link, link.as_fd(), PollFlags::IN | out));
        }
        for (source, capture) in [
            (Source::Stdout, &self.stdout),
            (Source::Stderr, &self.stderr),
        ] {
            if let Some(pipe) = capture.as_ref().and_then(Capture::pipe) {
                sources.push((source, pipe.as_fd(), PollFlags::IN));
            }
        }
        sources
    }

    fn act(&mut self, source: Source) {
        match source {
            // The plan was asked before anything else was looked at.
            Source::Timer => {
                self.timer_at.set(None);
                self.rest();
                self.on_forked();
            }
            Source::Signals => self.on_signals(),
            Source::Owner => self.on_owner_gone(),
            Source::Forked => self.on_forked(),
            Source::Caller => self.on_caller(),
            Source::Listener => self.accept(),
            Source::Link => self.hear(),
            Source::Stdout => read(&mut self.stdout),
            Source::Stderr => read(&mut self.stderr),
        }
    }

    fn on_signals(&mut self) {
        // One `signalfd_siginfo`, which begins with the signal's number.
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while let Ok(count) = rustix::io::read(&self.signals, &mut info)
            && count == info.len()
        {
            let [a, b, c, d, ..] = info;
            if i32::from_ne_bytes([a, b, c, d]) == libc::SIGTERM {
                self.on_terminate();
            } else {
                self.on_children();
            }
        }
    }

    fn accept(&mut self) {
        // In one call: an agent whose connection was taken and then let go would end the worker.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if let Some(listener) = &self.listener
            && let Ok(stream) = accept_with(listener, flags)
        {
            self.on_connection(Link::unblocked(stream));
        }
    }

    fn hear(&mut self) {
        let Some(link) = &mut self.link else { return };
        link.flush();
        let (messages, good) = link.receive::<WORD_BYTES>();
        for message in messages {
            self.on_message(message);
        }
        if !good {
            self.on_link_lost();
        }
    }
}

fn read(capture: &mut Option<Capture>) {
    if let Some(capture) = capture {
        capture.read_chunk();
    }
}
