//! The small static program of the kill matrix: a worker with a habit, the process that everything of one
//! world descends from, and the strangers that take over the pids of the dead.
//!
//! The build script compiles it. It uses nothing of the standard library's runtime, so that its start costs
//! nothing beside what is measured, and a fork of it is as quick as a fork gets.

#![no_main]

use core::ffi::{c_char, c_int, c_long, c_uint, c_void};

mod walls;

mod c {
    use super::{SigSet, TimeSpec, c_char, c_int, c_long, c_uint, c_void};

    #[link(name = "c")]
    unsafe extern "C" {
        pub(super) fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
        pub(super) fn connect(fd: c_int, address: *const c_void, length: c_uint) -> c_int;
        pub(super) fn bind(fd: c_int, address: *const c_void, length: c_uint) -> c_int;
        pub(super) fn listen(fd: c_int, backlog: c_int) -> c_int;
        pub(super) fn accept(fd: c_int, address: *mut c_void, length: *mut c_uint) -> c_int;
        pub(super) fn read(fd: c_int, to: *mut c_void, length: usize) -> isize;
        pub(super) fn write(fd: c_int, from: *const c_void, length: usize) -> isize;
        pub(super) fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
        pub(super) fn close(fd: c_int) -> c_int;
        pub(super) fn dup2(from: c_int, to: c_int) -> c_int;
        pub(super) fn fcntl(fd: c_int, command: c_int, value: c_int) -> c_int;
        pub(super) fn fork() -> c_int;
        pub(super) fn setsid() -> c_int;
        pub(super) fn execv(path: *const c_char, argv: *const *const c_char) -> c_int;
        pub(super) fn _exit(code: c_int) -> !;
        pub(super) fn getuid() -> c_uint;
        pub(super) fn geteuid() -> c_uint;
        pub(super) fn raise(signal: c_int) -> c_int;
        pub(super) fn signal(signal: c_int, handler: usize) -> usize;
        pub(super) fn sigfillset(set: *mut SigSet) -> c_int;
        pub(super) fn sigemptyset(set: *mut SigSet) -> c_int;
        pub(super) fn sigaddset(set: *mut SigSet, signal: c_int) -> c_int;
        pub(super) fn sigprocmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
        pub(super) fn sigtimedwait(
            set: *const SigSet,
            info: *mut c_void,
            timeout: *const TimeSpec,
        ) -> c_int;
        pub(super) fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
        pub(super) fn usleep(micros: c_uint) -> c_int;
        pub(super) fn prctl(option: c_int, value: usize, b: usize, c: usize, d: usize) -> c_int;
        pub(super) fn syscall(number: c_long, ...) -> c_long;
    }
}

#[repr(C, align(8))]
struct SigSet([u8; 128]);

#[repr(C)]
struct TimeSpec {
    seconds: c_long,
    nanos: c_long,
}

const SIGKILL: c_int = 9;
const SIGTERM: c_int = 15;
const SIGCHLD: c_int = 17;
const SIGSTOP: c_int = 19;
const PIDFD_SEND_SIGNAL: c_long = 424;
const PIDFD_OPEN: c_long = 434;
const CLONE3: c_long = 435;

/// # Safety
/// Called by the C library with the arguments of the program.
#[unsafe(no_mangle)]
unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let arg = |at: c_int| -> &[u8] {
        if at >= argc {
            return b"";
        }
        // SAFETY: below `argc` there is a text that ends with a zero.
        unsafe { text(*argv.offset(at as isize)) }
    };
    match arg(1) {
        b"worker" => worker(arg(2), arg(3), arg(4), arg(5), arg(6)),
        b"changed" => changed(),
        b"world" => world(),
        b"strangers" => strangers(number(arg(2)), arg(3) == b"inside"),
        // SAFETY: the words end with a null, and there are more than two.
        b"inside" if argc > 2 => unsafe { inside(argv.add(2)) },
        _ => 64,
    }
}

/// The descriptor of the witness in every process of a worker.
const WITNESS: c_int = 77;

/// The first listening socket that a worker is given.
const GIVEN: c_int = 3;

/// A worker: tells the witness who it is, listens where it was told, and takes up its habit. The descriptor
/// is inherited by all that descends from it, whatever they shed: its end is the end of them all.
fn worker(habit: &[u8], witness: &[u8], label: &[u8], address: &[u8], copy: &[u8]) -> c_int {
    block_all();
    // SAFETY: calls of the C library with valid, terminated texts.
    unsafe {
        let fd = c::socket(1, 1, 0);
        if at_path(witness, |path, length| c::connect(fd, path, length)) != 0 {
            return 65;
        }
        c::dup2(fd, WITNESS);
        c::close(fd);
        say(label);
        say(b"\n");
        // The answer says that this process is pinned by its id; the word back, that it was this one.
        let mut pinned = 0_u8;
        c::read(WITNESS, (&raw mut pinned).cast(), 1);
        say(b"P");
        let listener = c::socket(1, 1, 0);
        if at_path(address, |path, length| c::bind(listener, path, length)) != 0
            || c::listen(listener, 16) != 0
        {
            return 66;
        }
        match habit {
            b"daemon" if c::fork() == 0 => daemon(),
            b"chain" if c::fork() == 0 => chain(),
            b"setuid" => {
                let argv = [copy.as_ptr().cast(), c"changed".as_ptr(), core::ptr::null()];
                c::execv(copy.as_ptr().cast(), argv.as_ptr());
                return 67;
            }
            b"called" => {
                // Whoever had it started is let go, so that the next one waits for a caller of its own.
                c::close(c::accept(GIVEN, core::ptr::null_mut(), core::ptr::null_mut()));
                say(b"R");
                stubborn()
            }
            b"stopped" => {
                say(b"R");
                c::raise(SIGSTOP);
                stubborn()
            }
            b"stubborn" | b"frozen" => {
                say(b"R");
                stubborn()
            }
            b"polite" => {
                say(b"R");
            }
            _ => {}
        }
        polite()
    }
}

/// Ends when asked to, after a moment of tidying.
fn polite() -> ! {
    let mut set = SigSet([0; 128]);
    // SAFETY: the set is large enough for the C library's.
    unsafe {
        c::sigemptyset(&mut set);
        c::sigaddset(&mut set, SIGTERM);
        while c::sigtimedwait(&set, core::ptr::null_mut(), core::ptr::null()) != SIGTERM {}
        say(b"T");
        c::usleep(100_000);
        c::_exit(0)
    }
}

/// Hears no signal that can be blocked.
fn stubborn() -> ! {
    loop {
        // SAFETY: only sleeps.
        unsafe { c::usleep(900_000_000) };
    }
}

/// A session of its own and nobody's child.
fn daemon() -> ! {
    // SAFETY: single-threaded.
    unsafe {
        c::setsid();
        if c::fork() != 0 {
            c::_exit(0);
        }
        say(b"R");
        stubborn()
    }
}

/// Each process forks its successor and ends.
fn chain() -> ! {
    // SAFETY: single-threaded.
    unsafe {
        c::setsid();
        say(b"R");
        loop {
            c::usleep(2_000);
            if c::fork() > 0 {
                c::_exit(0);
            }
        }
    }
}

/// What a set-uid program is once it runs: its parent-death signal is cleared.
fn changed() -> c_int {
    // SAFETY: asks the kernel only.
    let effective = unsafe { c::getuid() != c::geteuid() };
    say(if effective { b"R" } else { b"N" });
    stubborn()
}

/// The process that everything of one world descends from, however it is orphaned. It starts what it is
/// told on standard input, `LOG<tab>PROGRAM<tab>ARGUMENT...`, or as the first process of a container
/// `LOG<tab>container<tab>CGROUPS<tab>PROGRAM<tab>ARGUMENT...`, answers with the pid, and ends everything at
/// the end of its input.
fn world() -> c_int {
    let mut line = [0_u8; 4096];
    let mut filled = 0;
    // SAFETY: single-threaded; the buffer outlives every pointer into it.
    unsafe {
        c::prctl(36, 1, 0, 0, 0);
        // Children without a parent that waits for them leave no zombies.
        c::signal(SIGCHLD, 1);
        loop {
            let mut byte = 0_u8;
            if c::read(0, (&raw mut byte).cast(), 1) != 1 || filled + 1 == line.len() {
                return end_children();
            }
            if byte == b'\n' {
                line[filled] = 0;
                say_number(start(&mut line[..=filled]));
                filled = 0;
            } else {
                line[filled] = byte;
                filled += 1;
            }
        }
    }
}

/// Starts a program whose words end with tabs, its output going to the file in the first.
unsafe fn start(line: &mut [u8]) -> u32 {
    let mut words = [core::ptr::null::<c_char>(); 32];
    let mut count = 1;
    words[0] = line.as_ptr().cast();
    for at in 0..line.len() {
        if line[at] == b'\t' && count + 1 < words.len() {
            line[at] = 0;
            // SAFETY: a terminating zero follows the last tab.
            words[count] = unsafe { line.as_ptr().add(at + 1).cast() };
            count += 1;
        }
    }
    // SAFETY: single-threaded, and the words are terminated.
    unsafe {
        let contained = text(words[1]) == b"container" && count > 3;
        let program = if contained { 3 } else { 1 };
        let child = if contained { walls::first_process() } else { c::fork() };
        if child == 0 {
            c::signal(SIGCHLD, 0);
            let null = c::open(c"/dev/null".as_ptr(), 0, 0);
            let log = c::open(words[0], 0o2101, 0o600);
            c::dup2(null, 0);
            c::dup2(log, 1);
            c::dup2(log, 2);
            c::close(null);
            c::close(log);
            if !contained || walls::put_up(words[2]) {
                c::execv(words[program], words.as_ptr().add(program));
            }
            c::_exit(127);
        }
        child as u32
    }
}

/// Runs a program in the container whose first process is held by the descriptor on standard input, as a
/// child of this process, which is outside; ends with it.
unsafe fn inside(argv: *const *const c_char) -> c_int {
    // SAFETY: single-threaded, and the words are terminated.
    unsafe {
        if !walls::enter(0, true) {
            return 68;
        }
        let child = c::fork();
        if child == 0 {
            c::dup2(c::open(c"/dev/null".as_ptr(), 0, 0), 0);
            c::execv(*argv, argv);
            c::_exit(127);
        }
        let mut status = 0;
        c::waitpid(child, &mut status, 0);
        (status >> 8) & 0xff
    }
}

/// Kills every child until there is none: those of a child become this process's own.
unsafe fn end_children() -> c_int {
    let mut list = [0_u8; 8192];
    for _ in 0..5_000 {
        // SAFETY: the buffer is as long as is said.
        unsafe {
            let file = c::open(c"/proc/thread-self/children".as_ptr(), 0, 0);
            let length = c::read(file, list.as_mut_ptr().cast(), list.len());
            c::close(file);
            if length <= 0 {
                return 0;
            }
            for word in list[..length as usize].split(|&byte| byte == b' ') {
                let pid = number(word);
                if pid > 0 {
                    let pidfd = c::syscall(PIDFD_OPEN, c_long::from(pid), 0 as c_long);
                    if pidfd >= 0 {
                        c::syscall(
                            PIDFD_SEND_SIGNAL,
                            pidfd,
                            c_long::from(SIGKILL),
                            0 as c_long,
                            0 as c_long,
                        );
                        c::close(pidfd as c_int);
                    }
                }
            }
            c::usleep(2_000);
        }
    }
    1
}

/// What the kernel takes for `clone3`.
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

/// How many pids wait to be taken over at most.
const WANTED: usize = 512;

/// Recycles pids: `rate` processes a second that come and go, one in sixteen of them a stranger that stays
/// for two seconds, and a stranger on each pid that is asked for on standard input, as soon as it is free.
/// Says `hit PID SIGNAL` for every signal that any of them got.
///
/// They may live in the container whose first process is held by the descriptor for errors, and the pids
/// are those of that container then; this process stays outside, and tells after the container's end.
fn strangers(rate: u32, inside: bool) -> c_int {
    block_all();
    // SAFETY: asks the kernel only.
    if inside && !unsafe { walls::enter(2, false) } {
        return 68;
    }
    let mut wanted = [(0_u32, 0_u16); WANTED];
    let (mut forks, mut strange, mut targeted, mut hits, mut living) = (0_u32, 0_u32, 0_u32, 0_u32, 0_u32);
    let mut open = true;
    let mut owed = 0_u32;
    // SAFETY: single-threaded; the C library's calls get buffers of the length that is said.
    unsafe {
        c::fcntl(0, 4, 0o4000);
        while open || living > 0 {
            let mut pids = [0_u8; 4 * 64];
            let length = c::read(0, pids.as_mut_ptr().cast(), pids.len());
            open = open && length != 0;
            for pid in pids[..length.max(0) as usize].chunks_exact(4) {
                let pid = u32::from_le_bytes([pid[0], pid[1], pid[2], pid[3]]);
                if let Some(free) = wanted.iter_mut().find(|(pid, _)| *pid == 0) {
                    *free = (pid, 0);
                }
            }
            for (pid, tries) in wanted.iter_mut().filter(|(pid, _)| open && *pid != 0) {
                let tid = *pid as c_int;
                let args = CloneArgs {
                    exit_signal: SIGCHLD as u64,
                    set_tid: (&raw const tid) as u64,
                    set_tid_size: 1,
                    ..CloneArgs::default()
                };
                let child = c::syscall(CLONE3, &raw const args, size_of::<CloneArgs>());
                if child == 0 {
                    stranger();
                }
                *tries += 1;
                if child > 0 {
                    targeted += 1;
                    strange += 1;
                    living += 1;
                }
                if child > 0 || *tries > 500 {
                    *pid = 0;
                }
            }
            owed += if open { rate } else { 0 };
            while owed >= 1000 {
                owed -= 1000;
                let strays = (forks + 1) % 16 == 0;
                let child = c::fork();
                if child == 0 {
                    if strays {
                        stranger();
                    }
                    c::_exit(0);
                }
                if child > 0 {
                    forks += 1;
                    living += 1;
                    strange += u32::from(strays);
                }
            }
            loop {
                let mut status = 0;
                let pid = c::waitpid(-1, &mut status, 3);
                if pid <= 0 {
                    break;
                }
                let (signal, code) = (status & 0x7f, (status >> 8) & 0xff);
                let hit = match signal {
                    0 => code,
                    _ if status & 0xff == 0x7f => code,
                    _ => signal,
                };
                if status & 0xff != 0x7f {
                    living -= 1;
                }
                // What dies with its container was not hit.
                let mut ended = || match c::fork() {
                    0 => c::_exit(0),
                    -1 => walls::has_ended(),
                    _ => {
                        living += 1;
                        false
                    }
                };
                if hit != 0 && !(inside && hit == SIGKILL && ended()) {
                    hits += 1;
                    print(b"hit ");
                    print_number(pid as u32);
                    print(b" ");
                    print_number(hit as u32);
                    print(b"\n");
                }
            }
            c::usleep(1_000);
        }
        print(b"done ");
        for figure in [forks, strange, targeted, hits] {
            print_number(figure);
            print(b" ");
        }
        print(b"\n");
    }
    0
}

/// Waits for a signal, any; ends with its number, or with 0 when none came.
fn stranger() -> ! {
    let mut set = SigSet([0; 128]);
    let two_seconds = TimeSpec {
        seconds: 2,
        nanos: 0,
    };
    // SAFETY: the set is large enough for the C library's.
    unsafe {
        c::sigfillset(&mut set);
        let signal = c::sigtimedwait(&set, core::ptr::null_mut(), &two_seconds);
        c::_exit(signal.max(0))
    }
}

fn block_all() {
    let mut set = SigSet([0; 128]);
    // SAFETY: the set is large enough for the C library's.
    unsafe {
        c::sigfillset(&mut set);
        c::sigprocmask(0, &set, core::ptr::null_mut());
    }
}

fn at_path(path: &[u8], call: impl FnOnce(*const c_void, c_uint) -> c_int) -> c_int {
    let mut address = [0_u8; 110];
    address[0] = 1;
    if path.len() > 107 {
        return -1;
    }
    address[2..2 + path.len()].copy_from_slice(path);
    call(address.as_ptr().cast(), 110)
}

fn say(bytes: &[u8]) {
    write(WITNESS, bytes);
}

fn print(bytes: &[u8]) {
    write(1, bytes);
}

fn write(fd: c_int, bytes: &[u8]) {
    // SAFETY: the length is that of the bytes.
    unsafe { c::write(fd, bytes.as_ptr().cast(), bytes.len()) };
}

fn say_number(number: u32) {
    print_number(number);
    print(b"\n");
}

fn print_number(mut number: u32) {
    let mut digits = [0_u8; 10];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return print(&digits[at..]);
        }
    }
}

fn number(digits: &[u8]) -> u32 {
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |sum, byte| sum * 10 + u32::from(byte - b'0'))
}

/// # Safety
/// `start` points to a text that ends with a zero.
unsafe fn text<'a>(start: *const c_char) -> &'a [u8] {
    // SAFETY: as promised.
    unsafe { core::ffi::CStr::from_ptr(start) }.to_bytes()
}
