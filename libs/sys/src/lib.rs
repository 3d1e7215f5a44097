//! The system calls that have no safe form in a library, each behind a function that is safe to call.
//!
//! This is the only crate of the workspace in which `unsafe` is allowed, so that whoever audits it reads
//! one small place. Each block says why it holds. Much of it is safe only **in a program with one
//! thread**: functions for which that matters say so, and the zygote and its shims, the only programs
//! that call those, have one.

#![allow(unsafe_code)]

mod fork;
mod inherited;
mod memory;
mod pidfd;
mod signal;
mod timer;

pub use fork::{Birth, Child, close_from, exec, exit_child, fork, place, start_init, unshare};
pub use inherited::inherited;
pub use memory::{find_title, forget_start, let_go, title};
pub use pidfd::{Exit, exit_of, has_ended};
pub use signal::{give_back_signals, reset_signals, take_signals, wait_for_child_signal};
pub use timer::Guard;

/// The largest resident set in KiB and the processor time in milliseconds of all reaped children.
pub fn children_usage() -> (u64, u64) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a live local of the right type, and all zeroes is a valid value.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let ms = |time: libc::timeval| time.tv_sec as u64 * 1000 + time.tv_usec as u64 / 1000;
    (
        usage.ru_maxrss as u64,
        ms(usage.ru_utime) + ms(usage.ru_stime),
    )
}
