//! The two pipes to the BEAM. They are taken away from standard input and output, so that nothing else writes into
//! them, and no worker inherits them: they end when this process does.

use std::{io, os::fd::OwnedFd};

use anyhow::Context as _;
use rustix::{
    io::fcntl_dupfd_cloexec,
    stdio::{dup2_stdin, dup2_stdout, stderr, stdin, stdout},
};
use tokio::net::unix::pipe::{Receiver, Sender};

/// Reading and writing ends.
pub(crate) fn take() -> anyhow::Result<(Receiver, Sender)> {
    let (reads, writes) = apart().context("cannot use standard input and output")?;
    let no_pipe = "standard input and output are no pipes: this command is for a BEAM, which opens it as a port (`{:packet, 4}`)";
    let reads = Receiver::from_owned_fd(reads).context(no_pipe)?;
    let writes = Sender::from_owned_fd(writes).context(no_pipe)?;
    Ok((reads, writes))
}

fn apart() -> io::Result<(OwnedFd, OwnedFd)> {
    // Above those that have a meaning by their number.
    let reads = fcntl_dupfd_cloexec(stdin(), 3)?;
    let writes = fcntl_dupfd_cloexec(stdout(), 3)?;
    let nothing = std::fs::File::open("/dev/null")?;
    dup2_stdin(nothing)?;
    dup2_stdout(stderr())?;
    Ok((reads, writes))
}
