//! The record of a death on disk, for an agent that was not there when it happened.

use alloc::boxed::Box;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::WaitStatus;
use tether_shim_protocol::{DEATH_FILE, Dead, Message, encode};

use crate::files;

/// How a main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) core: bool,
}

impl Ending {
    /// Reads a status as `wait` tells it.
    pub(crate) fn from_raw(status: i32) -> Self {
        let signaled = libc::WIFSIGNALED(status);
        Self {
            code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: signaled.then(|| libc::WTERMSIG(status)),
            // The flag beside the signal.
            core: signaled && status & 0x80 != 0,
        }
    }
}

impl From<WaitStatus> for Ending {
    fn from(status: WaitStatus) -> Self {
        Self::from_raw(status.as_raw())
    }
}

impl From<tether_sys::Exit> for Ending {
    fn from(exit: tether_sys::Exit) -> Self {
        let (code, signal) = match exit {
            tether_sys::Exit::Code(code) => (Some(code), None),
            tether_sys::Exit::Signal(signal) => (None, Some(signal)),
        };
        Self {
            code,
            signal,
            core: false,
        }
    }
}

/// Writes the record to the working directory, whole or not at all.
pub(crate) fn record(dead: &Dead) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let file = files::open(UNFINISHED.as_bytes(), flags, Mode::from_raw_mode(0o644))?;
    // Not synchronised: what the machine itself takes down is no news to the next agent.
    files::write_all(&file, &encode(&Message::Dead(Box::new(dead.clone()))))?;
    rustix::fs::rename(UNFINISHED, DEATH_FILE)
}

/// The record while it is being written.
const UNFINISHED: &str = "death.new";

/// Removes the record once an agent has its own.
pub(crate) fn forget() {
    let _ = files::remove(DEATH_FILE.as_bytes());
}
