//! What a program shows of itself in `ps`, and pages it needs no more.

use std::io::Read;
use std::ptr;
use std::sync::OnceLock;

/// Lets go of the program's own pages that only its start needed. A shim waits for days and then
/// needs a few of them, which come back from the page cache.
pub fn forget_start() {
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

/// Lets go of memory that only the start needed: what was freed on the heap, and the stack below here.
///
/// To be called only in a program with one thread.
pub fn let_go() {
    // SAFETY: the allocator gives back what nobody holds.
    unsafe { libc::malloc_trim(0) };
    let here = 0_u8;
    let page = rustix::param::page_size();
    // A page below this frame is left alone: the calls that follow here use it.
    let top = ((&raw const here).addr() / page).saturating_sub(1) * page;
    let bottom = top.saturating_sub(STACK_DEPTH);
    // SAFETY: these pages are below every frame of the only thread, on a stack that reaches further down
    // than was ever used; what lies in them is never read before it is written.
    unsafe {
        libc::madvise(
            ptr::with_exposed_provenance_mut(bottom),
            top - bottom,
            libc::MADV_DONTNEED,
        )
    };
}

/// No start goes deeper than this. Addresses below the stack's mapping are answered with an error, after
/// those above were let go.
const STACK_DEPTH: usize = 256 * 1024;

/// Shows `title` as this process's command line. It is written over the arguments and the environment the
/// program was started with, as far as there is room, so neither may be asked for afterwards.
///
/// To be called only in a program with one thread.
pub fn title(title: &[u8]) {
    let Some((start, end)) = *OWN_WORDS.get_or_init(own_words) else {
        return;
    };
    let room = end.saturating_sub(start);
    if room < 2 {
        return;
    }
    let length = title.len().min(room - 1);
    let at: *mut u8 = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the kernel says that the arguments and the environment of this process lie there, on its
    // stack, which is writable; with one thread nobody reads them meanwhile.
    unsafe {
        ptr::copy_nonoverlapping(title.as_ptr(), at, length);
        ptr::write_bytes(at.add(length), 0, room - length);
    }
}

/// Finds out where [`title`] will write, once for this process and all it forks.
pub fn find_title() {
    OWN_WORDS.get_or_init(own_words);
}

static OWN_WORDS: OnceLock<Option<(usize, usize)>> = OnceLock::new();

/// From the first argument to the end of the environment: fields 48 and 51 of `/proc/self/stat`.
fn own_words() -> Option<(usize, usize)> {
    let mut stat = [0; 1024];
    let length = std::fs::File::open("/proc/self/stat")
        .and_then(|mut file| file.read(&mut stat))
        .ok()?;
    let stat = stat.get(..length)?;
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace().skip(45);
    let start = fields.next()?.parse().ok()?;
    let end = fields.nth(2)?.parse().ok()?;
    Some((start, end))
}
