//! The system calls that have no safe wrapper, each behind a function that is safe to call in a
//! program with one thread, which the shim is.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Pid;
use tether_clock::Tick;

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: RawFd) {
    // SAFETY: runs before anything in this program owns a descriptor from `first` on. A kernel
    // without the call leaves them open, which costs descriptors and nothing else.
    unsafe { libc::close_range(first as libc::c_uint, libc::c_uint::MAX, 0) };
}

/// Takes SIGCHLD and SIGTERM through a descriptor and ignores the signals of terminals.
pub(crate) fn take_signals() -> io::Result<OwnedFd> {
    // SAFETY: every pointer is to a live local, and no handler is installed, only dispositions.
    // SIGCHLD may have been inherited as ignored, and then no child could be waited for.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT] {
            libc::signal(signal, libc::SIG_IGN);
        }
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

/// Gives the worker the signal dispositions and the empty mask of a fresh process.
pub(crate) fn reset_signals() {
    // SAFETY: SIG_DFL is a valid disposition; the numbers that cannot be changed are refused.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
    }
}

/// Forks: the child's pid in the parent, `None` in the child.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: there is one thread, so the child's copy of memory has no lock held by another.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// Runs the program at `path`; returns the error number, and only where that failed.
pub(crate) fn exec(path: &CString, argv: &[CString], env: &[CString]) -> i32 {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter()
            .map(|text| text.as_ptr())
            .chain([ptr::null()])
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in a null pointer and outlive the call, as do their strings.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EINVAL)
}

/// Ends a forked child without running what the parent registered for its own exit.
pub(crate) fn exit_child() -> ! {
    // SAFETY: takes no pointer and does not return.
    unsafe { libc::_exit(127) }
}

/// The largest resident set in KiB and the processor time in milliseconds of all reaped children.
pub(crate) fn children_usage() -> (u64, u64) {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
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

/// Lets go of the program's own pages that only its start needed. A shim waits for days and then
/// needs a few of them, which come back from the page cache.
pub(crate) fn forget_start() {
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let page = rustix::param::page_size();
    let first = (&raw const __executable_start)
        .addr()
        .next_multiple_of(page);
    let length = (&raw const etext).addr().saturating_sub(first) / page * page;
    // SAFETY: the linker defines both symbols, around read-only pages of the program's file that
    // nothing has written to, so the next access reads the same bytes again.
    unsafe {
        libc::madvise(
            ptr::with_exposed_provenance_mut(first),
            length,
            libc::MADV_DONTNEED,
        )
    };
}

/// A kernel timer that kills the shim itself, and by its parent-death signal the worker.
///
/// It goes off only when the shim could not act on its deadline: stopped by a debugger or
/// SIGSTOP, or stuck in a write. A signal timer needs nobody awake.
#[derive(Debug)]
pub(crate) struct Guard(libc::timer_t);

impl Guard {
    pub(crate) fn new() -> io::Result<Self> {
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

    /// Sets when it goes off; [`Tick::NEVER`] is never.
    pub(crate) fn set(&self, at: Tick) {
        // Zero switches the timer off, so boot itself counts as one nanosecond later.
        let nanos = if at == Tick::NEVER {
            0
        } else {
            at.as_nanos().max(1)
        };
        let mut value = MaybeUninit::<libc::itimerspec>::zeroed();
        // SAFETY: all zeroes is a valid `itimerspec`; the timer lives as long as the process.
        unsafe {
            let value = value.assume_init_mut();
            value.it_value.tv_sec = (nanos / 1_000_000_000) as libc::time_t;
            value.it_value.tv_nsec = (nanos % 1_000_000_000) as libc::c_long;
            libc::timer_settime(self.0, libc::TIMER_ABSTIME, value, ptr::null_mut());
        }
    }
}
