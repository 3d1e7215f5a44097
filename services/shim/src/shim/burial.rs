//! After a worker's end: what is told of it, and to whom it is left.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use tether_clock::{BootClock, Clock, Tick};
use tether_shim_protocol::{Cause, Dead, Message, Proof};

use super::{ACKNOWLEDGE_WITHIN, RECORD_AFTER, Shim};
use crate::cgroup::{Cgroup, Limiting};
use crate::output::Capture;
use crate::{death, files, tree};

impl Shim {
    pub(super) fn await_acknowledgement(&mut self) -> Result<(), Errno> {
        while self.link.is_some() && !self.acknowledged && BootClock.now() < self.leave_at {
            if BootClock.now() >= self.record_at {
                self.record();
            }
            self.turn()?;
        }
        Ok(())
    }

    /// Writes down how it ended and tells the agent.
    pub(super) fn bury(&mut self) {
        self.plan.on_gone();
        for capture in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            capture.drain();
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        let dead = self.describe();
        self.limiting.iter().for_each(Limiting::remove);
        let wait = if dead.cause == Cause::Exited && dead.exit_code == Some(0) {
            RECORD_AFTER
        } else {
            Duration::ZERO
        };
        self.say(&Message::Dead(Box::new(dead.clone())));
        self.dead = Some(dead);
        let now = BootClock.now();
        (self.record_at, self.leave_at) = (now + wait, now + ACKNOWLEDGE_WITHIN);
    }

    /// Leaves the death to the file.
    pub(super) fn record(&mut self) {
        self.record_at = Tick::NEVER;
        // Without a listener the runtime directory was never entered, and `death` would lie in
        // whatever directory the agent happened to be in.
        if self.listener.is_some()
            && let Some(dead) = &self.dead
            // Twice, for a moment without memory must not cost the cause.
            && let Err(errno) = death::record(dead).or_else(|_| death::record(dead))
        {
            files::complain(&format!("cannot record the death in `death`: {errno}"));
        }
    }

    pub(super) fn describe(&self) -> Dead {
        // A child that could not become the worker has no exit status of the worker's.
        let status = self.status.filter(|_| self.failure.is_none());
        let told = self.forked.as_ref().and_then(|forked| forked.told);
        let (max_rss_kib, cpu_ms) = told.map_or_else(tether_sys::children_usage, |told| {
            (told.max_rss_kib, told.cpu_ms)
        });
        let peaks = self.limiting.iter().map(Limiting::peak_memory);
        let peak = peaks.chain(self.cgroup.as_ref().map(Cgroup::peak_memory));
        let lost = |capture: &Option<Capture>| capture.as_ref().map_or(0, Capture::lost_bytes);
        Dead {
            cause: self.plan.cause().unwrap_or(Cause::Unknown),
            exit_code: status.and_then(|status| status.code),
            signal: status.and_then(|status| status.signal),
            core: status.is_some_and(|status| status.core),
            spawn_failure: self.failure,
            reaped: self.reaped + self.reaped_inside(),
            peak_memory_bytes: peak.max().unwrap_or(0),
            proof: match (&self.namespace, &self.cgroup) {
                (Some(_), _) => Proof::Namespace,
                (None, Some(_)) => Proof::Cgroup,
                (None, None) => Proof::Tree,
            },
            survivors: if self.childless {
                u32::from(self.is_leaf_held())
            } else {
                tree::count_living()
            },
            unix_ms: unix_ms(),
            max_rss_kib,
            cpu_ms,
            log_lost_bytes: lost(&self.stdout) + lost(&self.stderr),
            stderr_tail: self
                .stderr
                .as_ref()
                .or(self.stdout.as_ref())
                .map_or(Vec::new(), |stderr| stderr.tail().to_vec()),
        }
    }
}

/// The time of day, for whoever reads of the death.
fn unix_ms() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    let (secs, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    secs.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}
