//! The lease page: memory that an agent writes and all shims of a zygote read, so that one store of eight bytes
//! renews every worker of a node.
//!
//! ```text
//!  mark | id | node: enabled until, alive until | generations so far | moves so far | ...   slots, four words each:
//!    enabled until | alive until | epoch | generation
//! ```
//!
//! A slot is enabled until the end of what its owner's word allows, and alive until the end of what its node's
//! does. Whoever reads it may do what others see before both words *enabled until* are over, and be there before
//! the slot's *enabled until* and both words *alive until* are.
//!
//! A slot is a pool's, or, once it may live on for longer than the others of its pool, one worker's alone. That one
//! is known by its generation, which is made of the worker's incarnation: the worker was told of its pool's slot when
//! it began, and looks for another whenever **moves so far** has changed, which it is after the slot was opened.
//!
//! All times are nanoseconds of `CLOCK_BOOTTIME`, absolute. A single aligned word of eight bytes is read whole
//! or not at all, and whoever reads it a moment late reads an earlier end, which is never wrong. What takes a
//! protocol is a slot that is given to another pool: its time must never be taken for one's own. So the writer
//! closes a slot (generation zero) before it writes another's time into it, and opens it with a generation that
//! was never used after; and a reader looks at the time **first** and at the generation after. Whoever has seen
//! the other's time then sees that the slot is not its own any more.
//!
//! The memory is a sealed memory file: nobody can cut it short, so no read of it is ever answered with a signal.

use alloc::ffi::CString;
use alloc::format;
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, fallocate, fchmod, fcntl_add_seals,
    fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::io::{Errno, pwrite, retry_on_intr};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::time::{ClockId, clock_gettime};

/// How long it is; all of it is there from the beginning, so that no store has to wait for memory.
pub const PAGE_BYTES: usize = 16 * 1024;

/// How many slots it has.
pub const SLOTS: u32 = ((WORDS - SLOTS_AT) / SLOT_WORDS) as u32;

const WORDS: usize = PAGE_BYTES / size_of::<u64>();

/// The first word: what this is, and in which layout.
const MARK: u64 = u64::from_ne_bytes(*b"tetherL1");

const ID_AT: usize = 1;
const NODE_AT: usize = 2;
const GENERATIONS_AT: usize = 4;
const MOVES_AT: usize = 5;
const SLOTS_AT: usize = 8;
const SLOT_WORDS: usize = 4;
const ENABLED: usize = 0;
const ALIVE: usize = 1;
const EPOCH: usize = 2;
const GENERATION: usize = 3;

/// Nobody's slot.
const CLOSED: u64 = 0;

/// Marks the generation of a slot that is one worker's alone.
const OWN: u64 = 1 << 63;

/// Ends of a permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Until {
    /// Until when a worker may do what others see.
    pub enabled: u64,
    /// Until when it may be there.
    pub alive: u64,
}

/// Whose time a shim reads: a slot, as long as it has this generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Its number.
    pub slot: u32,
    /// What it was opened with.
    pub generation: u64,
}

impl Seat {
    /// The generation of the only slot that is ever this incarnation's alone on a page.
    pub const fn own_generation(incarnation: u64) -> u64 {
        OWN | incarnation
    }

    /// Whether it is one worker's alone.
    pub const fn is_own(self) -> bool {
        self.generation & OWN != 0
    }
}

/// What a seat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Of the node.
    pub node: Until,
    /// Of the owner.
    pub owner: Until,
    /// The owner's session.
    pub epoch: u64,
}

/// One word, however it is made: the proof of the protocol runs it on other words than the program does.
trait Word {
    fn get(&self) -> u64;
    fn set(&self, value: u64);
}

impl Word for AtomicU64 {
    fn get(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn set(&self, value: u64) {
        self.store(value, Ordering::Release);
    }
}

fn slot_words<W>(words: &[W], slot: u32) -> Option<&[W]> {
    let at = SLOTS_AT + usize::try_from(slot).ok()?.checked_mul(SLOT_WORDS)?;
    words.get(at..at.checked_add(SLOT_WORDS)?)
}

fn until<W: Word>(words: &[W]) -> Until {
    Until {
        enabled: words[ENABLED].get(),
        alive: words[ALIVE].get(),
    }
}

fn set_until<W: Word>(words: &[W], until: Until) {
    words[ENABLED].set(until.enabled);
    words[ALIVE].set(until.alive);
}

/// Times first, then whose they are.
fn read<W: Word>(words: &[W], seat: Seat) -> Option<Reading> {
    let slot = slot_words(words, seat.slot)?;
    let reading = Reading {
        node: until(&words[NODE_AT..]),
        owner: until(slot),
        epoch: slot[EPOCH].get(),
    };
    (seat.generation != CLOSED && slot[GENERATION].get() == seat.generation).then_some(reading)
}

/// Where a seat of this generation is open.
fn find<W: Word>(words: &[W], generation: u64) -> Option<Seat> {
    let slots = words[SLOTS_AT..].chunks_exact(SLOT_WORDS);
    let at = slots
        .map(|slot| slot[GENERATION].get())
        .position(|open| open == generation)?;
    Some(Seat {
        slot: u32::try_from(at).ok()?,
        generation,
    })
}

fn close<W: Word>(words: &[W], slot: u32) {
    if let Some(slot) = slot_words(words, slot) {
        slot[GENERATION].set(CLOSED);
    }
}

/// Of a slot that is closed.
fn open<W: Word>(words: &[W], seat: Seat, until: Until, epoch: u64) {
    if let Some(slot) = slot_words(words, seat.slot) {
        set_until(slot, until);
        slot[EPOCH].set(epoch);
        slot[GENERATION].set(seat.generation);
    }
}

/// Of a slot that is closed: opened first, so that whoever sees the count finds it.
fn open_own<W: Word>(words: &[W], seat: Seat, until: Until, epoch: u64) {
    open(words, seat, until, epoch);
    words[MOVES_AT].set(words[MOVES_AT].get().wrapping_add(1));
}

/// A page that was just made, by the process whose shims read it.
#[derive(Debug)]
pub struct Made {
    /// The memory.
    pub view: View,
    /// For an agent, to write to.
    pub writable: OwnedFd,
    /// For workers, who may look: nothing can be written through it, and the file is its maker's alone.
    pub readable: OwnedFd,
}

/// The page to read from, for as long as this program runs.
#[derive(Debug, Clone, Copy)]
pub struct View(&'static [AtomicU64]);

impl View {
    /// Makes a page in which every time is over, and maps it.
    ///
    /// # Errors
    /// When the kernel has no memory file for it, or `/proc` is not there.
    pub fn make() -> Result<Made, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let writable = memfd_create(c"tether-lease", flags)?;
        fchmod(&writable, Mode::RUSR | Mode::WUSR)?;
        let length = PAGE_BYTES as u64;
        ftruncate(&writable, length)?;
        retry_on_intr(|| fallocate(&writable, FallocateFlags::empty(), 0, length))?;
        let now = clock_gettime(ClockId::Boottime);
        // One agent at a time makes these, so no two are of one moment.
        let id = (now.tv_sec.unsigned_abs())
            .wrapping_mul(1_000_000_000)
            .wrapping_add(now.tv_nsec.unsigned_abs());
        pwrite(&writable, &MARK.to_ne_bytes(), 0)?;
        pwrite(
            &writable,
            &id.to_ne_bytes(),
            (ID_AT * size_of::<u64>()) as u64,
        )?;
        let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&writable, all)?;
        let path = CString::new(format!("/proc/self/fd/{}", writable.as_raw_fd()));
        let path = path.map_err(|_| Errno::INVAL)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let readable = rustix::fs::open(path.as_c_str(), flags, Mode::empty())?;
        Ok(Made {
            view: Self::of(&readable)?,
            writable,
            readable,
        })
    }

    /// Maps a page that somebody else made, for good.
    ///
    /// # Errors
    /// `EINVAL` where it is none, else those of `mmap(2)`.
    pub fn of(page: impl AsFd) -> Result<Self, Errno> {
        let at = map(page.as_fd(), ProtFlags::READ)?;
        // SAFETY: so many words are mapped there and are never unmapped; their memory cannot go away. They are
        // only loaded from.
        Ok(Self(unsafe { slice::from_raw_parts(at, WORDS) }))
    }

    /// Which page it is.
    pub fn id(self) -> u64 {
        self.0[ID_AT].get()
    }

    /// What a seat says; nothing where it is somebody else's by now.
    pub fn read(self, seat: Seat) -> Option<Reading> {
        read(self.0, seat)
    }
}

/// The page to write to. One program does at a time.
#[derive(Debug)]
pub struct Page(*mut AtomicU64);

// SAFETY: it points to atomic words, mapped until this is dropped.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// Maps a page that a shim's program has made.
    ///
    /// # Errors
    /// `EINVAL` where it is none, else those of `mmap(2)`.
    pub fn of(page: impl AsFd) -> Result<Self, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        Ok(Self(map(page.as_fd(), access)?))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: so many words are mapped there for as long as this is; their memory cannot go away.
        unsafe { slice::from_raw_parts(self.0, WORDS) }
    }

    /// Which page it is.
    pub fn id(&self) -> u64 {
        self.words()[ID_AT].get()
    }

    /// Ends of the node's permission: **the store that renews all workers of a node**.
    pub fn set_node(&self, until: Until) {
        set_until(&self.words()[NODE_AT..], until);
    }

    /// What was stored last.
    pub fn node(&self) -> Until {
        until(&self.words()[NODE_AT..])
    }

    /// What a seat says; nothing where it is closed.
    pub fn read(&self, seat: Seat) -> Option<Reading> {
        read(self.words(), seat)
    }

    /// Closes a slot: whoever had it keeps what it has read, and gets no more.
    pub fn close(&self, slot: u32) {
        close(self.words(), slot);
    }

    /// Closes all of them, whoever has opened them.
    pub fn close_all(&self) {
        (0..SLOTS).for_each(|slot| self.close(slot));
    }

    /// A generation that no slot of this page ever had, whichever agent wrote to it.
    pub fn next_generation(&self) -> u64 {
        let word = &self.words()[GENERATIONS_AT];
        let next = word.get() + 1;
        word.set(next);
        next
    }

    /// Opens a slot that is closed, with a generation that no slot of this page ever had.
    pub fn open(&self, seat: Seat, until: Until, epoch: u64) {
        open(self.words(), seat, until, epoch);
    }

    /// Opens a slot that is closed for one worker alone, which looks for it then.
    pub fn open_own(&self, seat: Seat, until: Until, epoch: u64) {
        open_own(self.words(), seat, until, epoch);
    }

    /// Whether a slot is somebody's.
    pub fn is_open(&self, slot: u32) -> bool {
        slot_words(self.words(), slot).is_some_and(|slot| slot[GENERATION].get() != CLOSED)
    }

    /// Where a seat of this generation is open.
    pub fn find(&self, generation: u64) -> Option<Seat> {
        find(self.words(), generation)
    }

    /// Ends of an owner's permission, in a slot that is open.
    pub fn set(&self, slot: u32, until: Until, epoch: u64) {
        if let Some(slot) = slot_words(self.words(), slot) {
            set_until(slot, until);
            slot[EPOCH].set(epoch);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped by this, and nobody borrows from it any more.
        let _ = unsafe { munmap(self.0.cast(), PAGE_BYTES) };
    }
}

/// Maps a whole page, after a look that it is one whose memory cannot go away.
fn map(page: BorrowedFd<'_>, access: ProtFlags) -> Result<*mut AtomicU64, Errno> {
    let is_fixed = fcntl_get_seals(page)?.contains(SealFlags::SHRINK | SealFlags::GROW);
    if !is_fixed || fstat(page)?.st_size != PAGE_BYTES as i64 {
        return Err(Errno::INVAL);
    }
    let flags = MapFlags::SHARED | MapFlags::POPULATE;
    // SAFETY: new addresses, which nobody has yet.
    let at = unsafe { mmap(ptr::null_mut(), PAGE_BYTES, access, flags, page, 0)? };
    let at: *mut AtomicU64 = at.cast();
    // SAFETY: mapped just now, aligned as a page of memory is, and never shorter than this.
    if unsafe { (*at).get() } != MARK {
        // SAFETY: nobody has seen it.
        let _ = unsafe { munmap(at.cast(), PAGE_BYTES) };
        return Err(Errno::INVAL);
    }
    Ok(at)
}

#[cfg(test)]
mod tests;
