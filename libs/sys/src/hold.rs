//! A lock that a worker holds for as long as it lives, in memory that it shares with whoever watches over it.
//!
//! ```text
//!  mark | where the lock's word is | ...   the lock, a robust mutex of the C library
//! ```
//!
//! The kernel lets go of such a lock when the thread that has it ends, before it takes the process's memory apart:
//! for a process of gibibytes that is hundreds of milliseconds before anything else tells of its end. It wakes who
//! waits only where the word says that somebody does, so the watcher writes that into it.
//!
//! The memory is the worker's own, so it is believed as much as the worker is: a lock that was let go of is a hint, and
//! the process is to be looked at. It is a sealed memory file: nobody can cut it short, so no read of it is ever
//! answered with a signal.

use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use alloc::vec::Vec;
use rustix::fd::AsFd;
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;
use rustix::time::ClockId;

/// How long the memory is.
pub const HOLD_BYTES: usize = 4096;

/// The most that [`wait_any`] waits for at once: the kernel takes 128, and one is the bell.
pub const HOLDS_AT_ONCE: usize = 127;

/// The first word: what this is, and in which layout.
pub(crate) const MARK: u64 = u64::from_ne_bytes(*b"tetherH1");

/// Where it is said where the lock's word is, in bytes.
pub(crate) const PLACE_AT: usize = 8;

/// Where a lock may be.
const LOCK_FROM: usize = 16;

/// A lock that somebody holds.
#[derive(Debug)]
pub struct Hold {
    memory: *mut AtomicU64,
    /// In words of four bytes.
    word: usize,
}

// SAFETY: it points to atomic words, mapped until this is dropped.
unsafe impl Send for Hold {}
// SAFETY: as above.
unsafe impl Sync for Hold {}

impl Hold {
    /// Maps what a worker shares.
    ///
    /// # Errors
    /// `EINVAL` where it is no such memory, else those of `mmap(2)`.
    pub fn of(memory: impl AsFd) -> Result<Self, Errno> {
        let memory = memory.as_fd();
        let is_fixed = fcntl_get_seals(memory)?.contains(SealFlags::SHRINK);
        if !is_fixed || fstat(memory)?.st_size != HOLD_BYTES as i64 {
            return Err(Errno::INVAL);
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new addresses, which nobody has yet.
        let at = unsafe {
            mmap(
                ptr::null_mut(),
                HOLD_BYTES,
                access,
                MapFlags::SHARED,
                memory,
                0,
            )?
        };
        // Unmapped by this, whatever is found there.
        let mut hold = Self {
            memory: at.cast(),
            word: 0,
        };
        // SAFETY: so many bytes are mapped there, aligned as a page of memory is.
        let mark = unsafe { (*hold.memory).load(Ordering::Acquire) };
        let place = hold
            .word_at(PLACE_AT / size_of::<u32>())
            .load(Ordering::Acquire) as usize;
        let fits =
            (LOCK_FROM..HOLD_BYTES).contains(&place) && place.is_multiple_of(size_of::<u32>());
        if mark != MARK || !fits {
            return Err(Errno::INVAL);
        }
        hold.word = place / size_of::<u32>();
        Ok(hold)
    }

    fn word_at(&self, word: usize) -> &AtomicU32 {
        let words: *mut AtomicU32 = self.memory.cast();
        // SAFETY: within the memory, as was looked at or is constant; mapped for as long as this is.
        unsafe { &*words.add(word) }
    }

    fn word(&self) -> &AtomicU32 {
        self.word_at(self.word)
    }

    /// Whether nobody holds it, or whoever did has ended.
    pub fn is_let_go(&self) -> bool {
        is_let_go(self.word().load(Ordering::Acquire))
    }

    /// Says in the lock that somebody waits, and answers what it says then; nothing where nobody holds it.
    fn arm(&self) -> Option<u32> {
        let word = self.word();
        let mut said = word.load(Ordering::Acquire);
        loop {
            if is_let_go(said) {
                return None;
            }
            let armed = said | futex::WAITERS;
            match word.compare_exchange(said, armed, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(armed),
                Err(other) => said = other,
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // SAFETY: mapped by this, and nobody borrows from it any more.
        let _ = unsafe { munmap(self.memory.cast(), HOLD_BYTES) };
    }
}

fn is_let_go(word: u32) -> bool {
    let holder = word & !(futex::WAITERS | futex::OWNER_DIED);
    holder == 0 || word & futex::OWNER_DIED != 0
}

/// Wakes who waits for holds, to look at others.
#[derive(Debug, Default)]
pub struct Bell(AtomicU32);

impl Bell {
    /// How often it was rung: to be asked before it is known what to wait for.
    pub fn rung(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Rings it.
    pub fn ring(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, u32::MAX);
    }
}

/// Waits until one of these is let go of, or the bell is rung again after it was `rung` so often. May come back
/// without either.
///
/// # Errors
/// `ENOSYS` from kernels before 5.16; `EINVAL` for more than [`HOLDS_AT_ONCE`].
pub fn wait_any<'a>(
    holds: impl IntoIterator<Item = &'a Hold>,
    bell: &Bell,
    rung: u32,
) -> Result<(), Errno> {
    let mut waits = Vec::with_capacity(HOLDS_AT_ONCE + 1);
    let private = futex::WaitFlags::SIZE_U32 | futex::WaitFlags::PRIVATE;
    waits.push(wait(&bell.0, rung, private));
    for hold in holds {
        match hold.arm() {
            Some(said) => waits.push(wait(hold.word(), said, futex::WaitFlags::SIZE_U32)),
            None => return Ok(()),
        }
    }
    let flags = futex::WaitvFlags::empty();
    match futex::waitv(&waits, flags, None, ClockId::Monotonic) {
        // What it said has changed before the kernel looked.
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn wait(word: &AtomicU32, said: u32, flags: futex::WaitFlags) -> futex::Wait {
    let mut wait = futex::Wait::new();
    wait.val = said.into();
    wait.uaddr = futex::WaitPtr::new(word.as_ptr().cast());
    wait.flags = flags;
    wait
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use rustix::io::pwrite;

    use super::*;

    const LOCK_AT: usize = 64;

    fn memory(bytes: usize, seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = memfd_create(c"hold", flags).unwrap();
        ftruncate(&memory, bytes as u64).unwrap();
        fcntl_add_seals(&memory, seals).unwrap();
        memory
    }

    /// With a lock that thread 7 holds, as far as it says.
    fn held() -> (OwnedFd, Hold) {
        let memory = memory(HOLD_BYTES, SealFlags::SHRINK);
        pwrite(&memory, b"tetherH1", 0).unwrap();
        pwrite(&memory, &(LOCK_AT as u32).to_ne_bytes(), PLACE_AT as u64).unwrap();
        pwrite(&memory, &7_u32.to_ne_bytes(), LOCK_AT as u64).unwrap();
        let hold = Hold::of(&memory).unwrap();
        (memory, hold)
    }

    #[test]
    fn memory_that_could_be_cut_short_or_names_no_place_in_it_is_refused() {
        let refused = |memory: &OwnedFd| Hold::of(memory).unwrap_err() == Errno::INVAL;
        assert!(refused(&memory(HOLD_BYTES, SealFlags::empty())));
        assert!(refused(&memory(HOLD_BYTES / 2, SealFlags::SHRINK)));
        assert!(refused(&memory(HOLD_BYTES, SealFlags::SHRINK)), "no mark");
        let (memory, _) = held();
        for place in [0_u32, 66, HOLD_BYTES as u32, u32::MAX] {
            pwrite(&memory, &place.to_ne_bytes(), PLACE_AT as u64).unwrap();
            assert!(refused(&memory), "{place}");
        }
    }

    #[test]
    fn whoever_waits_is_woken_by_the_bell_and_by_a_holder_that_ended() {
        let (_memory, hold) = held();
        let bell = Bell::default();
        thread::scope(|scope| {
            let (woken, wakes) = mpsc::channel();
            let (bell, hold) = (&bell, &hold);
            scope.spawn(move || {
                while !hold.is_let_go() {
                    let rung = bell.rung();
                    woken.send(rung).unwrap();
                    wait_any([hold], bell, rung).unwrap();
                }
            });
            let long = Duration::from_secs(10);
            assert_eq!(wakes.recv_timeout(long), Ok(0));
            bell.ring();
            while wakes.recv_timeout(long).unwrap() == 0 {}
            // As the kernel does it.
            let ended = futex::OWNER_DIED | futex::WAITERS;
            hold.word().store(ended, Ordering::SeqCst);
            futex::wake(hold.word(), futex::Flags::empty(), 1).unwrap();
            while wakes.recv_timeout(long).is_ok() {}
        });
        assert!(hold.is_let_go());
    }
}
