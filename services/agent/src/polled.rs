//! A descriptor of a kind that the runtime has no type for, to wait on.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Has the runtime wait until there is something to read from it.
///
/// # Errors
/// When it cannot be waited for.
pub(crate) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        deprecated,
        reason = "unsound for a descriptor that is another's later; this one is owned"
    )]
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}
