//! How a process ended that is somebody else's child.

use rustix::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::call::call;

/// `struct pidfd_info` of `ioctl_pidfd(2)`, in its first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: usize = 0xC000_FF0B | size_of::<PidfdInfo>() << 16;

const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// How the process behind `pidfd` ended; nothing while it lives or was not reaped, and from kernels
/// before 6.15, which tell that to a parent alone.
pub fn exit_of(pidfd: impl AsFd) -> Option<Exit> {
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the structure is live and as long as the request's number says.
    let done = unsafe {
        call!(
            ioctl,
            pidfd.as_fd().as_raw_fd(),
            PIDFD_GET_INFO,
            &raw mut info
        )
    };
    if done.is_err() || info.mask & PIDFD_INFO_EXIT == 0 {
        return None;
    }
    let status = info.exit_code;
    Some(if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    })
}

/// Whether the process behind the pidfd of this number has ended. Uses no state of the library, so that
/// a process which shares its parent's memory may ask.
///
/// A parent that died before its child asked for the parent-death signal will never send it, and to a
/// child in another PID namespace its parent's id says nothing: this does.
pub fn has_ended(pidfd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd: pidfd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live entry, as said; a number that is no descriptor is answered in `revents`.
    let ready = unsafe { has_news(&raw mut poll) };
    ready == Ok(1) && poll.revents & libc::POLLIN != 0
}

/// What a look at a process showed that is known by its number.
#[derive(Debug)]
pub enum Seen {
    /// This descriptor is its very own.
    Alive(OwnedFd),
    /// It has ended, or its number is another's.
    Gone,
    /// Nothing: the system refused to look, which is no evidence of an end.
    Not,
}

/// Looks for a living process with this number. `is_it` tells whether that is the one meant, and nothing where
/// it cannot tell: it is asked once the descriptor is open, from when on the number cannot become another's
/// without the descriptor showing an end.
pub fn look(pid: u32, is_it: impl FnOnce() -> Option<bool>) -> Seen {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Seen::Gone;
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Seen::Gone,
        Err(_) => return Seen::Not,
    };
    match is_it() {
        Some(true) => Seen::Alive(pidfd),
        Some(false) => Seen::Gone,
        None if has_ended(pidfd.as_raw_fd()) => Seen::Gone,
        None => Seen::Not,
    }
}

/// Looks once whether this has anything to tell.
///
/// # Safety
/// The entry is live.
#[cfg(target_arch = "x86_64")]
unsafe fn has_news(entry: *mut libc::pollfd) -> Result<usize, Errno> {
    // SAFETY: passed on.
    unsafe { call!(poll, entry, 1, 0) }
}

/// The same where the kernel has only the longer call.
///
/// # Safety
/// The entry is live.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn has_news(entry: *mut libc::pollfd) -> Result<usize, Errno> {
    let at_once = [0_i64; 2];
    // SAFETY: passed on; the time is live.
    unsafe {
        call!(
            ppoll,
            entry,
            1,
            &raw const at_once,
            core::ptr::null::<u64>(),
            8
        )
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::{Signal, pidfd_send_signal};

    use super::*;

    #[test]
    fn only_evidence_of_an_end_counts_as_one() {
        let own = std::process::id();
        let mut child = Command::new("true").spawn().unwrap();
        let pidfd = match look(child.id(), || Some(true)) {
            Seen::Alive(pidfd) => pidfd,
            seen => panic!("{seen:?}"),
        };
        while !has_ended(pidfd.as_raw_fd()) {
            std::thread::yield_now();
        }

        assert!(matches!(look(own, || Some(true)), Seen::Alive(_)));
        assert!(matches!(look(own, || Some(false)), Seen::Gone));
        assert!(matches!(look(own, || None), Seen::Not));
        assert!(matches!(look(child.id(), || None), Seen::Gone));
        child.wait().unwrap();
        assert!(matches!(look(u32::MAX, || Some(true)), Seen::Gone));
    }

    #[test]
    fn an_end_is_told_once_the_process_was_reaped() {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert_eq!(exit_of(&pidfd), None);

        pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
        child.wait().unwrap();

        // A kernel before 6.15 does not tell.
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let mut parts = release
            .split('.')
            .map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        let expected = (version >= (6, 15)).then_some(Exit::Signal(9));
        assert_eq!(exit_of(&pidfd), expected);
    }
}
