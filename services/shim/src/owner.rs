//! Watches the process that owns the worker, and only that very process.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tether_shim_protocol::{Identity, OnOwnerExit};

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

/// The start time is compared after the descriptor is open: from then on the pid cannot be
/// reused without the descriptor showing an ended process.
///
/// Only what shows that it has ended counts as that. Where the system has no descriptor to spare it is looked
/// at again with the next renewal, and its lease decides alone until then.
fn open(identity: Identity) -> Owner {
    let pid = i32::try_from(identity.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else { return Owner::Gone };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => match Stat::of(identity.pid) {
            Some(stat) if stat.start_ticks == identity.start_ticks && !stat.is_zombie() => {
                Owner::Watched(pidfd)
            }
            Some(_) => Owner::Gone,
            None if tether_sys::has_ended(pidfd.as_raw_fd()) => Owner::Gone,
            None => Owner::Unseen(identity),
        },
        Err(Errno::SRCH) => Owner::Gone,
        Err(_) => Owner::Unseen(identity),
    }
}
