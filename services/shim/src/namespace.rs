//! The worker's PID namespace and its first process, whose end the kernel makes the end of all in it.
//!
//! That process (`tether-init`) is made by the shim, dies with it by its parent-death signal, and does
//! nothing but reap what is orphaned inside. The worker itself is the shim's own child, born into the same
//! namespace: so the shim waits for it as for any child. It shares the shim's memory instead of copying
//! it, and touches none of it but the three [`Words`] they have in common.

use alloc::boxed::Box;
use alloc::format;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::{
    PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, wait,
};
use tether_sys::Child;

use crate::files::tell;

/// What a shim and the first process of its namespace tell each other.
#[derive(Debug)]
struct Words {
    /// The shim's own pidfd, by number: readable once the shim is dead.
    shim: RawFd,
    /// Whether the namespace ends once it has no process left to reap.
    may_end: AtomicBool,
    /// Orphans reaped inside.
    reaped: AtomicU32,
}

/// The namespace of one worker, not yet or no longer populated by it.
#[derive(Debug)]
pub(crate) struct Namespace {
    init: Child,
    words: &'static Words,
}

impl Namespace {
    /// Makes it. The next process forked is in it.
    pub(crate) fn open(with_user_namespace: bool, shim: &OwnedFd) -> Result<Self, Errno> {
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        tether_sys::unshare(true, with_user_namespace, false)?;
        if with_user_namespace {
            // Outside and inside have the same numbers; no other user exists inside.
            let map = |id: u32| format!("{id} {id} 1");
            tell(b"/proc/self/setgroups", b"deny")?;
            tell(b"/proc/self/uid_map", map(uid.as_raw()).as_bytes())?;
            tell(b"/proc/self/gid_map", map(gid.as_raw()).as_bytes())?;
        }
        // For as long as either lives.
        let words: &'static Words = Box::leak(Box::new(Words {
            shim: shim.as_raw_fd(),
            may_end: AtomicBool::new(false),
            reaped: AtomicU32::new(0),
        }));
        let init = tether_sys::start_init(words, be_init)?;
        Ok(Self { init, words })
    }

    /// Kills everything in it.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.init.pidfd, Signal::KILL);
    }

    /// Lets it end by itself once nothing is left in it.
    pub(crate) fn let_end(&self) {
        self.words.may_end.store(true, Ordering::SeqCst);
        // Wakes it, should nothing end any more.
        let _ = pidfd_send_signal(&self.init.pidfd, Signal::CHILD);
    }

    /// Whether this is its first process.
    pub(crate) fn is_init(&self, pid: rustix::process::Pid) -> bool {
        self.init.pid == pid
    }

    /// Orphans that were reaped inside.
    pub(crate) fn reaped(&self) -> u32 {
        self.words.reaped.load(Ordering::Relaxed)
    }
}

/// The life of the first process. It runs on a small stack beside the shim, in the shim's memory: system
/// calls and the words are all it may use.
fn be_init(words: &'static Words) {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if tether_sys::has_ended(words.shim) {
        return;
    }
    let _ = rustix::thread::set_name(c"tether-init");
    tether_sys::close_from(0);
    loop {
        tether_sys::wait_for_child_signal();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {
                    words.reaped.fetch_add(1, Ordering::Relaxed);
                }
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(_) if words.may_end.load(Ordering::SeqCst) => return,
                Err(_) => break,
            }
        }
    }
}

/// A descriptor of this very process, for its children to see it end.
pub(crate) fn own_pidfd() -> Result<OwnedFd, Errno> {
    pidfd_open(getpid(), PidfdFlags::empty())
}

/// In the worker: a `/proc` that shows the namespace, so that a process id means the same there and in
/// the worker's own calls.
pub(crate) fn mount_proc() -> Result<(), Errno> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

    tether_sys::unshare(false, false, true)?;
    let away = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", away)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None::<&core::ffi::CStr>)
}
