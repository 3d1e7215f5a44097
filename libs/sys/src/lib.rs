//! The system calls that have no safe form in a library, each behind a function that is safe to call.
//!
//! This is the only crate of the workspace in which `unsafe` is allowed, so that whoever audits it reads
//! one small place. Each block says why it holds. Much of it is safe only **in a process with one
//! thread**: functions for which that matters say so, and the zygote and its shims, the only processes
//! that call those, have one.
//!
//! Shims share the zygote's memory ([`Rooms`]), so nothing here keeps state in the C library or in a
//! `static`, but what is said.

#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![allow(unsafe_code)]

extern crate alloc;

mod birth;
mod call;
mod heap;
#[cfg(feature = "std")]
mod held;
#[cfg(feature = "std")]
mod hold;
#[cfg(feature = "std")]
mod inherited;
mod page;
mod pidfd;
mod program;
mod room;
mod signal;
mod timer;

pub use birth::{Birth, Child, become_beside, exit_child, fork, start_init, unshare};
pub use heap::{OwnHeap, passing};
#[cfg(feature = "std")]
pub use held::hold_life;
#[cfg(feature = "std")]
pub use hold::{Bell, HOLD_BYTES, HOLDS_AT_ONCE, Hold, wait_any};
#[cfg(feature = "std")]
pub use inherited::inherited;
pub use page::{Made, PAGE_BYTES, Page, Reading, SLOTS, Seat, Until, View};
pub use pidfd::{Exit, Seen, exit_of, has_ended, look};
pub use program::{Words, close_from, exec, place};
pub use room::{Room, Rooms, let_go};
pub use signal::{give_back_signals, reset_signals, take_signals, wait_for_child_signal};
pub use timer::Guard;

/// The largest resident set in KiB and the processor time in milliseconds of all reaped children.
pub fn children_usage() -> (u64, u64) {
    let mut usage = core::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a live local of the right type, and all zeroes is a valid value.
    let usage = unsafe {
        let _ = call::call!(getrusage, libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let ms = |time: libc::timeval| time.tv_sec as u64 * 1000 + time.tv_usec as u64 / 1000;
    (
        usage.ru_maxrss as u64,
        ms(usage.ru_utime) + ms(usage.ru_stime),
    )
}
