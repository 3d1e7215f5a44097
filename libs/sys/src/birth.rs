//! New processes: plain forks, and such as share this one's memory, for good or until they are another
//! program.

use core::arch::asm;
use core::ffi::c_void;
use core::ptr;

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use syscalls::Sysno;

use crate::call::{call, result};
use crate::room;

/// `struct clone_args` of `clone3(2)`, in its second version.
#[repr(C)]
#[derive(Debug, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_VM: usize = 0x100;
const CLONE_PIDFD: usize = 0x1000;
const CLONE_VFORK: usize = 0x4000;
const CLONE_PARENT_SETTID: usize = 0x10_0000;
const CLONE_CHILD_CLEARTID: usize = 0x20_0000;
/// The kernel writes the child's number into a word before the child runs, and zero when the child is no
/// longer in this memory: see [`room::Within`].
const MARKED: usize = CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const SIGCHLD: usize = libc::SIGCHLD as usize;

/// A child, seen from its parent.
#[derive(Debug)]
pub struct Child {
    /// Its process id, as the parent sees it.
    pub pid: Pid,
    /// Pins it: signals sent through this reach it or nobody.
    pub pidfd: OwnedFd,
}

/// Where a child is born.
#[derive(Debug, Default)]
pub struct Birth<'a> {
    /// The directory of a cgroup v2 in which it begins, if not in its parent's.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// How a process begins that shares its parent's memory.
pub(crate) struct Beginning {
    /// Where its stack grows down from.
    pub(crate) stack: usize,
    pub(crate) entry: extern "C" fn(*mut c_void) -> !,
    pub(crate) argument: *mut c_void,
}

/// Forks: the child in the parent, `None` in the child.
///
/// To be called only in a program with one thread. The child may do everything its parent may.
///
/// # Errors
/// Those of `clone3(2)` where it is to be born in a cgroup, and those of `clone(2)`.
pub fn fork(birth: &Birth<'_>) -> Result<Option<Child>, Errno> {
    let mut pidfd: RawFd = -1;
    let at = (&raw mut pidfd).expose_provenance();
    // SAFETY: without CLONE_VM and with no stack of its own this is a fork. There is one thread, so the
    // child's copy of memory has no lock held by another. What is pointed to is live and as long as is said.
    let pid = unsafe {
        match birth.cgroup {
            Some(cgroup) => {
                let args = CloneArgs {
                    flags: CLONE_PIDFD as u64 | CLONE_INTO_CGROUP,
                    pidfd: at as u64,
                    exit_signal: SIGCHLD as u64,
                    cgroup: cgroup.as_raw_fd() as u64,
                    ..CloneArgs::default()
                };
                call!(clone3, &raw const args, size_of::<CloneArgs>())?
            }
            // Containers forbid `clone3`.
            None => call!(clone, CLONE_PIDFD | SIGCHLD, 0, at, 0, 0)?,
        }
    };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has just put an open descriptor there, which is nobody else's.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some(Child {
        pid: pid_of(pid)?,
        pidfd,
    }))
}

/// Starts a child that runs `body` in this process's memory while this one waits, until the child has become
/// another program or has ended; it ends when `body` returns. What `body` wrote is there when this returns.
///
/// It costs no copy of anything. Whatever kills this process meanwhile leaves the child alone with `body`,
/// which has to see to that.
///
/// # Errors
/// Those of `clone3(2)` where it is to be born in a cgroup, and those of `clone(2)` and then of `pidfd_open(2)`:
/// **there may be a child all the same**, which only waiting for it tells.
#[inline(never)]
pub fn become_beside(birth: &Birth<'_>, body: &mut dyn FnMut()) -> Result<Child, Errno> {
    let mut body = body;
    let mut pidfd: RawFd = -1;
    let within = room::within_child();
    // Below all frames of this process, which does not go on before the child is done with its own.
    let stack = ((&raw const body).addr() - FRAMES_BYTES) & !15;
    let beginning = Beginning {
        stack,
        entry: run,
        argument: (&raw mut body).cast(),
    };
    let flags = CLONE_VM | CLONE_VFORK | MARKED;
    // SAFETY: the stack below these frames is this process's own, which is suspended until the child has left
    // it; `body` is live until then.
    let pid = unsafe {
        match birth.cgroup {
            Some(cgroup) => {
                let args = CloneArgs {
                    flags: (flags | CLONE_PIDFD) as u64 | CLONE_INTO_CGROUP,
                    pidfd: (&raw mut pidfd).expose_provenance() as u64,
                    child_tid: within as u64,
                    parent_tid: within as u64,
                    exit_signal: SIGCHLD as u64,
                    // The kernel starts at the upper end.
                    stack: (stack - PROBED_BYTES) as u64,
                    stack_size: PROBED_BYTES as u64,
                    cgroup: cgroup.as_raw_fd() as u64,
                    ..CloneArgs::default()
                };
                let args = (&raw const args).expose_provenance();
                let arguments = [args, size_of::<CloneArgs>(), 0, 0];
                clone_to(Sysno::clone3, arguments, &beginning)?
            }
            None => {
                let arguments = [flags | SIGCHLD, stack, within, within];
                clone_to(Sysno::clone, arguments, &beginning)?
            }
        }
    };
    if pidfd < 0 {
        // `clone` has one place for both.
        return pinned(pid);
    }
    // SAFETY: the kernel has just put an open descriptor there, which is nobody else's.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child {
        pid: pid_of(pid)?,
        pidfd,
    })
}

/// A child of this process that nobody has waited for: its number is its own.
fn pinned(raw: usize) -> Result<Child, Errno> {
    let pid = pid_of(raw)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Child { pid, pidfd })
}

/// More than the frames of [`become_beside`] and what it calls take.
const FRAMES_BYTES: usize = 2048;

/// The kernel wants to know a length, and uses it only to find the other end.
const PROBED_BYTES: usize = 4096;

extern "C" fn run(body: *mut c_void) -> ! {
    let body: *mut &mut dyn FnMut() = body.cast();
    // SAFETY: the parent is suspended in the frame in which this lies.
    unsafe { (*body)() };
    exit_child(127)
}

/// Starts a process that shares this one's memory, runs `body` on a small stack of its own, and ends when
/// `body` returns. At most one at a time of each process, as it has one such stack.
///
/// `body` must not allocate, print, panic or use anything else that keeps state: it runs beside its parent.
///
/// # Errors
/// Those of `clone(2)`, and of `pidfd_open(2)`: then there is such a process all the same.
pub fn start_init<T: Sync>(shared: &'static T, body: fn(&'static T)) -> Result<Child, Errno> {
    let within = room::within_init();
    let top = room::init_stack_top() - size_of::<Both<T>>();
    let top = top & !15;
    let both: *mut Both<T> = ptr::with_exposed_provenance_mut(top);
    let beginning = Beginning {
        stack: top,
        entry: be_init::<T>,
        argument: both.cast(),
    };
    // SAFETY: the stack is used by nobody else, as one such process runs at a time. The memory shared is only
    // touched as the contract above allows. The word is one of the room's, or of the program's.
    let pid = unsafe {
        both.write(Both { shared, body });
        let flags = CLONE_VM | MARKED | SIGCHLD;
        clone_to(Sysno::clone, [flags, top, within, within], &beginning)?
    };
    pinned(pid)
}

/// What a first process of a namespace does, and what with.
#[repr(C, align(16))]
struct Both<T: 'static> {
    shared: &'static T,
    body: fn(&'static T),
}

extern "C" fn be_init<T: 'static>(both: *mut c_void) -> ! {
    let both: *const Both<T> = both.cast_const().cast();
    // SAFETY: the parent wrote it there, uppermost on this stack.
    let Both { shared, body } = unsafe { both.read() };
    body(shared);
    exit_child(0)
}

/// Starts a process that shares this one's memory and goes on beside it.
///
/// # Safety
/// The stack is nobody else's, and the entry does with the argument what it may.
pub(crate) unsafe fn start_beside(beginning: &Beginning) -> Result<Pid, Errno> {
    let arguments = [CLONE_VM | SIGCHLD, beginning.stack, 0, 0];
    // SAFETY: passed on.
    let pid = unsafe { clone_to(Sysno::clone, arguments, beginning)? };
    pid_of(pid)
}

fn pid_of(raw: usize) -> Result<Pid, Errno> {
    let pid = i32::try_from(raw).ok().and_then(Pid::from_raw);
    pid.ok_or(Errno::INVAL)
}

/// Makes a call that makes a process, which finds itself in `beginning.entry` on the stack that the call was
/// given: it never comes back from here.
///
/// # Safety
/// The call is `clone` or `clone3` with arguments that say CLONE_VM and name that stack.
#[inline(never)]
unsafe fn clone_to(
    number: Sysno,
    [first, second, third, fourth]: [usize; 4],
    beginning: &Beginning,
) -> Result<usize, Errno> {
    let (entry, argument) = (beginning.entry, beginning.argument);
    #[cfg(target_arch = "x86_64")]
    let value = {
        let mut value = number as usize;
        // SAFETY: the parent goes on after the last line with nothing changed but what is said. The child
        // has a stack of its own, aligned as a call wants it, and leaves by `entry`, which does not return.
        unsafe {
            asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r13",
                "call r12",
                "ud2",
                "2:",
                inlateout("rax") value,
                in("rdi") first,
                in("rsi") second,
                in("rdx") third,
                in("r10") fourth,
                in("r8") 0_usize,
                in("r12") entry,
                in("r13") argument,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        value
    };
    #[cfg(target_arch = "aarch64")]
    let value = {
        let mut value = first;
        // SAFETY: as above.
        unsafe {
            asm!(
                "svc 0",
                "cbnz x0, 2f",
                "mov x29, xzr",
                "mov x0, x21",
                "blr x20",
                "brk 1",
                "2:",
                inlateout("x0") value,
                in("x8") number as usize,
                in("x1") second,
                in("x2") third,
                // Here the two last arguments of `clone` change places.
                in("x3") 0_usize,
                in("x4") fourth,
                in("x20") entry,
                in("x21") argument,
            );
        }
        value
    };
    result(value)
}

/// Makes namespaces: with `pid`, the next child forked is the first process of a new PID namespace and
/// further ones are its fellows; with `user`, this process enters a new user namespace; with `mount`, a
/// new mount namespace.
///
/// # Errors
/// Those of `unshare(2)`.
pub fn unshare(pid: bool, user: bool, mount: bool) -> Result<(), Errno> {
    let mut flags = 0;
    for (wanted, flag) in [
        (pid, libc::CLONE_NEWPID),
        (user, libc::CLONE_NEWUSER),
        (mount, libc::CLONE_NEWNS),
    ] {
        flags |= if wanted { flag } else { 0 };
    }
    // SAFETY: none of these flags changes the memory or the descriptors of this process.
    unsafe { call!(unshare, flags) }.map(drop)
}

/// Ends this process at once, without what a program does at its end: in a process that is not alone in its
/// memory that is somebody else's to do.
pub fn exit_child(status: i32) -> ! {
    loop {
        // SAFETY: takes no pointer and does not return.
        let _ = unsafe { call!(exit_group, status) };
    }
}
