//! Takes the lock that whoever watches over this process learns its death by: the worker's side of [`Hold`](crate::Hold).

use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::process::getpid;
use rustix::thread::{futex, gettid};

use crate::hold::{HOLD_BYTES, MARK, PLACE_AT};

/// Where the lock is, aligned as it has to be.
const LOCK_AT: usize = 64;

/// Takes a lock that the kernel lets go of when this process ends, and answers the memory that it is in, to be sent to
/// the agent. It is held for good: nothing gives it back.
///
/// # Errors
/// `EPERM` from another thread than the main one, whose end would look like that of the process; `ENOTSUP` where the
/// C library's lock does not say who holds it; else those of `memfd_create(2)`, `mmap(2)` and `pthread_mutex_lock(3)`.
pub fn hold_life() -> Result<OwnedFd, Errno> {
    if gettid() != getpid() {
        return Err(Errno::PERM);
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create(c"tether-life", flags)?;
    ftruncate(&memory, HOLD_BYTES as u64)?;
    fcntl_add_seals(
        &memory,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: new addresses, which nobody has yet. They stay mapped: C library and kernel find the lock there.
    let at = unsafe {
        mmap(
            ptr::null_mut(),
            HOLD_BYTES,
            access,
            MapFlags::SHARED,
            &memory,
            0,
        )?
    };
    // SAFETY: within the memory, which is all zeroes and aligned as a page is; nobody else knows of it yet.
    let lock = unsafe { at.byte_add(LOCK_AT) };
    take(lock.cast())?;
    let me = gettid().as_raw_nonzero().get().cast_unsigned();
    let place = (0..size_of::<libc::pthread_mutex_t>() / size_of::<u32>())
        .map(|word| LOCK_AT + word * size_of::<u32>())
        .find(|place| {
            // SAFETY: a word of the lock, which others only change together with the kernel: atomically.
            let word = unsafe { &*at.byte_add(*place).cast::<AtomicU32>() };
            word.load(Ordering::Relaxed) & !(futex::WAITERS | futex::OWNER_DIED) == me
        })
        .ok_or(Errno::NOTSUP)?;
    // SAFETY: two words at the beginning of the memory, aligned as a page is, and mapped for good.
    let (said, mark) = unsafe {
        (
            &*at.byte_add(PLACE_AT).cast::<AtomicU32>(),
            &*at.cast::<AtomicU64>(),
        )
    };
    said.store(place as u32, Ordering::Relaxed);
    mark.store(MARK, Ordering::Release);
    Ok(memory)
}

/// Makes a lock there that others may look at and that the kernel lets go of, and takes it.
fn take(lock: *mut libc::pthread_mutex_t) -> Result<(), Errno> {
    let mut kind = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
    let kind = kind.as_mut_ptr();
    // SAFETY: initialised by the first call, and not used after this. The lock has room and alignment, by the caller.
    unsafe {
        check(libc::pthread_mutexattr_init(kind))?;
        check(libc::pthread_mutexattr_setpshared(
            kind,
            libc::PTHREAD_PROCESS_SHARED,
        ))?;
        check(libc::pthread_mutexattr_setrobust(
            kind,
            libc::PTHREAD_MUTEX_ROBUST,
        ))?;
        check(libc::pthread_mutex_init(lock, kind))?;
        check(libc::pthread_mutex_lock(lock))
    }
}

fn check(error: i32) -> Result<(), Errno> {
    match error {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_thread_than_the_main_one_is_refused() {
        let elsewhere = std::thread::spawn(|| hold_life().map(drop));
        assert_eq!(elsewhere.join().unwrap(), Err(Errno::PERM));
    }
}
