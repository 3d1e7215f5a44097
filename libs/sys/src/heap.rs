//! The memory allocator of programs whose processes share memory: each process has a heap of its own.
//!
//! A lock would be held for ever by whoever is killed while it holds it, and the others would wait for it.
//! So nothing is shared: a process finds its heap by where its stack is, and takes and gives back there
//! alone.
//!
//! A heap has two parts. What is said to be [`passing`] lies apart from what is to stay, and so the pages it
//! took go back to the system once it has passed.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use talc::base::Talc;
use talc::base::binning::{Binning, linear_extent_then_linearly_divided_exponential_binning};
use talc::min_first_heap_size;
use talc::source::Manual;

use crate::room;

/// Every machine that this runs on has pages of this size, or of a multiple of it.
pub(crate) const PAGE: usize = 4096;

/// From this size on an allocation has pages of its own, which go back as soon as it does.
const LARGE: usize = 32 * 1024;

/// What the allocator keeps for itself in each step by which a heap grows, and more in the first one.
const OVERHEAD: usize = 64;
const FIRST_OVERHEAD: usize = min_first_heap_size::<Lists>();

/// The allocator, for a program's `#[global_allocator]`.
///
/// To be used only in programs in which each process has one thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnHeap;

/// Few lists of free memory, as they lie in the heap themselves: in so small a heap more find nothing more.
#[derive(Debug)]
struct Lists;

impl Binning for Lists {
    type AvailabilityBitField = usize;

    fn size_to_bin(size: usize) -> u32 {
        linear_extent_then_linearly_divided_exponential_binning::<2, 4>(size)
    }
}

/// One process's heap.
pub(crate) struct Heap {
    staying: Part,
    passing: Part,
    /// Where to allocate.
    is_passing: bool,
    /// The last made of those allocations that have pages of their own.
    large: *mut Large,
}

/// What lies before an allocation that has pages of its own. Whenever its process is killed, the list of them
/// is whole: each change is one word.
#[repr(C, align(64))]
struct Large {
    next: *mut Large,
    /// With this head, in bytes.
    length: usize,
}

impl Heap {
    /// A heap that has taken nothing yet of so many bytes from `start` on for what is to stay, and the same
    /// from `passing` on.
    pub(crate) const fn new(staying: (*mut u8, usize), passing: (*mut u8, usize)) -> Self {
        Self {
            staying: Part::new(staying.0, staying.1),
            passing: Part::new(passing.0, passing.1),
            is_passing: false,
            large: ptr::null_mut(),
        }
    }

    /// An allocation with pages of its own.
    ///
    /// # Safety
    /// The heap is this process's.
    unsafe fn allocate_large(&mut self, layout: Layout) -> *mut u8 {
        let offset = offset_of(layout);
        if offset > PAGE {
            return ptr::null_mut();
        }
        let length = (offset + layout.size()).next_multiple_of(PAGE);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new pages, which nobody has.
        let pages = unsafe { mmap_anonymous(ptr::null_mut(), length, access, MapFlags::PRIVATE) };
        let Ok(pages) = pages else {
            return ptr::null_mut();
        };
        let large: *mut Large = pages.cast();
        let next = self.large;
        // SAFETY: the head fits in before the offset.
        unsafe { large.write(Large { next, length }) };
        // SAFETY: a live field of this process's own.
        unsafe { (&raw mut self.large).write_volatile(large) };
        large.cast::<u8>().wrapping_add(offset)
    }

    /// # Safety
    /// It was allocated by the above with this layout.
    unsafe fn deallocate_large(&mut self, pointer: *mut u8, layout: Layout) {
        let wanted: *mut Large = pointer.wrapping_sub(offset_of(layout)).cast();
        let mut link = &raw mut self.large;
        // SAFETY: each head in the list is live until it is taken out here.
        unsafe {
            while *link != wanted {
                if (*link).is_null() {
                    // Another process's, from a time before this one was.
                    return;
                }
                link = &raw mut (**link).next;
            }
            link.write_volatile((*wanted).next);
            let _ = munmap(wanted.cast(), (*wanted).length);
        }
    }

    /// Gives all those back to the system.
    ///
    /// # Safety
    /// The process whose heap it was has ended.
    pub(crate) unsafe fn give_back_large(&mut self) {
        while !self.large.is_null() {
            let large = self.large;
            // SAFETY: nobody uses them, and the list is whole.
            unsafe {
                self.large = (*large).next;
                let _ = munmap(large.cast(), (*large).length);
            }
        }
    }
}

/// Where an allocation lies in its own pages.
fn offset_of(layout: Layout) -> usize {
    layout.align().max(size_of::<Large>())
}

/// As much of its span as was needed so far.
struct Part {
    free: Talc<Manual, Lists>,
    /// Where what is in use of the span ends; nothing before the first allocation.
    end: Option<NonNull<u8>>,
    start: *mut u8,
    limit: *mut u8,
    /// How many allocations lie in it.
    held: usize,
}

impl Part {
    const fn new(start: *mut u8, length: usize) -> Self {
        Self {
            free: Talc::new(Manual),
            end: None,
            start,
            limit: start.wrapping_add(length),
            held: 0,
        }
    }

    fn holds(&self, pointer: *mut u8) -> bool {
        (self.start..self.limit).contains(&pointer)
    }

    /// # Safety
    /// The span is nobody else's, and the layout has a size.
    unsafe fn allocate(&mut self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        let found = unsafe {
            self.free.try_allocate(layout).or_else(|| {
                let first = if self.end.is_none() {
                    FIRST_OVERHEAD
                } else {
                    0
                };
                let more = layout.size() + layout.align() + OVERHEAD + first;
                self.grow(more).then(|| self.free.try_allocate(layout))?
            })
        };
        self.held += usize::from(found.is_some());
        found.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    /// # Safety
    /// It was allocated here with this layout.
    unsafe fn deallocate(&mut self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { self.free.deallocate(pointer, layout) };
        self.held -= 1;
    }

    /// Takes so many bytes more of the span, up to the end of a page.
    ///
    /// # Safety
    /// The span is nobody else's.
    unsafe fn grow(&mut self, bytes: usize) -> bool {
        let used_to = self.end.map_or(self.start, NonNull::as_ptr);
        let wanted = used_to.wrapping_add(bytes);
        let wanted = wanted
            .wrapping_add(wanted.align_offset(PAGE))
            .min(self.limit);
        if wanted.addr() < used_to.addr() + bytes {
            return false;
        }
        // SAFETY: what lies between is the heap's, and was not given to it before.
        self.end = unsafe {
            match self.end {
                Some(end) => Some(self.free.extend(end, wanted)),
                None => self.free.claim(used_to, wanted.addr() - used_to.addr()),
            }
        };
        self.end.is_some()
    }

    /// Gives back to the system what nobody holds behind the last that is held.
    fn trim(&mut self) {
        let Some(end) = self.end else { return };
        // SAFETY: `end` is where the heap ends; what is cut off holds nothing.
        unsafe {
            let held_to = if self.held == 0 {
                // With what the allocator keeps there for itself.
                *self = Self::new(self.start, self.limit.addr() - self.start.addr());
                self.start
            } else {
                self.free.reserved(end).up_to.as_ptr()
            };
            let keep = held_to.wrapping_add(held_to.align_offset(PAGE));
            if self.held > 0 {
                self.end = self.free.truncate(end, keep).or(Some(end));
            }
            let length = end.addr().get().saturating_sub(keep.addr());
            if length > 0 {
                let _ = madvise(keep.cast(), length, Advice::LinuxDontNeed);
            }
        }
    }
}

// SAFETY: what is allocated lies in the own heap or in pages of its own, with the size and the alignment
// asked for, until it is given back. Nobody but this process, which has one thread, uses its heap.
unsafe impl GlobalAlloc for OwnHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the heap is this process's own and this is its only thread; `layout` has a size.
        unsafe {
            let heap = &mut *own();
            let part = if heap.is_passing {
                &mut heap.passing
            } else {
                &mut heap.staying
            };
            let found = if layout.size() < LARGE {
                part.allocate(layout)
            } else {
                ptr::null_mut()
            };
            if found.is_null() {
                heap.allocate_large(layout)
            } else {
                found
            }
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: it was allocated here with this layout. What lies in another process's heap came from a
        // time before this process was, and is that one's to give back.
        unsafe {
            let heap = &mut *own();
            if heap.staying.holds(pointer) {
                heap.staying.deallocate(pointer, layout);
            } else if heap.passing.holds(pointer) {
                heap.passing.deallocate(pointer, layout);
            } else if !room::is_in_any(pointer) && !MAIN.holds(pointer) {
                heap.deallocate_large(pointer, layout);
            }
        }
    }
}

/// Gives back to the system what the heap of this process has no use for at present.
pub(crate) fn trim() {
    // SAFETY: the heap is this process's own and this is its only thread.
    unsafe {
        (*own()).staying.trim();
        (*own()).passing.trim();
    }
}

/// Does what allocates memory that is given back soon. What it leaves behind may stay all the same.
pub fn passing<T>(act: impl FnOnce() -> T) -> T {
    // SAFETY: the heap is this process's own and this is its only thread.
    unsafe { (*own()).is_passing = true };
    let done = act();
    // SAFETY: the same.
    unsafe { (*own()).is_passing = false };
    done
}

/// The heap of this process.
fn own() -> *mut Heap {
    room::own_heap().unwrap_or_else(|| MAIN.heap.get())
}

/// What the first process has in place of a room.
const MAIN_BYTES: usize = 256 * 1024;

#[repr(C, align(4096))]
struct Main {
    span: UnsafeCell<[u8; MAIN_BYTES]>,
    heap: UnsafeCell<Heap>,
}

impl Main {
    fn holds(&self, pointer: *mut u8) -> bool {
        let start = self.span.get().cast::<u8>();
        (start..start.wrapping_add(MAIN_BYTES)).contains(&pointer)
    }
}

// SAFETY: only the first process uses it, with one thread; a fork has a copy.
unsafe impl Sync for Main {}

static MAIN: Main = Main {
    span: UnsafeCell::new([0; MAIN_BYTES]),
    heap: UnsafeCell::new(Heap::new(
        (MAIN.span.get().cast(), MAIN_BYTES / 2),
        (
            MAIN.span.get().cast::<u8>().wrapping_add(MAIN_BYTES / 2),
            MAIN_BYTES / 2,
        ),
    )),
};
