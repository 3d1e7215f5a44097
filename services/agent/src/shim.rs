//! The shim's program, carried inside the agent and run from memory.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::Stdio,
    sync::Arc,
};

use rustix::fs::{MemfdFlags, SealFlags};
use tether_types::WorkerId;
use tokio::process::{Child, Command};

static PROGRAM: &[u8] = include_bytes!(env!("TETHER_SHIM"));

/// The program in a sealed memory file: no path to protect, and nothing to clean up.
#[derive(Debug, Clone)]
pub(crate) struct ShimImage(Arc<OwnedFd>);

impl ShimImage {
    /// Puts the program into memory.
    ///
    /// # Errors
    /// When the kernel refuses memory files.
    pub(crate) fn load() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(rustix::fs::memfd_create("tether-shim", flags)?);
        file.write_all(PROGRAM)?;
        rustix::fs::fcntl_add_seals(
            &file,
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        Ok(Self(Arc::new(file.into())))
    }

    /// Starts a shim; the second value is the agent's end of its first link.
    ///
    /// # Errors
    /// When the process or the socket cannot be made.
    pub(crate) fn start(&self, worker: &WorkerId, log: File) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        // The kernel opens the path in the child, which still has the descriptor then.
        let child = Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
            .arg0("tether-shim")
            .arg(worker.to_string())
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()?;
        Ok((child, ours))
    }
}
