//! Rooms: processes that share this one's memory, each with a stack and a heap of its own in it.
//!
//! Such a process costs no copy of memory, no page tables and no time to take them down: its stack, its heap
//! and what the kernel keeps of any process is all there is of it. It is no thread: it has its own
//! descriptors, signals, parent and children, and is killed alone.
//!
//! ```text
//!  one room   | never touched | stack, growing down | desk | heap: what stays | what passes |
//! ```
//!
//! What a process may do in a room is up to the program: it must not touch what is another's, keep anything
//! in a `static`, or call into the C library where that keeps state.

use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use alloc::vec::Vec;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect};
use rustix::process::Pid;

use crate::birth::{self, Beginning};
use crate::heap::{self, Heap, PAGE};

/// A power of two: a process finds its room by clearing the bits below.
const ROOM_BYTES: usize = 256 * 1024;

/// What lies between two rooms is never touched: a stack that runs over ends its process, and no other. As long
/// as the longest page of any machine.
const GUARD_BYTES: usize = 64 * 1024;

/// Where the desk is in a room, and the stack begins that grows down from it.
const DESK_AT: usize = ROOM_BYTES / 2;

/// The two parts of a heap each have so much of the rest, the first one with the desk in it.
const PART_BYTES: usize = (ROOM_BYTES - DESK_AT) / 2;

/// More processes than one machine runs workers. Only addresses are set aside, no memory.
const ROOMS_MAX: usize = 16 * 1024;

/// So many empty rooms are kept as they were left: the next process finds their pages there.
const WARM_MAX: usize = 32;

/// Room for the few frames that the first process of a namespace needs: about 200 bytes, and some times that
/// in a program that is built for looking into it.
const INIT_STACK_BYTES: usize = if cfg!(debug_assertions) { 4096 } else { 512 };

/// What the calls take that a process at rest makes.
const SHALLOW_BYTES: usize = 1024;

/// Addresses that are set aside, from here...
static START: AtomicUsize = AtomicUsize::new(0);
/// ...to here. Written once, before there is a room.
static END: AtomicUsize = AtomicUsize::new(0);

/// What lies in one page with the beginning of the heap.
#[repr(C, align(16))]
struct Desk {
    init_stack: [u8; INIT_STACK_BYTES],
    heap: Heap,
    within: Within,
}

/// Who else is in a room, in the kernel's own hand: each word is the number of a process while that is in this
/// memory, and zero once it has ended or become another program.
#[derive(Debug)]
#[repr(C)]
struct Within {
    init: AtomicU32,
    child: AtomicU32,
}

impl Within {
    const fn nobody() -> Self {
        Self {
            init: AtomicU32::new(0),
            child: AtomicU32::new(0),
        }
    }

    fn is_nobody(&self) -> bool {
        self.init.load(Ordering::Acquire) == 0 && self.child.load(Ordering::Acquire) == 0
    }
}

/// One process's part of the memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Room(usize);

/// All rooms of one program.
#[derive(Debug, Default)]
pub struct Rooms {
    /// How many addresses were given out so far.
    used: usize,
    /// Nobody is in them, and the next to come finds their pages there.
    warm: Vec<Room>,
    /// Nobody is in them.
    cold: Vec<Room>,
    /// Somebody is still in them who was left behind by a killed one.
    left: Vec<Room>,
}

impl Rooms {
    /// Sets addresses aside.
    ///
    /// # Errors
    /// When there are none to be had, or they were set aside before.
    pub fn set_aside() -> Result<Self, Errno> {
        if START.load(Ordering::Relaxed) != 0 {
            return Err(Errno::EXIST);
        }
        let mut count = ROOMS_MAX;
        let start = loop {
            // One more than that, for the first to begin at a multiple of its size.
            let length = (count + 1) * ROOM_BYTES;
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            // SAFETY: new addresses, which nobody has and nobody can touch yet.
            match unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::empty(), flags) } {
                Ok(start) => break start.expose_provenance(),
                // A limit on addresses; fewer will do.
                Err(Errno::NOMEM) if count > 1 => count /= 2,
                Err(errno) => return Err(errno),
            }
        };
        let start = start.next_multiple_of(ROOM_BYTES);
        END.store(start + count * ROOM_BYTES, Ordering::Relaxed);
        START.store(start, Ordering::Relaxed);
        Ok(Self::default())
    }

    /// Starts a process in a room, which runs `body` with `shared` and copies of these descriptors, in this
    /// order, and ends with the status that it returns.
    ///
    /// The descriptors of this process are all open in the new one; those that it is not given stay so until
    /// it becomes another program or ends.
    ///
    /// # Errors
    /// When all rooms are taken, and those of `clone(2)`.
    pub fn start<T: Copy + Sync + 'static>(
        &mut self,
        body: fn(T, Vec<OwnedFd>) -> i32,
        shared: T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Pid, Room), Errno> {
        let room = self.take()?;
        // Uppermost on its stack: what to do, and with which descriptors.
        let length = size_of::<Task<T>>() + size_of_val(descriptors);
        let top = (room.desk().addr() - length) & !15;
        let task: *mut Task<T> = ptr::with_exposed_provenance_mut(top);
        // SAFETY: nobody is in this room, all of which but its first page can be written to; there is space
        // for the numbers right after the head.
        unsafe {
            room.desk().write_head();
            let count = descriptors.len();
            task.write(Task {
                body,
                shared,
                count,
            });
            let numbers: *mut RawFd = task.add(1).cast();
            for (place, descriptor) in descriptors.iter().enumerate() {
                numbers.add(place).write(descriptor.as_raw_fd());
            }
        }
        let beginning = Beginning {
            stack: top,
            entry: enter::<T>,
            argument: task.cast(),
        };
        // SAFETY: the stack is a room's, which is taken.
        match unsafe { birth::start_beside(&beginning) } {
            Ok(pid) => Ok((pid, room)),
            Err(errno) => {
                self.give_back(room);
                Err(errno)
            }
        }
    }

    /// The process of this room has ended and was reaped. The room is free once what it started there has
    /// left it, which [`Self::look`] sees.
    pub fn leave(&mut self, room: Room) {
        self.left.push(room);
    }

    /// Frees the rooms that nobody is in any more.
    pub fn look(&mut self) {
        let (empty, left) = mem::take(&mut self.left)
            .into_iter()
            .partition(Room::is_empty);
        self.left = left;
        let empty: Vec<Room> = empty;
        for room in empty {
            self.give_back(room);
        }
    }

    fn give_back(&mut self, room: Room) {
        // SAFETY: nobody is in it.
        unsafe { (*room.desk().heap()).give_back_large() };
        if self.warm.len() < WARM_MAX {
            self.warm.push(room);
        } else {
            room.let_go();
            self.cold.push(room);
        }
    }

    fn take(&mut self) -> Result<Room, Errno> {
        if let Some(room) = self.warm.pop().or_else(|| self.cold.pop()) {
            return Ok(room);
        }
        let at = START.load(Ordering::Relaxed) + self.used * ROOM_BYTES;
        if at >= END.load(Ordering::Relaxed) {
            return Err(Errno::AGAIN);
        }
        let room = Room(at);
        let first = room.at(GUARD_BYTES);
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: these addresses are a room's that nobody was given yet.
        unsafe { mprotect(first.cast(), ROOM_BYTES - GUARD_BYTES, access)? };
        self.used += 1;
        Ok(room)
    }
}

impl Room {
    fn at(&self, offset: usize) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.0 + offset)
    }

    fn desk(&self) -> DeskAt {
        DeskAt(self.at(DESK_AT).cast())
    }

    /// Whether nobody is in it beside the process it was made for.
    fn is_empty(&self) -> bool {
        // SAFETY: a desk is written before anybody is in the room, and its words are atomic.
        unsafe { (*self.desk().within()).is_nobody() }
    }

    /// Gives its pages back to the system. Nobody is in it.
    fn let_go(&self) {
        // SAFETY: nobody reads what nobody is there to have written.
        let _ = unsafe {
            madvise(
                self.at(GUARD_BYTES).cast(),
                ROOM_BYTES - GUARD_BYTES,
                Advice::LinuxDontNeed,
            )
        };
    }
}

/// Where a desk is.
#[derive(Clone, Copy)]
struct DeskAt(*mut Desk);

impl DeskAt {
    fn addr(self) -> usize {
        self.0.expose_provenance()
    }

    fn heap(self) -> *mut Heap {
        // SAFETY: only the address is computed, of a field of a desk in a room.
        unsafe { &raw mut (*self.0).heap }
    }

    fn within(self) -> *mut Within {
        // SAFETY: only the address is computed, of a field of a desk in a room.
        unsafe { &raw mut (*self.0).within }
    }

    /// Lays out an empty heap behind it.
    ///
    /// # Safety
    /// Nobody is in the room.
    unsafe fn write_head(self) {
        let staying = self.0.wrapping_add(1).cast::<u8>();
        let passing = self.0.cast::<u8>().wrapping_add(PART_BYTES);
        let heap = Heap::new(
            (staying, PART_BYTES - size_of::<Desk>()),
            (passing, PART_BYTES),
        );
        // SAFETY: the caller says that nobody is there; the desk can be written to.
        unsafe {
            self.heap().write(heap);
            self.within().write(Within::nobody());
        }
    }

    fn init_stack_top(self) -> usize {
        self.addr() + INIT_STACK_BYTES
    }
}

/// What a process in a room is to do; the numbers of its descriptors follow.
#[repr(C, align(16))]
struct Task<T> {
    body: fn(T, Vec<OwnedFd>) -> i32,
    shared: T,
    count: usize,
}

extern "C" fn enter<T: Copy>(task: *mut core::ffi::c_void) -> ! {
    let task: *const Task<T> = task.cast_const().cast();
    // SAFETY: the parent wrote the task and so many numbers after it, of descriptors that are open in this
    // process as copies of its own, and that nothing else in here has claimed.
    let (body, shared, descriptors) = unsafe {
        let numbers = core::slice::from_raw_parts(task.add(1).cast::<RawFd>(), (*task).count);
        let descriptors = numbers.iter().map(|number| OwnedFd::from_raw_fd(*number));
        ((*task).body, (*task).shared, descriptors.collect())
    };
    birth::exit_child(body(shared, descriptors))
}

/// The desk of the room that this process is in; none for the first process.
fn own_desk() -> Option<DeskAt> {
    let here = 0_u8;
    let here = (&raw const here).addr();
    let start = START.load(Ordering::Relaxed);
    let is_in_room = start != 0 && (start..END.load(Ordering::Relaxed)).contains(&here);
    is_in_room.then(|| Room(here & !(ROOM_BYTES - 1)).desk())
}

/// Where the word is for a first process that this one starts, and stays as long as that may live.
pub(crate) fn within_init() -> usize {
    // SAFETY: only the address is computed, of a field of the desk of this very process.
    own_desk()
        .map_or(&raw const MAIN_WITHIN.init, |desk| unsafe {
            &raw const (*desk.within()).init
        })
        .expose_provenance()
}

/// The same for a child that becomes another program.
pub(crate) fn within_child() -> usize {
    // SAFETY: only the address is computed, of a field of the desk of this very process.
    own_desk()
        .map_or(&raw const MAIN_WITHIN.child, |desk| unsafe {
            &raw const (*desk.within()).child
        })
        .expose_provenance()
}

/// The words of a process that is in no room, which nobody asks for.
static MAIN_WITHIN: Within = Within::nobody();

/// Its heap.
pub(crate) fn own_heap() -> Option<*mut Heap> {
    own_desk().map(DeskAt::heap)
}

/// Whether this lies in a room, whoever's.
pub(crate) fn is_in_any(pointer: *mut u8) -> bool {
    let start = START.load(Ordering::Relaxed);
    start != 0 && (start..END.load(Ordering::Relaxed)).contains(&pointer.addr())
}

/// Where the stack begins of a first process of a namespace that this process may start: in its room, or for
/// one without a room in a place of its own.
pub(crate) fn init_stack_top() -> usize {
    own_desk().map_or_else(
        || (&raw const MAIN_INIT_STACK).expose_provenance() + size_of::<MainInitStack>(),
        DeskAt::init_stack_top,
    )
}

#[repr(align(16))]
#[expect(dead_code, reason = "only its address is used")]
struct MainInitStack(core::cell::UnsafeCell<[u8; 4 * INIT_STACK_BYTES]>);

// SAFETY: no program touches it but through the stack pointer of the one process it is for.
unsafe impl Sync for MainInitStack {}

static MAIN_INIT_STACK: MainInitStack =
    MainInitStack(core::cell::UnsafeCell::new([0; 4 * INIT_STACK_BYTES]));

/// Lets go of memory that only the start of this process needed: its stack below here, and what it gave back
/// to its heap. Does nothing to the stack of one that is in no room.
pub fn let_go() {
    heap::trim();
    let Some(desk) = own_desk() else { return };
    let here = 0_u8;
    // What the calls that follow here use is left alone.
    let top = ((&raw const here).addr() - SHALLOW_BYTES) / PAGE * PAGE;
    let bottom = desk.addr() - DESK_AT + GUARD_BYTES;
    // SAFETY: these pages are below every frame of this process on the stack of its room; what lies in them
    // is never read before it is written.
    let _ = unsafe {
        madvise(
            ptr::with_exposed_provenance_mut(bottom),
            top.saturating_sub(bottom),
            Advice::LinuxDontNeed,
        )
    };
}
