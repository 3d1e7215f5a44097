//! Watches the process that owns the worker, and only that very process.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tether_shim_protocol::{Identity, OnOwnerExit};

use crate::proc::Stat;

/// What is known of the owner's process.
#[derive(Debug)]
pub(crate) enum Owner {
    /// Its end means nothing here.
    Unwatched,
    /// Readable once it has ended.
    Watched(OwnedFd),
    /// It ended before it could be watched.
    Gone,
}

impl Owner {
    /// Watches `identity` where its end matters.
    pub(crate) fn watch(identity: Option<Identity>, on_exit: OnOwnerExit) -> Self {
        match (identity, on_exit) {
            (Some(identity), OnOwnerExit::Kill) => open(identity).map_or(Self::Gone, Self::Watched),
            (None, OnOwnerExit::Kill) | (_, OnOwnerExit::Ignore) => Self::Unwatched,
        }
    }
}

/// The start time is compared after the descriptor is open: from then on the pid cannot be
/// reused without the descriptor showing an ended process.
fn open(identity: Identity) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(identity.pid).ok()?)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let stat = Stat::of(identity.pid)?;
    (stat.start_ticks == identity.start_ticks && !stat.is_zombie()).then_some(pidfd)
}
