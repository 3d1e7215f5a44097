//! A container as Docker makes it by default: a PID namespace with a `/proc` of its own, cgroups that can only
//! be read, no system call that makes a namespace, and root without most of its capabilities.

use core::ffi::{c_char, c_int, c_ulong, c_void};

use super::{CLONE3, CloneArgs, SIGCHLD, c};

#[link(name = "c")]
unsafe extern "C" {
    fn setns(fd: c_int, kinds: c_int) -> c_int;
    fn mount(
        from: *const c_char,
        to: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn __errno_location() -> *mut c_int;
}

const NEW_MOUNTS: u64 = 0x0002_0000;
const NEW_PIDS: u64 = 0x2000_0000;

/// Forks the first process of a new container.
///
/// # Safety
/// As a fork: in a program with one thread.
pub(super) unsafe fn first_process() -> c_int {
    let args = CloneArgs {
        flags: NEW_MOUNTS | NEW_PIDS,
        exit_signal: SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: the arguments are as long as is said; nothing is shared with the child.
    unsafe { c::syscall(CLONE3, &raw const args, size_of::<CloneArgs>()) as c_int }
}

/// Puts up the walls around this process, which is the first; tells whether all of them stand. They hold
/// from the next program on.
///
/// # Safety
/// `cgroups` is a text that ends with a zero: where cgroup v2 is mounted, or nothing.
pub(super) unsafe fn put_up(cgroups: *const c_char) -> bool {
    const PRIVATE: c_ulong = 0x4_4000;
    const NO_PROGRAMS: c_ulong = 2 | 4 | 8;
    const READ_ONLY: c_ulong = 1 | 32 | 4096;
    let none = core::ptr::null();
    // SAFETY: all texts end with a zero.
    unsafe {
        let proc = c"proc".as_ptr();
        mount(none, c"/".as_ptr(), none, PRIVATE, none.cast()) == 0
            && mount(proc, c"/proc".as_ptr(), proc, NO_PROGRAMS, none.cast()) == 0
            && (*cgroups == 0 || mount(none, cgroups, none, READ_ONLY, none.cast()) == 0)
            && refuse_namespaces()
            && drop_capabilities()
    }
}

/// Has children of this process, or itself where it comes to files, be in a container.
///
/// # Safety
/// `first` is a pidfd of the container's first process.
pub(super) unsafe fn enter(first: c_int, files_too: bool) -> bool {
    let kinds = if files_too { NEW_MOUNTS | NEW_PIDS } else { NEW_PIDS };
    // SAFETY: asks the kernel only.
    unsafe { setns(first, kinds as c_int) == 0 }
}

/// Whether the last fork failed because the container's first process has ended: the kernel refuses
/// births before it kills what is left.
pub(super) fn has_ended() -> bool {
    const NO_MEMORY: c_int = 12;
    // SAFETY: the C library's own variable.
    unsafe { *__errno_location() == NO_MEMORY }
}

/// One instruction of a filter.
#[repr(C)]
struct Step {
    code: u16,
    yes: u8,
    no: u8,
    value: u32,
}

#[repr(C)]
struct Filter {
    length: u16,
    steps: *const Step,
}

/// The numbers of `unshare`, `setns`, `mount` and `clone`.
#[cfg(target_arch = "x86_64")]
const CALLS: [u32; 4] = [272, 308, 165, 56];
#[cfg(target_arch = "aarch64")]
const CALLS: [u32; 4] = [97, 268, 40, 220];

/// Has `unshare`, `setns`, `mount` and a `clone` into a new namespace refused, and `clone3`, whose flags a
/// filter cannot see, unknown.
fn refuse_namespaces() -> bool {
    const LOAD: u16 = 0x20;
    const IS: u16 = 0x15;
    const HAS: u16 = 0x45;
    const ANSWER: u16 = 0x06;
    const ALLOWED: u32 = 0x7fff_0000;
    const NOT_PERMITTED: u32 = 0x0005_0001;
    const UNKNOWN: u32 = 0x0005_0026;
    const NAMESPACES: u32 = 0x7e02_0000;
    let step = |code, value, yes, no| Step { code, yes, no, value };
    let steps = [
        step(LOAD, 0, 0, 0),
        step(IS, CLONE3 as u32, 8, 0),
        step(IS, CALLS[0], 6, 0),
        step(IS, CALLS[1], 5, 0),
        step(IS, CALLS[2], 4, 0),
        step(IS, CALLS[3], 0, 2),
        // The low half of the first argument.
        step(LOAD, 16, 0, 0),
        step(HAS, NAMESPACES, 1, 0),
        step(ANSWER, ALLOWED, 0, 0),
        step(ANSWER, NOT_PERMITTED, 0, 0),
        step(ANSWER, UNKNOWN, 0, 0),
    ];
    let filter = Filter { length: steps.len() as u16, steps: steps.as_ptr() };
    const SET_FILTER: c_int = 22;
    // SAFETY: the kernel copies the filter, which is as long as is said.
    unsafe { c::prctl(SET_FILTER, 2, (&raw const filter) as usize, 0, 0) == 0 }
}

/// Leaves the next program the capabilities that Docker leaves to root.
fn drop_capabilities() -> bool {
    const DROP: c_int = 24;
    // chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw,
    // sys_chroot, mknod, audit_write, setfcap.
    const KEPT: [usize; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
    let mut any = false;
    for capability in (0..64).filter(|capability| !KEPT.contains(capability)) {
        // SAFETY: asks the kernel only; it refuses numbers that it does not know.
        any |= unsafe { c::prctl(DROP, capability, 0, 0, 0) } == 0;
    }
    any
}

