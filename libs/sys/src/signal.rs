//! Signals taken through a descriptor, and given back to a program as a fresh process has them.

use core::ptr;

use rustix::fd::{FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;

use crate::call::call;

/// As many bytes as the kernel's set of signals has.
const SET_BYTES: usize = size_of::<u64>();

const fn set_of(signals: &[i32]) -> u64 {
    let mut set = 0;
    let mut place = 0;
    while place < signals.len() {
        set |= 1 << (signals[place] - 1);
        place += 1;
    }
    set
}

/// What is taken through the descriptor.
const TAKEN: u64 = set_of(&[libc::SIGCHLD, libc::SIGTERM]);

/// Blocks exactly these signals.
fn block(set: u64) {
    let (set, old) = (&raw const set, ptr::null_mut::<u64>());
    // SAFETY: the set is live and as long as is said.
    let _ = unsafe { call!(rt_sigprocmask, libc::SIG_SETMASK, set, old, SET_BYTES) };
}

/// The kernel's own `struct sigaction`.
#[repr(C)]
struct Action {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

/// Sets the disposition of a signal; one that cannot be changed stays as it is.
fn dispose(signal: i32, handler: libc::sighandler_t) {
    let action = Action {
        handler,
        flags: 0,
        restorer: 0,
        mask: 0,
    };
    let (action, old) = (&raw const action, ptr::null_mut::<Action>());
    // SAFETY: no handler is installed, only one of the two dispositions that run nothing.
    let _ = unsafe { call!(rt_sigaction, signal, action, old, SET_BYTES) };
}

/// Those of terminals and broken pipes; and those from outside that would have memory dumped, which kernels
/// before 5.17 take for the end of all processes in that memory.
const IGNORED: &[i32] = &[
    libc::SIGPIPE,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// Takes SIGCHLD and SIGTERM through a descriptor, and ignores what a process of this kind has no use for.
///
/// # Errors
/// When the kernel gives no descriptor.
pub fn take_signals() -> Result<OwnedFd, Errno> {
    // It may have been inherited as ignored, and then no child could be waited for.
    dispose(libc::SIGCHLD, libc::SIG_DFL);
    for signal in IGNORED {
        dispose(*signal, libc::SIG_IGN);
    }
    block(TAKEN);
    let (set, flags) = (TAKEN, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
    // SAFETY: the set is live and as long as is said; a descriptor that is given is nobody else's.
    unsafe {
        let number = call!(signalfd4, -1_isize, &raw const set, SET_BYTES, flags)?;
        Ok(OwnedFd::from_raw_fd(number as RawFd))
    }
}

/// Gives a program the signal dispositions that [`take_signals`] changed as a fresh process has them, and
/// an empty mask: for the child of a process that called [`reset_signals`] before.
pub fn give_back_signals() {
    for signal in IGNORED {
        dispose(*signal, libc::SIG_DFL);
    }
    block(0);
}

/// Gives this process the signal dispositions and the empty mask of a fresh one.
pub fn reset_signals() {
    for signal in 1..=64 {
        dispose(signal, libc::SIG_DFL);
    }
    block(0);
}

/// Waits for a blocked SIGCHLD. Comes back early where the wait is interrupted.
pub fn wait_for_child_signal() {
    let set = set_of(&[libc::SIGCHLD]);
    let (info, time) = (ptr::null_mut::<u8>(), ptr::null::<u8>());
    // SAFETY: the set is live and as long as is said; nothing else is asked for.
    let _ = unsafe { call!(rt_sigtimedwait, &raw const set, info, time, SET_BYTES) };
}
