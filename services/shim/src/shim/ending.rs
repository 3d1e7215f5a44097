//! A worker's end: signals, rounds of killing, and who was reaped.

use core::mem;

use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, wait};
use tether_clock::{BootClock, Clock};
use tether_shim_protocol::{Cause, Message};

use super::Shim;
use crate::cgroup::{Cgroup, Limiting};
use crate::death::Ending;
use crate::namespace::Namespace;
use crate::plan::Step;
use crate::tree;

impl Shim {
    /// Does what the plan decided.
    pub(crate) fn carry_out(&mut self, step: Step) {
        if matches!(step, Step::Terminate | Step::Kill) {
            self.waiting = None;
        }
        match step {
            Step::Wait | Step::GiveUp => {}
            Step::Terminate => {
                self.announce();
                // A stopped process takes SIGTERM only once it goes on.
                for signal in [self.stop_signal(), Signal::CONT] {
                    if self.forked.is_some() {
                        self.signal_forked(signal);
                    } else {
                        tree::signal_all(signal);
                    }
                }
            }
            Step::Kill => {
                let inside = self.count_inside();
                self.count_from_here();
                // Of one that ended by itself and left nothing, the death is the first word.
                if self.status.is_none() || inside != Some(0) {
                    self.announce();
                }
                // Put off at once: the guard must not cut short what is being done here.
                self.set_guard();
                self.reaped += inside.unwrap_or(0);
                self.kill_round();
            }
        }
    }

    /// How many beside the worker live in its namespace, asked once: what the kernel ends with it, the
    /// kernel reaps too. Or in the cgroup of a forked one, who are somebody else's to reap.
    pub(super) fn count_inside(&mut self) -> Option<u32> {
        let is_inside = self.namespace.is_some() || self.forked.is_some();
        if !is_inside || mem::replace(&mut self.counted, true) {
            return None;
        }
        let main = u32::from(self.worker.is_some() && self.status.is_none());
        let all = match &self.cgroup {
            Some(cgroup) => cgroup.members(),
            // With the first of the namespace among them.
            None => tree::count_living().saturating_sub(1),
        };
        Some(all.saturating_sub(main))
    }

    pub(super) fn kill_round(&mut self) {
        match &self.namespace {
            Some(namespace) => namespace.kill(),
            None if self.forked.is_some() => self.kill_forked(),
            None => tree::kill_all(|| self.reap()),
        }
        // Beside those in the namespace there are only strangers, who are seen once those are gone.
        if let Some(cgroup) = &self.cgroup
            && (self.namespace.is_none() || self.childless)
            && cgroup.is_populated()
        {
            cgroup.kill();
        }
    }

    /// What asks the worker to stop.
    pub(super) fn stop_signal(&self) -> Signal {
        Signal::from_named_raw(self.launch.stop_signal).unwrap_or(Signal::TERM)
    }

    /// Orphans reaped inside the namespace since the end began.
    pub(super) fn reaped_inside(&self) -> u32 {
        let reaped = self.namespace.as_ref().map_or(0, Namespace::reaped);
        reaped - self.reaped_before.unwrap_or(reaped)
    }

    /// The end begins: who was reaped before is no part of it.
    pub(super) fn count_from_here(&mut self) {
        let reaped = self.namespace.as_ref().map_or(0, Namespace::reaped);
        self.reaped_before.get_or_insert(reaped);
    }

    /// Says that the worker is about to be ended, once and before the first signal.
    pub(super) fn announce(&mut self) {
        if let Some(cause) = self.plan.cause()
            && !mem::replace(&mut self.announced, true)
        {
            self.count_from_here();
            self.say(&Message::Ending { cause });
        }
    }

    /// Children ended.
    pub(crate) fn on_children(&mut self) {
        if self.forked.is_some() {
            return; // It has none, whatever somebody says.
        }
        let alive = self.status.is_none();
        self.reap();
        let now = BootClock.now();
        if let Some(status) = self.status.filter(|_| alive) {
            let cause = self.cause_of(status);
            let step = self.plan.on_exit(cause, now);
            if let Some(namespace) = &self.namespace
                && step == Step::Wait
            {
                // What it left has the rest of its grace.
                namespace.let_end();
            }
            if !self.is_gone() {
                self.carry_out(step);
            }
        }
        // Only what was moved into the cgroup from elsewhere is left, and SIGTERM does not reach it.
        if self.childless && !self.is_gone() {
            let step = self.plan.on_loss(Cause::Unknown, now);
            self.carry_out(step);
        }
    }

    /// Why a main process ended that was not ended from here.
    pub(super) fn cause_of(&self, ending: Ending) -> Cause {
        let oom = || {
            self.cgroup.as_ref().is_some_and(Cgroup::ran_out_of_memory)
                || self.limiting.iter().any(Limiting::ran_out_of_memory)
        };
        match ending.code {
            Some(0) => Cause::Exited,
            _ if oom() => Cause::OutOfMemory,
            Some(_) => Cause::Exited,
            None => Cause::Signaled,
        }
    }

    pub(super) fn reap(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED) {
                Ok(Some((pid, status))) if status.stopped() || status.continued() => {
                    if self.worker.as_ref().is_some_and(|worker| worker.pid == pid) {
                        self.halted = status.stopped();
                        let halted = self.halted;
                        self.say(&Message::Halted { halted });
                    }
                }
                Ok(Some((pid, status))) => {
                    if self.worker.as_ref().is_some_and(|worker| worker.pid == pid) {
                        self.status = Some(status.into());
                    } else if self
                        .namespace
                        .as_ref()
                        .is_some_and(|namespace| namespace.is_init(pid))
                    {
                        // Not the worker's.
                    } else if self.status.is_some() || self.announced {
                        self.reaped += 1;
                    }
                }
                Ok(None) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.childless = true;
                    return;
                }
            }
        }
    }
}
