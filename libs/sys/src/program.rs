//! A program in the place of this one, and the descriptors that it finds.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::c_char;
use core::ptr;

use rustix::fd::{AsRawFd, OwnedFd, RawFd};
use rustix::io::Errno;

use crate::call::call;

/// Closes every descriptor from `first` on.
///
/// To be called where nothing in this process will use, or close again, a descriptor from `first` on.
pub fn close_from(first: RawFd) {
    // SAFETY: memory is not touched. A kernel without the call leaves them open, which costs descriptors.
    let _ = unsafe { call!(close_range, first, u32::MAX, 0) };
}

/// Puts these descriptors at `first` and the numbers after it, open across an exec.
///
/// To be called in a child that is about to exec: what is at those numbers is closed.
///
/// # Errors
/// Those of `dup2(2)`.
pub fn place(descriptors: &[OwnedFd], first: RawFd) -> Result<(), Errno> {
    // Out of the way first: one of them may be where another one goes.
    let above = first + descriptors.len() as RawFd;
    let moved: Vec<OwnedFd> = descriptors
        .iter()
        .map(|descriptor| rustix::io::fcntl_dupfd_cloexec(descriptor, above))
        .collect::<Result<_, _>>()?;
    for (number, descriptor) in (first..).zip(&moved) {
        // SAFETY: memory is not touched, and whoever owned `number` is about to be replaced by a program.
        unsafe { call!(dup3, descriptor.as_raw_fd(), number, 0)? };
    }
    Ok(())
}

/// Runs the program at `path`; returns only where that failed.
pub fn exec(path: &CString, argv: &[CString], env: &[CString]) -> Errno {
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter()
            .map(|text| text.as_ptr())
            .chain([ptr::null()])
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in a null pointer and outlive the call, as do their strings.
    let failed = unsafe { call!(execve, path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    failed.err().unwrap_or(Errno::INVAL)
}
