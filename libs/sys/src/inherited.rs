//! Descriptors that a parent left open for this program.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

/// Which were taken already.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes over the descriptor of this number, which a parent said is for this program: closed on exec from
/// here on. Each can be taken once.
///
/// # Errors
/// When it is one of the standard streams, is not open, or was taken before.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if number <= libc::STDERR_FILENO || !taken.insert(number) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: memory is not touched; a number that is no descriptor is answered as such.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, its parent said that it is ours, and nobody else took it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_taken_once_and_a_standard_stream_never() {
        use std::os::fd::IntoRawFd;

        let number = std::fs::File::open("/dev/null").unwrap().into_raw_fd();

        assert!(inherited(number).is_ok());
        assert!(inherited(number).is_err());
        assert!(inherited(2).is_err());
    }
}
