//! Where a peer runs: its Debian root, in a mount and PID namespace that ends when the bench lets go of it.

use std::{
    io::Read as _,
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use rustix::process::Signal;

use super::Venue;
use crate::{
    ground::{Ground, INIT_NAME},
    processes::{Pinned, Process, living},
};

/// Programs that make up the room itself.
const FRAME: &[&str] = &["unshare", "systemd-nspawn", INIT_NAME];

/// Mounts what a program expects and becomes the room's process 1. Nothing of it is seen outside, as it has a
/// mount namespace of its own.
const ENTER: &str = "mount --rbind /dev \"$1/dev\" && mount -t proc proc \"$1/proc\" && \
     mkdir -p \"$1/bench\" && mount --bind \"$2\" \"$1/bench\" && root=$1 && shift 2 && \
     exec chroot \"$root\" /bench/bench-init init /usr/bin/env \"$@\"";

/// A running room.
#[derive(Debug)]
pub(super) struct Room {
    child: Child,
}

impl Room {
    /// Runs a command line in a room, with pipes to its standard input and output.
    pub(super) fn open(venue: Venue<'_>, command: &[&str]) -> anyhow::Result<Self> {
        let mut unshare = Command::new("unshare");
        unshare
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child=SIGKILL",
                "sh",
                "-ec",
                ENTER,
                "sh",
            ])
            .arg(venue.root)
            .arg(venue.ground.dir())
            .args(command)
            .env_clear()
            .envs([
                ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                ("HOME", "/tmp"),
                ("LANG", "C.UTF-8"),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Self::start(venue.ground, unshare)
    }

    /// Starts a command that is a room by itself.
    pub(super) fn start(ground: &Ground, mut command: Command) -> anyhow::Result<Self> {
        let log = std::fs::File::create(ground.dir().join("peer.log"))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = ground.start(command.stderr(log));
        Ok(Self {
            child: child.with_context(|| format!("cannot run `{program}`"))?,
        })
    }

    /// The process below which everything is.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether this is the room and not the peer.
    pub(super) fn is_frame(&self, process: &Process) -> bool {
        FRAME.contains(&process.name.as_str())
    }

    /// Both ends of the pipes.
    pub(super) fn pipes(
        &mut self,
    ) -> anyhow::Result<(std::process::ChildStdin, std::process::ChildStdout)> {
        let (to, from) = (self.child.stdin.take(), self.child.stdout.take());
        to.zip(from).context("the room has no pipes")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let all = living(self.pid());
        // Its process 1 ends with it, and all others with that one.
        let inside = Pinned::new(&all);
        inside.signal(Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
        inside.survivors(super::PATIENCE);
    }
}

/// The next byte out of a pipe.
pub(super) fn byte(from: &mut impl std::io::Read) -> anyhow::Result<()> {
    let mut byte = [0];
    from.read_exact(&mut byte)
        .context("the peer ended before its time")
}

/// All that comes out of a command, once it has ended well.
pub(super) fn output(mut command: Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (mut said, mut complained) = (String::new(), String::new());
    if let Some(out) = &mut child.stdout {
        out.read_to_string(&mut said)?;
    }
    if let Some(err) = &mut child.stderr {
        err.read_to_string(&mut complained)?;
    }
    let status = child.wait()?;
    anyhow::ensure!(
        status.success(),
        "`{program}` failed ({status}): {}",
        complained.trim()
    );
    Ok(said)
}
