//! A lease as an object of the kernel.

use core::mem::MaybeUninit;
use core::ptr;

use rustix::io::Errno;
use rustix::time::{Itimerspec, Timespec};

use crate::call::call;

/// A kernel timer on `CLOCK_BOOTTIME` that kills its own process with SIGKILL.
///
/// It goes off whether that process is busy, stopped, frozen (version 2) or has every signal blocked: a
/// signal timer needs nobody awake. A fork does not inherit it and an exec deletes it.
#[derive(Debug)]
pub struct Guard(i32);

impl Guard {
    /// A timer that is not set.
    ///
    /// # Errors
    /// Those of `timer_create(2)`.
    pub fn new() -> Result<Self, Errno> {
        let mut event = MaybeUninit::<libc::sigevent>::zeroed();
        let mut timer = 0;
        // SAFETY: all zeroes is a valid `sigevent`, and both pointers are to live locals.
        unsafe {
            let event = event.assume_init_mut();
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = libc::SIGKILL;
            let (event, timer) = (ptr::from_mut(event), &raw mut timer);
            call!(timer_create, libc::CLOCK_BOOTTIME, event, timer)?;
        }
        Ok(Self(timer))
    }

    /// Sets when it goes off, in nanoseconds of `CLOCK_BOOTTIME`; nothing is never.
    ///
    /// # Errors
    /// Those of `timer_settime(2)`: it is set as it was before.
    pub fn set(&self, at_ns: Option<u64>) -> Result<(), Errno> {
        // Zero switches the timer off, so boot itself counts as one nanosecond later.
        let nanos = at_ns.map_or(0, |at| at.max(1));
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_sec: (nanos / 1_000_000_000) as i64,
                tv_nsec: (nanos % 1_000_000_000) as i64,
            },
        };
        let (value, old) = (&raw const value, ptr::null_mut::<Itimerspec>());
        // SAFETY: the value is live; the timer lives as long as the process.
        unsafe { call!(timer_settime, self.0, libc::TIMER_ABSTIME, value, old) }.map(drop)
    }
}
