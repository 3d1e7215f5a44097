//! How a process ended that is somebody else's child.

use rustix::fd::{AsFd, AsRawFd, RawFd};

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

/// Looks once whether this has anything to tell.
///
/// # Safety
/// The entry is live.
#[cfg(target_arch = "x86_64")]
unsafe fn has_news(entry: *mut libc::pollfd) -> Result<usize, rustix::io::Errno> {
    // SAFETY: passed on.
    unsafe { call!(poll, entry, 1, 0) }
}

/// The same where the kernel has only the longer call.
///
/// # Safety
/// The entry is live.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn has_news(entry: *mut libc::pollfd) -> Result<usize, rustix::io::Errno> {
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

    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::*;

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
