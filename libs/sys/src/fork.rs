//! New processes: plain forks, children born into a namespace and a cgroup, and programs in their place.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Pid;

/// `struct clone_args` of `clone3(2)`, in its second version.
#[repr(C)]
#[derive(Default)]
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

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child that was forked, seen from its parent.
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

/// Forks: the child in the parent, `None` in the child.
///
/// To be called only in a program with one thread. The child may do everything its parent may.
///
/// # Errors
/// Those of `clone3(2)`, among them a kernel without it, and `fork(2)`.
pub fn fork(birth: &Birth<'_>) -> io::Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: CLONE_PIDFD,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = birth.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and with no stack of its own this is a fork. There is one thread, so the
    // child's copy of memory has no lock held by another; the C library keeps no process id that the
    // fork would leave stale. `args` is live and as long as is said.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        0 => Ok(None),
        // Containers forbid clone3 in words that mean "no such call".
        -1 if birth.cgroup.is_none() && is_not_there(&io::Error::last_os_error()) => plain_fork(),
        -1 => Err(io::Error::last_os_error()),
        pid => {
            // SAFETY: the kernel has just put an open descriptor there, which is nobody else's.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pid =
                pid.ok_or_else(|| io::Error::other("the kernel made a process without id"))?;
            Ok(Some(Child { pid, pidfd }))
        }
    }
}

fn is_not_there(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

fn plain_fork() -> io::Result<Option<Child>> {
    // SAFETY: there is one thread, so the child's copy of memory has no lock held by another.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        child => child,
    };
    let Some(pid) = Pid::from_raw(pid) else {
        return Ok(None);
    };
    // Not reaped before its parent says so: the id is its own.
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    Ok(Some(Child { pid, pidfd }))
}

/// Makes namespaces: with `pid`, the next child forked is the first process of a new PID namespace and
/// further ones are its fellows; with `user`, this process enters a new user namespace; with `mount`, a
/// new mount namespace.
///
/// # Errors
/// Those of `unshare(2)`.
pub fn unshare(pid: bool, user: bool, mount: bool) -> io::Result<()> {
    let mut flags = 0;
    for (wanted, flag) in [
        (pid, libc::CLONE_NEWPID),
        (user, libc::CLONE_NEWUSER),
        (mount, libc::CLONE_NEWNS),
    ] {
        flags |= if wanted { flag } else { 0 };
    }
    // SAFETY: none of these flags changes the memory or the descriptors of this process.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Room for the few frames that the first process of a namespace needs.
const INIT_STACK_BYTES: usize = 16 * 1024;

#[repr(align(16))]
#[expect(dead_code, reason = "only its address is used")]
struct InitStack([u8; INIT_STACK_BYTES]);

static mut INIT_STACK: InitStack = InitStack([0; INIT_STACK_BYTES]);

/// Starts a process that shares this one's memory, runs `body` on a small stack of its own, and ends when
/// `body` returns. At most one at a time, as there is one such stack.
///
/// It costs no page of its own but those of its stack: that is why it is not a fork.
///
/// To be called only in a program with one thread. `body` must not allocate, print, panic or use anything
/// else of the standard library that keeps state: it runs beside its parent.
///
/// # Errors
/// Those of `clone(2)`.
pub fn start_init(body: extern "C" fn(*mut libc::c_void) -> libc::c_int) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    // SAFETY: the stack is used by nobody else, as one such process runs at a time; its top is aligned.
    // The memory shared is only touched as the contract above allows. With CLONE_PIDFD the fifth
    // argument is where the descriptor goes, a live local.
    let pid = unsafe {
        let top = (&raw mut INIT_STACK).cast::<u8>().add(INIT_STACK_BYTES);
        let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
        libc::clone(body, top.cast(), flags, ptr::null_mut(), &raw mut pidfd)
    };
    if pid == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just put an open descriptor there, which is nobody else's.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(pid)
        .ok_or_else(|| io::Error::other("the kernel made a process without id"))?;
    Ok(Child { pid, pidfd })
}

/// Closes every descriptor from `first` on.
///
/// To be called where nothing in this program will use, or close again, a descriptor from `first` on.
pub fn close_from(first: RawFd) {
    // SAFETY: memory is not touched. A kernel without the call leaves them open, which costs descriptors.
    unsafe { libc::close_range(first as libc::c_uint, libc::c_uint::MAX, 0) };
}

/// Puts these descriptors at `first` and the numbers after it, open across an exec.
///
/// To be called in a child that is about to exec: what is at those numbers is closed.
///
/// # Errors
/// Those of `dup2(2)`.
pub fn place(descriptors: &[OwnedFd], first: RawFd) -> io::Result<()> {
    // Out of the way first: one of them may be where another one goes.
    let above = first + descriptors.len() as RawFd;
    let moved: Vec<OwnedFd> = descriptors
        .iter()
        .map(|descriptor| Ok(rustix::io::fcntl_dupfd_cloexec(descriptor, above)?))
        .collect::<io::Result<_>>()?;
    for (number, descriptor) in (first..).zip(&moved) {
        // SAFETY: memory is not touched, and whoever owned `number` is about to be replaced by a program.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Runs the program at `path`; returns the error number, and only where that failed.
pub fn exec(path: &CString, argv: &[CString], env: &[CString]) -> i32 {
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
pub fn exit_child(status: i32) -> ! {
    // SAFETY: takes no pointer and does not return.
    unsafe { libc::_exit(status) }
}
