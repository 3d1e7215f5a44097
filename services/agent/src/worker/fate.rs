//! What gateways are told of a worker, before the arbiter has recorded it.

use std::fs;

use rustix::process::Signal;
use tether_proto::fate::Fate;
use tether_shim_protocol::Cause;
use tether_sys::{Exit, Hold};
use tether_types::{Death, DeathCause, Orderer};

use super::Task;
use crate::{journal::Entry, life::Sign, report};

/// Why it is not known whether a worker works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Doubt {
    /// It is stopped, as by SIGSTOP.
    pub(super) halted: bool,
    /// It did not answer when it was asked last.
    pub(super) unwell: bool,
}

impl Task {
    /// Says whether it gives signs of life.
    pub(super) fn doubt(&mut self, doubt: Doubt) {
        self.doubt = doubt;
        let fate = match doubt {
            Doubt {
                halted: false,
                unwell: false,
            } => Fate::Running,
            _ => Fate::Doubtful,
        };
        self.ties.ground.fates.tell(&self.id, fate, None);
    }

    /// Its main process shared a lock that it holds.
    pub(super) fn on_hold(&mut self, memory: std::os::fd::OwnedFd) {
        match Hold::of(memory) {
            Ok(hold) => self.life.on_hold(self.ties.ground.holds.watch(hold)),
            Err(error) => {
                tracing::warn!(worker = %self.id, %error, "Worker shares something else than a lock: its death will be seen a little later");
            }
        }
    }

    /// Its main process is seen to end.
    pub(super) fn on_sign(&mut self, sign: Sign) {
        let (fate, exit) = match sign {
            Sign::Dying(exit) => (Fate::Dying, exit),
            Sign::Gone(exit) => (Fate::Dead, exit),
        };
        let fates = &self.ties.ground.fates;
        match exit {
            Some(exit) => fates.tell(&self.id, fate, Some(&self.death_by(exit))),
            // Its shim will know how it ended.
            None => fates.tell(&self.id, Fate::Ending, None),
        }
    }

    /// What is known of its death when it is seen: what its shim will say of it, without the evidence.
    fn death_by(&self, exit: Exit) -> Death {
        let (exit_code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
        };
        let by_itself = match exit {
            Exit::Code(0) => Cause::Exited,
            _ if self.ran_out_of_memory() => Cause::OutOfMemory,
            Exit::Code(_) => Cause::Exited,
            Exit::Signal(_) => Cause::Signaled,
        };
        let cause = report::cause(self.ending.unwrap_or(by_itself), exit_code, signal);
        Death {
            cause: match cause {
                DeathCause::Signaled(signal) if self.signalled == Some(signal) => {
                    DeathCause::Ordered(Orderer::Operator)
                }
                cause => cause,
            },
            exit_code,
            signal,
            detail: String::new(),
            stderr_tail: String::new(),
            measures: None,
        }
    }

    /// Whether the kernel has killed any of it for want of memory. Its cgroups are of this incarnation alone.
    fn ran_out_of_memory(&self) -> bool {
        let Some(entry) = Entry::read(&self.dir) else {
            return false;
        };
        let events = entry.cgroup.iter().map(|path| path.join("memory.events"));
        let limiting = entry.limiting.iter();
        let controls = limiting.map(|path| path.join("memory.oom_control"));
        events.chain(controls).any(|file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let killed = text
                .lines()
                .filter_map(|line| line.strip_prefix("oom_kill "));
            killed.into_iter().any(|count| count.trim() != "0")
        })
    }

    /// Says that it is about to be ended, and waits until gateways give it no more calls.
    pub(super) async fn announce_end(&self) {
        self.ties.ground.fates.announce(&self.id).await;
    }
}

/// Whether a signal ends whatever it is sent to.
pub(super) fn is_deadly(signo: i32) -> bool {
    signo == Signal::KILL.as_raw()
}
