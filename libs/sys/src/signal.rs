//! Signals taken through a descriptor, and given back to a program as a fresh process has them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the pointer is to a live local, which `sigemptyset` initialises.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Blocks exactly these signals.
fn block(signals: &[i32]) {
    let set = set_of(signals);
    // SAFETY: the set is initialised and outlives the call.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) };
}

/// Takes SIGCHLD and SIGTERM through a descriptor, and ignores the signals of terminals and broken pipes.
///
/// # Errors
/// When the kernel gives no descriptor.
pub fn take_signals() -> io::Result<OwnedFd> {
    // SAFETY: no handler is installed, only dispositions. SIGCHLD may have been inherited as ignored, and
    // then no child could be waited for.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT] {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
    let taken = [libc::SIGCHLD, libc::SIGTERM];
    block(&taken);
    let set = set_of(&taken);
    // SAFETY: the set is initialised; a descriptor that is given is nobody else's.
    unsafe {
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

/// Gives a program the signal dispositions that [`take_signals`] changed as a fresh process has them, and
/// an empty mask: for the child of a process that called [`reset_signals`] before.
pub fn give_back_signals() {
    // SAFETY: SIG_DFL is a valid disposition.
    unsafe {
        for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT] {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    block(&[]);
}

/// Gives this process the signal dispositions and the empty mask of a fresh one.
pub fn reset_signals() {
    // SAFETY: SIG_DFL is a valid disposition; the numbers that cannot be changed are refused.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    block(&[]);
}

/// Waits for a blocked SIGCHLD. Comes back early where the wait is interrupted.
pub fn wait_for_child_signal() {
    let set = set_of(&[libc::SIGCHLD]);
    // SAFETY: the set is initialised; nothing else is asked for. `sigwaitinfo` is a cancellation point of
    // threads, and there are none.
    unsafe { libc::sigwaitinfo(&raw const set, ptr::null_mut()) };
}
