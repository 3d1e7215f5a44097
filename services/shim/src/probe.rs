//! What the kernel allows here, tried out by a canary: a child that makes each thing and sees it work.
//!
//! Asking for versions or rights would not do. A cgroup whose parent was once killed as one kills
//! whatever is born in it; containers refuse calls the kernel has; a namespace may need another one.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, WaitStatus, getpid, pidfd_send_signal, waitpid};
use tether_shim_protocol::zygote::Means;
use tether_sys::{Birth, Child, Guard};

use crate::cgroup::Cgroup;
use crate::files::join;
use crate::namespace;

/// Nothing here takes longer on a machine that is to run workers.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// Tries everything. What cannot be tried is not there.
pub(crate) fn probe(cgroup: Option<Vec<u8>>) -> Means {
    let timer = in_child(|| {
        let guard = Guard::new()?;
        guard.set(Some(1))?;
        forever()
    });
    let plain = in_child(|| try_namespace(false));
    let nested = if is_exit(plain, 0) {
        None
    } else {
        in_child(|| try_namespace(true))
    };
    let user_namespace = is_exit(nested, 0);
    let namespace = is_exit(plain, 0) || user_namespace;
    let private_proc = namespace && is_exit(in_child(|| try_proc(user_namespace)), 0);
    let (cgroup, born_in_cgroup) = cgroup.map_or((false, false), |parent| try_cgroup(&parent));
    Means {
        namespace,
        user_namespace,
        private_proc,
        cgroup,
        born_in_cgroup,
        timer: is_killed(timer),
    }
}

/// Forks a child that does this and exits with 0, or 1 on an error; tells how it ended.
fn in_child(act: impl FnOnce() -> Result<(), Errno>) -> Option<WaitStatus> {
    match tether_sys::fork(&Birth::default()).ok()? {
        None => tether_sys::exit_child(i32::from(act().is_err())),
        Some(child) => end_of(&child),
    }
}

/// Waits for a child to end; one that does not is killed and counts as nothing.
fn end_of(child: &Child) -> Option<WaitStatus> {
    let ended = poll(
        &mut [PollFd::new(&child.pidfd, PollFlags::IN)],
        Some(&PATIENCE),
    );
    let in_time = matches!(ended, Ok(1..));
    if !in_time {
        let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
    }
    let (_, status) = waitpid(Some(child.pid), WaitOptions::empty()).ok()??;
    in_time.then_some(status)
}

fn is_exit(status: Option<WaitStatus>, code: i32) -> bool {
    status.and_then(WaitStatus::exit_status) == Some(code)
}

fn is_killed(status: Option<WaitStatus>) -> bool {
    status.and_then(WaitStatus::terminating_signal) == Some(Signal::KILL.as_raw())
}

fn forever() -> Result<(), Errno> {
    loop {
        tether_sys::wait_for_child_signal();
    }
}

/// What was tried did something else than it should.
const BROKEN: Errno = Errno::OPNOTSUPP;

/// Makes a namespace with a fellow of its first process in it, and kills the first.
fn try_namespace(with_user_namespace: bool) -> Result<(), Errno> {
    let own = namespace::own_pidfd()?;
    let made = namespace::Namespace::open(with_user_namespace, &own)?;
    let Some(fellow) = tether_sys::fork(&Birth::default())? else {
        let _ = forever();
        tether_sys::exit_child(0);
    };
    made.kill();
    if is_killed(end_of(&fellow)) {
        Ok(())
    } else {
        Err(BROKEN)
    }
}

/// Mounts `/proc` in a namespace and finds itself in it.
fn try_proc(with_user_namespace: bool) -> Result<(), Errno> {
    let own = namespace::own_pidfd()?;
    let made = namespace::Namespace::open(with_user_namespace, &own)?;
    let Some(fellow) = tether_sys::fork(&Birth::default())? else {
        let found = namespace::mount_proc().is_ok()
            && rustix::fs::readlink("/proc/self", Vec::new()).is_ok_and(|own| {
                own.to_bytes() == getpid().as_raw_nonzero().to_string().as_bytes()
            });
        tether_sys::exit_child(i32::from(!found));
    };
    let found = is_exit(end_of(&fellow), 0);
    made.kill();
    if found { Ok(()) } else { Err(BROKEN) }
}

/// Whether a leaf can be used, and whether children can be born in it.
fn try_cgroup(parent: &[u8]) -> (bool, bool) {
    let leaf = format!("canary.{}", getpid().as_raw_nonzero());
    let leaf = join(parent, leaf.as_bytes());
    let born = try_leaf(&leaf, true).is_ok();
    let usable = born || try_leaf(&leaf, false).is_ok();
    (usable, born)
}

/// A canary lives in the leaf until the leaf is killed.
fn try_leaf(path: &[u8], born: bool) -> Result<(), Errno> {
    let leaf = Cgroup::make(path.to_vec())?;
    let result = try_members(&leaf, born);
    leaf.kill();
    leaf.remove();
    result
}

fn try_members(leaf: &Cgroup, born: bool) -> Result<(), Errno> {
    let (ready, done) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let birth = Birth {
        cgroup: born.then(|| leaf.directory()),
    };
    let Some(canary) = tether_sys::fork(&birth)? else {
        if born || leaf.enter().is_ok() {
            let _ = rustix::io::write(&done, b"!");
            let _ = forever();
        }
        tether_sys::exit_child(1);
    };
    drop(done);
    let alive = hears(&ready) && leaf.is_populated();
    leaf.kill();
    let killed = is_killed(end_of(&canary));
    if alive && killed && !leaf.is_populated() {
        Ok(())
    } else {
        let _ = pidfd_send_signal(&canary.pidfd, Signal::KILL);
        Err(BROKEN)
    }
}

/// Whether a child came as far as to say so.
fn hears(pipe: &OwnedFd) -> bool {
    let mut byte = [0];
    let ready = poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&PATIENCE));
    matches!(ready, Ok(1..)) && rustix::io::read(pipe, &mut byte) == Ok(1)
}
