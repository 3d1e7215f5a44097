//! Every system call that a shim and its zygote make, and what each may plausibly fail with.

use rustix::io::Errno;

/// One system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    /// Its number on x86-64.
    pub(crate) number: i32,
    /// As the manual calls it.
    pub(crate) name: &'static str,
    /// What it fails with, the likelier first; nothing where the kernel has no way to refuse what is asked here.
    pub(crate) errnos: &'static [Errno],
}

const fn call(number: i32, name: &'static str, errnos: &'static [Errno]) -> Call {
    Call {
        number,
        name,
        errnos,
    }
}

/// All of them. One that is seen and not listed here fails a row of its own.
pub(crate) const ALL: &[Call] = &[
    call(0, "read", &[Errno::IO, Errno::INTR, Errno::NOMEM]),
    call(1, "write", &[Errno::NOSPC, Errno::IO, Errno::AGAIN]),
    call(2, "open", &[Errno::MFILE, Errno::NOMEM]),
    // One that fails has closed nevertheless, which a call that is not made cannot show.
    call(3, "close", &[]),
    call(5, "fstat", &[Errno::NOMEM]),
    call(7, "poll", &[Errno::INTR, Errno::NOMEM]),
    call(8, "lseek", &[Errno::IO]),
    call(9, "mmap", &[Errno::NOMEM, Errno::AGAIN]),
    call(10, "mprotect", &[Errno::NOMEM]),
    call(11, "munmap", &[Errno::NOMEM]),
    // Refuses by answering where memory ends already, never with an error: taken for that place, one would crash the C
    // library before there is a program.
    call(12, "brk", &[]),
    call(13, "rt_sigaction", &[]),
    call(14, "rt_sigprocmask", &[]),
    call(16, "ioctl", &[Errno::PERM, Errno::IO]),
    call(18, "pwrite64", &[Errno::NOSPC, Errno::IO]),
    call(25, "mremap", &[Errno::NOMEM]),
    call(28, "madvise", &[Errno::NOMEM, Errno::AGAIN]),
    call(33, "dup2", &[Errno::INTR, Errno::MFILE]),
    call(39, "getpid", &[]),
    call(44, "sendto", &[Errno::NOMEM, Errno::AGAIN, Errno::INTR]),
    call(45, "recvfrom", &[Errno::INTR, Errno::NOMEM]),
    call(41, "socket", &[Errno::MFILE, Errno::NOMEM]),
    call(46, "sendmsg", &[Errno::NOMEM, Errno::AGAIN]),
    call(47, "recvmsg", &[Errno::NOMEM, Errno::INTR, Errno::MFILE]),
    call(49, "bind", &[Errno::NOSPC, Errno::PERM]),
    call(50, "listen", &[Errno::NOMEM]),
    call(55, "getsockopt", &[Errno::NOMEM]),
    call(56, "clone", &[Errno::AGAIN, Errno::NOMEM, Errno::PERM]),
    call(59, "execve", &[Errno::NOMEM, Errno::IO, Errno::MFILE]),
    call(61, "wait4", &[Errno::INTR, Errno::NOMEM]),
    call(72, "fcntl", &[Errno::MFILE, Errno::NOMEM]),
    call(74, "fsync", &[Errno::IO, Errno::NOSPC]),
    call(77, "ftruncate", &[Errno::IO]),
    call(80, "chdir", &[Errno::NOMEM, Errno::IO]),
    call(82, "rename", &[Errno::NOSPC, Errno::IO]),
    call(83, "mkdir", &[Errno::NOSPC, Errno::NOMEM]),
    call(84, "rmdir", &[Errno::BUSY, Errno::NOMEM]),
    call(87, "unlink", &[Errno::IO, Errno::PERM]),
    call(89, "readlink", &[Errno::NOMEM]),
    call(91, "fchmod", &[Errno::IO, Errno::PERM]),
    call(95, "umask", &[]),
    call(98, "getrusage", &[]),
    call(102, "getuid", &[]),
    call(104, "getgid", &[]),
    call(107, "geteuid", &[]),
    call(112, "setsid", &[Errno::PERM]),
    call(117, "setresuid", &[Errno::AGAIN]),
    call(128, "rt_sigtimedwait", &[Errno::INTR, Errno::AGAIN]),
    call(131, "sigaltstack", &[Errno::NOMEM]),
    call(157, "prctl", &[Errno::PERM, Errno::NOMEM]),
    call(158, "arch_prctl", &[]),
    call(165, "mount", &[Errno::PERM, Errno::NOMEM]),
    call(186, "gettid", &[]),
    call(204, "sched_getaffinity", &[]),
    call(217, "getdents64", &[Errno::NOMEM, Errno::IO]),
    call(218, "set_tid_address", &[]),
    call(222, "timer_create", &[Errno::AGAIN, Errno::NOMEM]),
    call(223, "timer_settime", &[Errno::PERM]),
    call(230, "clock_nanosleep", &[Errno::INTR]),
    call(257, "openat", &[Errno::MFILE, Errno::NOMEM, Errno::NOSPC]),
    call(258, "mkdirat", &[Errno::NOSPC, Errno::NOMEM]),
    call(262, "newfstatat", &[Errno::NOMEM]),
    call(263, "unlinkat", &[Errno::IO]),
    call(264, "renameat", &[Errno::NOSPC, Errno::IO]),
    call(267, "readlinkat", &[Errno::NOMEM]),
    call(271, "ppoll", &[Errno::INTR, Errno::NOMEM]),
    call(272, "unshare", &[Errno::NOSPC, Errno::NOMEM, Errno::PERM]),
    call(273, "set_robust_list", &[]),
    call(283, "timerfd_create", &[Errno::MFILE, Errno::NOMEM]),
    call(285, "fallocate", &[Errno::NOSPC, Errno::NOMEM, Errno::INTR]),
    call(286, "timerfd_settime", &[Errno::PERM]),
    call(288, "accept4", &[Errno::MFILE, Errno::NOMEM]),
    call(289, "signalfd4", &[Errno::MFILE, Errno::NOMEM]),
    call(292, "dup3", &[Errno::INTR, Errno::MFILE]),
    call(293, "pipe2", &[Errno::MFILE, Errno::NOMEM]),
    call(302, "prlimit64", &[]),
    call(318, "getrandom", &[Errno::AGAIN, Errno::INTR]),
    call(319, "memfd_create", &[Errno::PERM, Errno::MFILE]),
    call(332, "statx", &[Errno::NOMEM]),
    call(334, "rseq", &[]),
    call(424, "pidfd_send_signal", &[Errno::PERM]),
    call(434, "pidfd_open", &[Errno::MFILE, Errno::NOMEM]),
    call(435, "clone3", &[Errno::AGAIN, Errno::NOMEM, Errno::PERM]),
    call(436, "close_range", &[Errno::MFILE, Errno::NOMEM]),
];

/// The call of this number.
pub(crate) fn find(number: i32) -> Option<&'static Call> {
    ALL.iter().find(|call| call.number == number)
}

/// What an error number is called.
pub(crate) fn word(errno: Errno) -> &'static str {
    match errno {
        Errno::AGAIN => "EAGAIN",
        Errno::BUSY => "EBUSY",
        Errno::INTR => "EINTR",
        Errno::IO => "EIO",
        Errno::MFILE => "EMFILE",
        Errno::NOMEM => "ENOMEM",
        Errno::NOSPC => "ENOSPC",
        Errno::PERM => "EPERM",
        _ => "another error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_a_number_of_its_own_and_errors_with_names() {
        for call in ALL {
            let same = ALL.iter().filter(|other| other.number == call.number);
            assert_eq!(same.count(), 1, "{}", call.name);
            assert!(
                call.errnos
                    .iter()
                    .all(|errno| word(*errno).starts_with('E')),
                "{}",
                call.name
            );
        }
    }
}
