//! The worker's PID namespace and its first process, whose end the kernel makes the end of all in it.
//!
//! That process (`tether-init`) is made by the shim, dies with it by its parent-death signal, and does
//! nothing but reap what is orphaned inside. The worker itself is the shim's own child, born into the same
//! namespace: so the shim waits for it as for any child. It shares the shim's memory instead of copying
//! it, and touches none of it but the three words below.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::process::{
    PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, wait,
};
use tether_sys::Child;

/// The shim's own pidfd, by number: readable once the shim is dead.
static SHIM: AtomicI32 = AtomicI32::new(-1);

/// Whether the namespace ends once it has no process left to reap.
static MAY_END: AtomicBool = AtomicBool::new(false);

/// Orphans reaped inside.
static REAPED: AtomicU32 = AtomicU32::new(0);

/// The namespace of one worker, not yet or no longer populated by it.
#[derive(Debug)]
pub(crate) struct Namespace {
    init: Child,
}

impl Namespace {
    /// Makes it. The next process forked is in it.
    pub(crate) fn open(with_user_namespace: bool, shim: &OwnedFd) -> io::Result<Self> {
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        tether_sys::unshare(true, with_user_namespace, false)?;
        if with_user_namespace {
            // Outside and inside have the same numbers; no other user exists inside.
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{0} {0} 1", uid.as_raw()))?;
            fs::write("/proc/self/gid_map", format!("{0} {0} 1", gid.as_raw()))?;
        }
        SHIM.store(shim.as_raw_fd(), Ordering::Relaxed);
        let init = tether_sys::start_init(be_init)?;
        Ok(Self { init })
    }

    /// Kills everything in it.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.init.pidfd, Signal::KILL);
    }

    /// Lets it end by itself once nothing is left in it.
    pub(crate) fn let_end(&self) {
        MAY_END.store(true, Ordering::SeqCst);
        // Wakes it, should nothing end any more.
        let _ = pidfd_send_signal(&self.init.pidfd, Signal::CHILD);
    }

    /// Whether this is its first process.
    pub(crate) fn is_init(&self, pid: rustix::process::Pid) -> bool {
        self.init.pid == pid
    }

    /// Orphans that were reaped inside.
    pub(crate) fn reaped(&self) -> u32 {
        REAPED.load(Ordering::Relaxed)
    }
}

/// The life of the first process. It runs on a small stack beside the shim, in the shim's memory: system
/// calls and the three words above are all it may use.
extern "C" fn be_init(_: *mut libc::c_void) -> libc::c_int {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if tether_sys::has_ended(SHIM.load(Ordering::Relaxed)) {
        return 0;
    }
    let _ = rustix::thread::set_name(c"tether-init");
    tether_sys::close_from(0);
    loop {
        tether_sys::wait_for_child_signal();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {
                    REAPED.fetch_add(1, Ordering::Relaxed);
                }
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(_) if MAY_END.load(Ordering::SeqCst) => return 0,
                Err(_) => break,
            }
        }
    }
}

/// A descriptor of this very process, for its children to see it end.
pub(crate) fn own_pidfd() -> io::Result<OwnedFd> {
    Ok(pidfd_open(getpid(), PidfdFlags::empty())?)
}

/// In the worker: a `/proc` that shows the namespace, so that a process id means the same there and in
/// the worker's own calls.
pub(crate) fn mount_proc() -> io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

    tether_sys::unshare(false, false, true)?;
    let away = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", away)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None::<&std::ffi::CStr>)?;
    Ok(())
}
