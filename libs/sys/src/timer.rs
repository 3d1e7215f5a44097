//! A lease as an object of the kernel.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// A kernel timer on `CLOCK_BOOTTIME` that kills its own process with SIGKILL.
///
/// It goes off whether that process is busy, stopped, frozen (version 2) or has every signal blocked: a
/// signal timer needs nobody awake. A fork does not inherit it and an exec deletes it.
#[derive(Debug)]
pub struct Guard(libc::timer_t);

impl Guard {
    /// A timer that is not set.
    ///
    /// # Errors
    /// Those of `timer_create(2)`.
    pub fn new() -> io::Result<Self> {
        let mut event = MaybeUninit::<libc::sigevent>::zeroed();
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: all zeroes is a valid `sigevent`, and both pointers are to live locals.
        let done = unsafe {
            let event = event.assume_init_mut();
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = libc::SIGKILL;
            libc::timer_create(libc::CLOCK_BOOTTIME, event, &raw mut timer)
        };
        if done == 0 {
            Ok(Self(timer))
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Sets when it goes off, in nanoseconds of `CLOCK_BOOTTIME`; nothing is never.
    ///
    /// # Errors
    /// Those of `timer_settime(2)`: it is set as it was before.
    pub fn set(&self, at_ns: Option<u64>) -> io::Result<()> {
        // Zero switches the timer off, so boot itself counts as one nanosecond later.
        let nanos = at_ns.map_or(0, |at| at.max(1));
        let mut value = MaybeUninit::<libc::itimerspec>::zeroed();
        // SAFETY: all zeroes is a valid `itimerspec`; the timer lives as long as the process.
        let done = unsafe {
            let value = value.assume_init_mut();
            value.it_value.tv_sec = (nanos / 1_000_000_000) as libc::time_t;
            value.it_value.tv_nsec = (nanos % 1_000_000_000) as libc::c_long;
            libc::timer_settime(self.0, libc::TIMER_ABSTIME, value, ptr::null_mut())
        };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
