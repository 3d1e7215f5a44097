//! The smallest worker there is: a static program of a few hundred bytes that speaks to the kernel alone.
//!
//! ```text
//! worker exit       ends at once with status 0
//! worker ready      listens on the unix socket in TETHER_LISTEN and stays
//! worker wait       stays
//! worker stubborn   ignores SIGTERM, leaves a daemon behind that does so too, and stays
//! worker init CMD.. runs CMD and reaps every orphan, as process 1 of a PID namespace has to
//! ```
//!
//! Built by the build script of `tether-benches` with rustc alone, for x86-64 Linux.

#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};

const CLOSE: usize = 3;
const RT_SIGACTION: usize = 13;
const PAUSE: usize = 34;
const SOCKET: usize = 41;
const BIND: usize = 49;
const LISTEN: usize = 50;
const FORK: usize = 57;
const EXECVE: usize = 59;
const EXIT: usize = 60;
const WAIT4: usize = 61;
const UNLINK: usize = 87;
const SETSID: usize = 112;

const SIGTERM: usize = 15;
const SIG_IGN: usize = 1;

/// A `sockaddr_un`.
#[repr(C)]
struct UnixAddress {
    family: u16,
    path: [u8; 108],
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(101)
}

/// What the kernel starts: the stack holds the count of arguments, then their addresses.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("mov rdi, rsp", "and rsp, -16", "call {main}", main = sym main)
}

extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel put the count there, that many addresses of texts that end in 0, a 0, the
    // addresses of the environment's texts, and a 0.
    let (arguments, environment) = unsafe {
        let arguments = stack.add(1).cast::<*const u8>();
        (arguments, arguments.add(*stack + 1))
    };
    // SAFETY: as above; one letter tells the modes apart, and a missing argument is a null address.
    let mode = unsafe { if *stack < 2 { 0 } else { **arguments.add(1) } };
    match mode {
        b'e' => exit(0),
        b'r' => ready(environment),
        b'w' => stay(),
        b's' => stubborn(),
        b'i' => init(arguments, environment),
        _ => exit(2),
    }
}

fn ready(environment: *const *const u8) -> ! {
    let mut address = UnixAddress { family: 1, path: [0; 108] };
    let path = variable(environment, b"TETHER_LISTEN=unix:");
    for (index, to) in address.path[..107].iter_mut().enumerate() {
        // SAFETY: the text ends in 0, and nothing is read beyond that.
        *to = unsafe { *path.add(index) };
        if *to == 0 {
            break;
        }
    }
    call(UNLINK, address.path.as_ptr() as usize, 0, 0, 0);
    let socket = call(SOCKET, 1, 1, 0, 0) as usize;
    let at = &raw const address as usize;
    if call(BIND, socket, at, size_of::<UnixAddress>(), 0) < 0 || call(LISTEN, socket, 16, 0, 0) < 0 {
        exit(1);
    }
    stay()
}

fn stubborn() -> ! {
    // The kernel's own form: handler, flags, restorer, mask.
    let ignore: [usize; 4] = [SIG_IGN, 0, 0, 0];
    call(RT_SIGACTION, SIGTERM, ignore.as_ptr() as usize, 0, 8);
    if call(FORK, 0, 0, 0, 0) == 0 {
        call(SETSID, 0, 0, 0, 0);
        if call(FORK, 0, 0, 0, 0) == 0 {
            for descriptor in 0..3 {
                call(CLOSE, descriptor, 0, 0, 0);
            }
            stay();
        }
        exit(0);
    }
    // The one in between is gone once this returns, so two processes are left.
    call(WAIT4, usize::MAX, 0, 0, 0);
    stay()
}

fn init(arguments: *const *const u8, environment: *const *const u8) -> ! {
    if call(FORK, 0, 0, 0, 0) == 0 {
        // SAFETY: main saw at least one argument behind the program's name; a null ends them.
        let command = unsafe { arguments.add(2) };
        // SAFETY: as above.
        let program = unsafe { *command };
        call(EXECVE, program as usize, command as usize, environment as usize, 0);
        exit(127);
    }
    // Whoever reads what the command says shall see its end.
    for descriptor in 0..2 {
        call(CLOSE, descriptor, 0, 0, 0);
    }
    loop {
        if call(WAIT4, usize::MAX, 0, 0, 0) < 0 {
            stay();
        }
    }
}

fn stay() -> ! {
    loop {
        call(PAUSE, 0, 0, 0, 0);
    }
}

/// The rest of the variable that begins like this.
fn variable(mut environment: *const *const u8, start: &[u8]) -> *const u8 {
    loop {
        // SAFETY: a null ends the addresses, and each text ends in 0, which no `start` contains.
        unsafe {
            let text = *environment;
            if text.is_null() {
                exit(3);
            }
            if start.iter().enumerate().all(|(index, letter)| *text.add(index) == *letter) {
                return text.add(start.len());
            }
            environment = environment.add(1);
        }
    }
}

fn exit(status: usize) -> ! {
    call(EXIT, status, 0, 0, 0);
    // The call before does not come back.
    loop {}
}

fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: a system call clobbers rcx, r11 and rax; every caller hands over addresses that stand.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}
