//! Runs an agent whose every system call, and every one of what descends from it, passes by here first, and
//! makes chosen ones of the shim and the zygote fail.
//!
//! It is told what to do on standard input, a line each, and answers each line with lines of which the last
//! is `ok`:
//!
//! ```text
//! arm ROLE CALL NTH ERRNO   from here on, the NTH such call of such a process fails, once
//! only SHIM ZYGOTE          counting begins anew; until `clear` no calls are counted, or fail, but those of this
//!                           shim, of its children and of this zygote
//! clear                     nothing fails; counting begins anew, as it does with `arm`
//! start                     starts the program in the arguments, again where it has ended; answers `agent PID`
//!                           before `ok`
//! run                       the same, without a look at its calls
//! counts                    `count ROLE CALL COUNT` for each, then `hits COUNT` of what was armed
//! ```
//!
//! A program of its own, built without dependencies: what the harness has no safe words for stays in here.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::io::{self, BufRead, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::{env, fs, process, thread};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn fork() -> c_int;
    fn execv(path: *const c_char, argv: *const *const c_char) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
    fn usleep(micros: c_uint) -> c_int;
    fn signal(signal: c_int, handler: usize) -> usize;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn _exit(code: c_int) -> !;
}

const CLOSE: c_long = 3;
const SECCOMP: c_long = 317;
const PIDFD_SEND_SIGNAL: c_long = 424;
const PIDFD_OPEN: c_long = 434;
const CLOSE_RANGE: c_long = 436;
const PIDFD_GETFD: c_long = 438;

const SET_MODE_FILTER: c_long = 1;
/// A listener; and once it has heard of a call, only a deadly signal takes that call back.
const FLAGS: c_long = 1 << 3 | 1 << 5;
const ALLOW: u32 = 0x7fff_0000;
const ASK: u32 = 0x7fc0_0000;
const RECEIVE: c_ulong = 0xc050_2100;
const ANSWER: c_ulong = 0xc018_2101;
const CONTINUE: u32 = 1;

/// Calls that cannot fail or come back only once nobody looks any more, and those by which an agent's threads
/// wait for each other, which are many and no business of its helpers.
const UNASKED: &[u32] = &[
    15,  // rt_sigreturn
    24,  // sched_yield
    60,  // exit
    202, // futex
    219, // restart_syscall
    228, // clock_gettime
    231, // exit_group
    232, // epoll_wait
    281, // epoll_pwait
];

/// Where the listener is in the child: the first descriptor after the standard streams.
const LISTENER: c_int = 3;

#[repr(C)]
struct Instruction {
    code: u16,
    then: u8,
    or_else: u8,
    value: u32,
}

#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    ready: i16,
}

/// A call that waits for a word.
#[repr(C)]
#[derive(Default)]
struct Asked {
    id: u64,
    pid: u32,
    flags: u32,
    call: i32,
    arch: u32,
    instruction: u64,
    arguments: [u64; 6],
}

#[repr(C)]
struct Answered {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// Whose call it is, then which.
type Call = (&'static str, i32);

#[derive(Default)]
struct Plan {
    armed: Option<(String, i32, u32, i32)>,
    /// A shim and a zygote that alone are of interest.
    only: Option<(u32, u32)>,
    counts: BTreeMap<Call, u32>,
    hits: u32,
}

fn main() -> io::Result<()> {
    // Whatever is orphaned below is orphaned to this process, where it is looked for.
    // SAFETY: only numbers.
    unsafe { prctl(36, 1 as c_long, 0 as c_long, 0 as c_long, 0 as c_long) };
    let program: Vec<CString> = env::args().skip(1).filter_map(|word| CString::new(word).ok()).collect();
    let plan = Arc::new(Mutex::new(Plan::default()));
    // Where a child has its listener must not be one of another child's at any moment.
    let _held = fs::File::open("/dev/null")?;
    let mut agent = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let mut out = io::stdout().lock();
        match words[..] {
            ["arm", role, call, nth, errno] => {
                let armed = (role.to_owned(), number(call), number(nth).unsigned_abs(), number(errno));
                let mut plan = lock(&plan);
                *plan = Plan { armed: Some(armed), only: plan.only, ..Plan::default() };
            }
            ["only", shim, zygote] => {
                let only = Some((number(shim).unsigned_abs(), number(zygote).unsigned_abs()));
                *lock(&plan) = Plan { only, ..Plan::default() };
            }
            ["clear"] => *lock(&plan) = Plan::default(),
            ["run"] => {
                let (pidfd, pid) = fork_into(&program, &[])?;
                agent = Some((pidfd, pid));
                writeln!(out, "agent {pid}")?;
            }
            ["start"] => {
                let (pidfd, pid) = fork_into(&program, &filter())?;
                if let Some((gone, _)) = agent.replace((pidfd, pid)) {
                    close(gone);
                }
                let listener = listener(pidfd)?;
                let own = env::args().nth(1).and_then(|program| fs::canonicalize(program).ok());
                let (plan, own) = (Arc::clone(&plan), own.unwrap_or_default());
                // The listener ends with the last process that has anything to ask.
                thread::spawn(move || {
                    serve(listener, &own, &plan);
                    close(listener);
                });
                writeln!(out, "agent {pid}")?;
            }
            ["counts"] => {
                let plan = lock(&plan);
                for ((role, call), count) in &plan.counts {
                    writeln!(out, "count {role} {call} {count}")?;
                }
                writeln!(out, "hits {}", plan.hits)?;
            }
            _ => process::exit(64),
        }
        writeln!(out, "ok")?;
        out.flush()?;
    }
    if let Some((pidfd, pid)) = agent {
        // SAFETY: only numbers, and a place for the status.
        unsafe {
            syscall(PIDFD_SEND_SIGNAL, pidfd as c_long, 9 as c_long, 0 as c_long, 0 as c_long);
            waitpid(pid, &mut 0, 0);
        }
    }
    Ok(())
}

/// Starts the program behind a filter: its pidfd, and its pid.
fn fork_into(program: &[CString], filter: &[Instruction]) -> io::Result<(c_int, c_int)> {
    let mut words: Vec<*const c_char> = program.iter().map(|word| word.as_ptr()).collect();
    words.push(std::ptr::null());
    // SAFETY: there is one thread; the child calls nothing that takes locks, and all it uses outlives it here.
    let child = unsafe { fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe { become_program(filter, &words) }
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: only numbers; the child is not reaped before. The kernel reaps from here on what is orphaned here,
    // which a later child takes back for itself.
    let pidfd = unsafe {
        let pidfd = syscall(PIDFD_OPEN, child as c_long, 0 as c_long) as c_int;
        signal(17, 1);
        pidfd
    };
    Ok((pidfd, child))
}

/// Where a process that was just forked has its calls listened to.
fn listener(pidfd: c_int) -> io::Result<c_int> {
    for _ in 0..5_000 {
        // SAFETY: only numbers.
        let listener =
            unsafe { syscall(PIDFD_GETFD, pidfd as c_long, LISTENER as c_long, 0 as c_long) } as c_int;
        let kind = fs::read_link(format!("/proc/self/fd/{listener}")).unwrap_or_default();
        if kind.to_string_lossy().contains("seccomp") {
            return Ok(listener);
        }
        close(listener);
        // SAFETY: only sleeps, until the child has come so far.
        unsafe { usleep(1_000) };
    }
    Err(io::Error::other("the kernel gives no listener for system calls"))
}

fn close(descriptor: c_int) {
    // SAFETY: only a number, and nobody's but the caller's.
    unsafe { syscall(CLOSE, c_long::from(descriptor)) };
}

/// In the child.
unsafe fn become_program(filter: &[Instruction], words: &[*const c_char]) -> ! {
    let program = Program { length: filter.len() as u16, instructions: filter.as_ptr() };
    // SAFETY: `program` and `words` are as the kernel wants them, for as long as it looks.
    unsafe {
        syscall(CLOSE_RANGE, LISTENER as c_long, c_long::from(u32::MAX), 0 as c_long);
        signal(17, 0);
        // Only root may filter what could gain rights by it; all others give that up.
        if !filter.is_empty() && syscall(SECCOMP, SET_MODE_FILTER, FLAGS, &raw const program) != LISTENER as c_long {
            prctl(38, 1 as c_long, 0 as c_long, 0 as c_long, 0 as c_long);
            if syscall(SECCOMP, SET_MODE_FILTER, FLAGS, &raw const program) != LISTENER as c_long {
                _exit(70);
            }
        }
        execv(words[0], words.as_ptr());
        _exit(127)
    }
}

/// Asks about all but a few calls.
fn filter() -> Vec<Instruction> {
    let mut filter = vec![Instruction { code: 0x20, then: 0, or_else: 0, value: 0 }];
    for call in UNASKED {
        filter.push(Instruction { code: 0x15, then: 0, or_else: 1, value: *call });
        filter.push(Instruction { code: 0x06, then: 0, or_else: 0, value: ALLOW });
    }
    filter.push(Instruction { code: 0x06, then: 0, or_else: 0, value: ASK });
    filter
}

/// Answers for every call until nobody is left to make one.
fn serve(listener: c_int, agent: &std::path::Path, plan: &Mutex<Plan>) {
    loop {
        let mut wait = PollFd { fd: listener, events: 1, ready: 0 };
        // SAFETY: one element.
        unsafe { poll(&mut wait, 1, -1) };
        if wait.ready & 1 == 0 {
            return;
        }
        let mut asked = Asked::default();
        // SAFETY: as large as the kernel's.
        if unsafe { ioctl(listener, RECEIVE, (&raw mut asked).cast::<c_void>()) } != 0 {
            continue;
        }
        let error = match role(asked.pid, agent) {
            Some(role) => {
                let mut plan = lock(plan);
                if plan.concerns(asked.pid) { plan.hear((role, asked.call)) } else { 0 }
            }
            None => 0,
        };
        let answer = Answered {
            id: asked.id,
            value: 0,
            error: -error,
            flags: if error == 0 { CONTINUE } else { 0 },
        };
        // SAFETY: as above. One that died meanwhile wants no answer.
        unsafe { ioctl(listener, ANSWER, (&raw const answer).cast::<c_void>()) };
    }
}

impl Plan {
    /// Whether calls of this process count.
    fn concerns(&self, pid: u32) -> bool {
        self.only.is_none_or(|(shim, zygote)| {
            let is_child = || name_and_parent(pid).is_some_and(|(_, parent)| parent == shim);
            pid == shim || pid == zygote || is_child()
        })
    }

    /// Counts a call; with what it is to fail, or 0.
    fn hear(&mut self, call: Call) -> i32 {
        let count = self.counts.entry(call).or_default();
        *count += 1;
        match &self.armed {
            Some((role, number, nth, errno)) if (role.as_str(), *number, *nth) == (call.0, call.1, *count) => {
                self.hits += 1;
                *errno
            }
            _ => 0,
        }
    }
}

/// What a process is to the agent: known by its program, its name and its parent's.
fn role(pid: u32, agent: &std::path::Path) -> Option<&'static str> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    if program == agent {
        return Some("agent");
    }
    if !is_ours(&program) {
        return None;
    }
    let (name, parent) = name_and_parent(pid)?;
    let under = || name_and_parent(parent).map(|(name, _)| name).unwrap_or_default();
    Some(match name.as_str() {
        "tether-init" => "init",
        // Between its fork and its first words a shim bears its zygote's name, and a worker its shim's.
        "tether-zygote" if under() == "tether-zygote" => "shim",
        "tether-shim" if under() == "tether-shim" => "child",
        "tether-shim" => "shim",
        _ => "zygote",
    })
}

fn is_ours(program: &std::path::Path) -> bool {
    program.to_string_lossy().starts_with("/memfd:tether-shim")
}

fn name_and_parent(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.rsplit_once(") ")?;
    let (_, name) = name.split_once('(')?;
    Some((name.to_owned(), rest.split(' ').nth(1)?.parse().ok()?))
}

fn number(word: &str) -> i32 {
    word.parse().unwrap_or_else(|_| process::exit(64))
}

fn lock(plan: &Mutex<Plan>) -> std::sync::MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}
