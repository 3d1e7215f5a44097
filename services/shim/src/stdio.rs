//! The worker's standard input, output and error: pipes, or a terminal of its own.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SeekFrom, memfd_create, seek};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use tether_shim_protocol::Input;

use crate::files::{self, write_all};

/// The child's ends.
#[derive(Debug)]
pub(crate) struct Stdio {
    input: OwnedFd,
    output: OwnedFd,
    /// None where all three are one terminal.
    error: Option<OwnedFd>,
}

/// The shim's ends.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) output: OwnedFd,
    pub(crate) error: Option<OwnedFd>,
    /// Open for as long as standard input is not to end.
    pub(crate) input: Option<OwnedFd>,
}

impl Stdio {
    /// Opens both ends of all of them.
    pub(crate) fn open(input: &Input) -> Result<(Ours, Self), Errno> {
        if input.pty {
            return terminal(&input.data);
        }
        let (stdin, held) = standard_input(input)?;
        let (output, output_end) = pipe()?;
        let (error, error_end) = pipe()?;
        let ours = Ours {
            output,
            error: Some(error),
            input: held,
        };
        let theirs = Self {
            input: stdin,
            output: output_end,
            error: Some(error_end),
        };
        Ok((ours, theirs))
    }

    /// Standard input, output and error, for one who puts them there itself.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.input.as_fd(), self.output.as_fd(), self.error()]
    }

    /// Standard error.
    pub(crate) fn error(&self) -> BorrowedFd<'_> {
        self.error.as_ref().unwrap_or(&self.output).as_fd()
    }

    /// In the child: puts them where a program looks for them.
    pub(crate) fn take(&self) -> Result<(), Errno> {
        rustix::stdio::dup2_stdin(&self.input)?;
        rustix::stdio::dup2_stdout(&self.output)?;
        rustix::stdio::dup2_stderr(self.error.as_ref().unwrap_or(&self.output))?;
        if self.error.is_none() {
            // It leads the session it began, and this is its terminal from here on.
            rustix::process::ioctl_tiocsctty(&self.input)?;
        }
        Ok(())
    }
}

/// What the child reads, and what holds its end off.
fn standard_input(input: &Input) -> Result<(OwnedFd, Option<OwnedFd>), Errno> {
    if input.hold_open {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // All of it fits before anybody reads: what does not is refused before it comes here.
        fcntl_setpipe_size(&write, input.data.len().max(4096))?;
        rustix::io::ioctl_fionbio(&write, true)?;
        write_all(&write, &input.data)?;
        return Ok((read, Some(write)));
    }
    if input.data.is_empty() {
        let null = files::open(b"/dev/null", OFlags::RDONLY, Mode::empty())?;
        return Ok((null, None));
    }
    let file = memfd_create("stdin", MemfdFlags::CLOEXEC)?;
    write_all(&file, &input.data)?;
    seek(&file, SeekFrom::Start(0))?;
    Ok((file, None))
}

/// A terminal for all three; what was to be read is typed into it.
fn terminal(typed: &[u8]) -> Result<(Ours, Stdio), Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    write_all(&master, typed)?;
    let ours = Ours {
        output: master,
        error: None,
        input: None,
    };
    let theirs = Stdio {
        input: rustix::io::fcntl_dupfd_cloexec(&slave, 3)?,
        output: slave,
        error: None,
    };
    Ok((ours, theirs))
}

/// A pipe whose reading end never makes the shim wait.
fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(read.as_fd(), OFlags::NONBLOCK)?;
    Ok((read, write))
}
