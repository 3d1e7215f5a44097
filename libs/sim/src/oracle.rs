//! What must never be seen. Nothing here asks the cores: it knows the true time, and who is really alive.

use std::fmt;

use tether_types::Epoch;

use crate::{
    agenda::Owner,
    world::{SECOND, World},
};

/// The longest a kill takes here, from the timer until the worker is gone.
pub(crate) const KILL: u64 = 300_000_000;

/// The longest a message is under way.
pub(crate) const DELAY_MAX: u64 = 10 * SECOND;

/// How long a gateway without its watch still trusts what it knew.
pub(crate) const STALE: u64 = 2 * SECOND;

/// How often a lease is extended on trust: by the first beat of all, and by the two that may follow the last answer heard.
const TRUST: u32 = 3;

/// Rounding of clocks to whole nanoseconds, many times over.
const ROUNDING: u64 = 1_000_000;

/// What is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// No worker is alive beyond its permission.
    Permission,
    /// One live holder under the clock assumption.
    OneLive,
    /// One effective holder, always.
    OneEffective,
    /// No loss that is shorter than the grace ends anything.
    NoInnocentDeath,
    /// Nobody who cannot hear keeps a slot from others.
    NoDeafHolder,
    /// A gateway lets no call through whose epoch is over.
    FencedAtTheGateway,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permission => "P1, no worker alive beyond its permission",
            Self::OneLive => "P2, one live holder",
            Self::OneEffective => "P2, one effective holder",
            Self::NoInnocentDeath => "P3, no innocent death",
            Self::NoDeafHolder => "no slot kept by one who cannot hear",
            Self::FencedAtTheGateway => "P2, fenced at the gateway",
        })
    }
}

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// When, in true nanoseconds of the schedule.
    pub at: u64,
    /// By whom and how.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at as f64 / 1e9;
        write!(f, "{} ({at:.3} s: {})", self.promise, self.text)
    }
}

impl World {
    pub(crate) fn violated(&mut self, promise: Promise, text: String) {
        let at = self.now;
        self.violation
            .get_or_insert(Violation { promise, at, text });
    }

    /// P2, live: of all workers of a slot, those whose machine runs and could have ended them.
    pub(crate) fn check_live(&mut self, slot: usize) {
        let mut first: Option<usize> = None;
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            let Some(worker) = node.worker.filter(|_| node.slot == slot) else {
                continue;
            };
            let woke = node.machine.resumed;
            let waking = woke > 0 && self.now < woke + KILL + ROUNDING;
            if worker.excused || !node.machine.is_up() || waking {
                continue;
            }
            match first {
                None => first = Some(index),
                Some(other) => {
                    let text = format!("workers of slot {slot} live on nodes {other} and {index}");
                    return self.violated(Promise::OneLive, text);
                }
            }
        }
    }

    /// P1 and P3, when a worker is gone, and for those that are left at the end.
    pub(crate) fn check_end(&mut self, index: usize, is_gone: bool) {
        let node = &self.nodes[index];
        let Some(worker) = node.worker.filter(|worker| !worker.excused) else {
            return;
        };
        let by = worker.permitted.max(node.machine.resumed) + KILL + ROUNDING;
        if node.machine.is_up() && self.now > by {
            let late = (self.now - worker.permitted) as f64 / 1e9;
            let text =
                format!("the worker of node {index} was alive {late:.3} s after its permission");
            return self.violated(Promise::Permission, text);
        }
        if is_gone {
            self.check_innocent(index);
        }
    }

    /// P3: while all was well for long enough, a beat got through; what it earned is not over yet.
    fn check_innocent(&mut self, index: usize) {
        let (node, enough) = (&self.nodes[index], self.setup.enough());
        let mut good = node.good;
        if node.trouble == 0 && self.now - node.calm_since >= enough {
            good = self.now - enough;
        }
        // The fastest clock there is goes a tenth ahead.
        if good > 0 && good + self.setup.ttl / 10 * 9 > self.now {
            let ago = (self.now - good) as f64 / 1e9;
            let text = format!(
                "the worker of node {index} ended although its beats got through {ago:.3} s before"
            );
            self.violated(Promise::NoInnocentDeath, text);
        }
    }

    /// A lease was granted to one who may be deaf: its acceptance was said before, and is not under way for ever.
    pub(crate) fn check_deaf_grant(&mut self, index: usize) {
        let node = &self.nodes[index];
        let Some(deaf) = node.deaf_since else { return };
        if self.now > deaf.max(node.anew) + DELAY_MAX + 3 * SECOND {
            let since = (self.now - deaf) as f64 / 1e9;
            let text = format!("node {index}, deaf for {since:.3} s, was granted its slot");
            self.violated(Promise::NoDeafHolder, text);
        }
    }

    /// A slot is kept from one who asks by an offer that nobody accepted.
    pub(crate) fn check_offer(&mut self, slot: usize, made: u64) {
        let since = self
            .nodes
            .iter()
            .map(|node| node.anew)
            .max()
            .unwrap_or(0)
            .max(made);
        if self.now > since + DELAY_MAX {
            let kept = (self.now - made) as f64 / 1e9;
            let text = format!("slot {slot} is kept for {kept:.3} s by an offer");
            self.violated(Promise::NoDeafHolder, text);
        }
    }

    /// A lease of one who may be deaf was extended: by beats that were said before, and two more.
    pub(crate) fn check_deaf_beat(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        let Some(deaf) = node.deaf_since else { return };
        let from = deaf.max(node.anew);
        if node.on_trust.0 != from {
            node.on_trust = (from, 0);
        }
        if now > from + DELAY_MAX {
            node.on_trust.1 += 1;
        }
        let extended = node.on_trust.1;
        if extended > TRUST {
            let text = format!("the lease of node {index}, deaf, was extended {extended} times");
            self.violated(Promise::NoDeafHolder, text);
        }
    }

    /// P2, effective: what a resource takes never comes from an earlier epoch than before.
    pub(crate) fn check_effective(&mut self, slot: usize, epoch: Epoch) {
        let highest = &mut self.resources[slot].highest;
        if epoch < *highest {
            let text =
                format!("slot {slot} took a write of epoch {epoch} after one of epoch {highest}");
            return self.violated(Promise::OneEffective, text);
        }
        *highest = epoch;
    }

    /// A gateway let a call through.
    pub(crate) fn check_gateway(&mut self, gateway: usize, slot: usize, epoch: Epoch) {
        let owner: Option<Owner> = self.store.owners[slot];
        if let Some(owner) = owner
            && epoch < owner.epoch
            && self.now > owner.granted + STALE
        {
            let text = format!(
                "gateway {gateway} let a call of epoch {epoch} through, {} s after epoch {} of slot {slot} began",
                (self.now - owner.granted) / SECOND,
                owner.epoch
            );
            self.violated(Promise::FencedAtTheGateway, text);
        }
    }
}
