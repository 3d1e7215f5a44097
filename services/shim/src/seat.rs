//! Where a shim reads its permission: its seat on the lease page, which it looks at at each turn and before its
//! time is over.

use rustix::fd::OwnedFd;
use tether_clock::Tick;
use tether_shim_protocol::Seat;
use tether_sys::{Made, View};

/// The page of this shim's program, and its place there.
#[derive(Debug)]
pub(crate) struct Seated {
    view: View,
    /// For agents, who find it beside each `Hello`.
    pub(crate) writable: OwnedFd,
    /// For the worker.
    readable: OwnedFd,
    /// None where deadlines come as messages.
    pub(crate) seat: Option<Seat>,
    /// When to look again.
    pub(crate) look_at: Tick,
}

impl Seated {
    /// In this seat of this page.
    pub(crate) fn new(page: Made, seat: Option<Seat>) -> Self {
        Self {
            view: page.view,
            writable: page.writable,
            readable: page.readable,
            seat,
            look_at: Tick::ZERO,
        }
    }

    /// Which page it is.
    pub(crate) fn page(&self) -> u64 {
        self.view.id()
    }

    /// What a worker is given that reads its permission here.
    pub(crate) fn passed(&self) -> Option<&OwnedFd> {
        self.seat.map(|_| &self.readable)
    }

    /// Ends of the node's and of the owner's permission; none where nothing is said here, or to somebody else
    /// by now: what was read before stands then.
    pub(crate) fn read(&self) -> Option<(Tick, Tick)> {
        let Seat { slot, generation } = self.seat?;
        let said = self.view.read(tether_sys::Seat { slot, generation })?;
        let tick = Tick::from_nanos;
        let node = said.node.alive.min(said.owner.alive);
        Some((tick(node), tick(said.owner.enabled)))
    }
}
