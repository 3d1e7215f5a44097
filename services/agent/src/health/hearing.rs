//! What follows from what a worker says of itself.

use std::{os::fd::OwnedFd, time::Instant};

use tether_proto::pool::ReadinessKind;

use super::{Health, HealthEvent, stage::Stage};
use crate::notify::{Datagram, Said};

impl Health {
    pub(super) fn on_datagram(&mut self, datagram: Datagram, now: Instant) -> Option<HealthEvent> {
        let Datagram {
            pid,
            said,
            descriptors,
        } = datagram;
        if !self.family.has(pid) {
            tracing::debug!(worker = %self.id, pid, "A process that is not of the worker speaks for it, and is not heard");
            return None;
        }
        if said.holds {
            self.hold = descriptors.into_iter().next();
            return self.hold.is_some().then_some(HealthEvent::Holds(pid));
        }
        self.keep(&said, descriptors);
        if let Some(text) = said.status {
            self.status.said = text;
        }
        match &mut self.stage {
            Stage::Ready(Some(watch)) => {
                if let Some(longest) = said.watchdog {
                    watch.liveness.on_watchdog(longest, now);
                }
                if said.alive {
                    watch.liveness.on_alive(now);
                }
            }
            Stage::Unborn(_) | Stage::Starting(_) | Stage::Ready(None) | Stage::Leaving(_) => {}
            Stage::Over => return None,
        }
        if said.trigger {
            return Some(self.end("it said WATCHDOG=trigger".to_owned()));
        }
        if said.stopping {
            if !matches!(self.stage, Stage::Leaving(_)) {
                return Some(self.on_leaving(now));
            }
            return None;
        }
        match &self.stage {
            Stage::Starting(waiting) if said.ready && waiting.kind == ReadinessKind::Notify => {
                Some(self.on_ready(now))
            }
            _ => None,
        }
    }

    /// Keeps or closes descriptors; those that came without a word are closed, which is the answer that
    /// sd_notify_barrier(3) waits for.
    fn keep(&self, said: &Said, descriptors: Vec<OwnedFd>) {
        let (pool, slot, name) = (&self.id.pool, self.id.slot, said.name.as_deref());
        if said.remove {
            self.store.remove(pool, slot, name);
        } else if said.store {
            let refused = self.store.keep(pool, slot, name, descriptors);
            if refused > 0 {
                tracing::warn!(worker = %self.id, refused, "Worker stores more descriptors than are kept; these were closed");
            }
        }
    }
}
