//! Watches the process that owns the worker, and only that very process.

use rustix::fd::OwnedFd;
use tether_shim_protocol::{Identity, OnOwnerExit};
use tether_sys::Seen;

use crate::proc::Stat;

/// What is known of the owner's process.
#[derive(Debug)]
pub(crate) enum Owner {
    /// Its end means nothing here.
    Unwatched,
    /// Its end matters, but the system had no descriptor or no memory for a look at it.
    Unseen(Identity),
    /// Readable once it has ended.
    Watched(OwnedFd),
    /// It ended before it could be watched.
    Gone,
}

impl Owner {
    /// Watches `identity` where its end matters.
    pub(crate) fn watch(identity: Option<Identity>, on_exit: OnOwnerExit) -> Self {
        match (identity, on_exit) {
            (Some(identity), OnOwnerExit::Kill) => open(identity),
            (None, OnOwnerExit::Kill) | (_, OnOwnerExit::Ignore) => Self::Unwatched,
        }
    }
}

/// Where the system has no descriptor to spare it is looked at again a moment later, and its lease decides alone
/// until then.
fn open(identity: Identity) -> Owner {
    let is_it = |stat: Stat| stat.start_ticks == identity.start_ticks && !stat.is_zombie();
    match tether_sys::look(identity.pid, || Stat::of(identity.pid).map(is_it)) {
        Seen::Alive(pidfd) => Owner::Watched(pidfd),
        Seen::Gone => Owner::Gone,
        Seen::Not => Owner::Unseen(identity),
    }
}
