//! Calls of the kernel without the C library in between.
//!
//! The library keeps the number of the last error in a place of each thread's own. Processes that share
//! memory without being threads share that place too, and each would read the other's error.

use rustix::io::Errno;

/// What a call came back with.
pub(crate) fn result(value: usize) -> Result<usize, Errno> {
    syscalls::Errno::from_ret(value).map_err(|errno| Errno::from_raw_os_error(errno.into_raw()))
}

/// Makes the call `Sysno::$name` with these arguments, numbers or pointers.
///
/// It is as unsafe as the call is.
macro_rules! call {
    ($name:ident $(, $argument:expr)* $(,)?) => {
        $crate::call::result(::syscalls::raw_syscall!(::syscalls::Sysno::$name $(, $argument)*))
    };
}

pub(crate) use call;
