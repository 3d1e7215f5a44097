//! Peers of the agent: other supervisors, out of their Debian packages, each in a namespace of its own that
//! ends with it.

mod elixir;
mod room;
mod scanned;
mod supervisord;
mod systemd;

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    ground::{Ground, WORKER_NAME},
    processes::{Pinned, Process, living},
};

pub use elixir::Elixir;
pub use scanned::{RUNIT, S6, Scanned};
pub use supervisord::Supervisord;
pub use systemd::Systemd;

/// Longest time for anything a peer is asked for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a static worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Ends at once.
    Exit,
    /// Listens and stays.
    Ready,
    /// Ignores SIGTERM and leaves a daemon behind that does so too.
    Stubborn,
}

impl Mode {
    /// As the worker is told.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Ready => "ready",
            Self::Stubborn => "stubborn",
        }
    }
}

/// A short-lived program whose starts are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Short {
    /// The static worker.
    Static,
    /// `/bin/true`.
    True,
}

impl Short {
    /// Its command line where the ground is seen as `/bench`.
    pub const fn command(self) -> &'static str {
        match self {
            Self::Static => "/bench/bench-worker exit",
            Self::True => "/bin/true",
        }
    }
}

/// What is needed to run any of them.
#[derive(Debug, Clone, Copy)]
pub struct Venue<'a> {
    /// Where the bench writes; peers see it as `/bench`.
    pub ground: &'a Ground,
    /// A Debian root with the peers' packages.
    pub root: &'a Path,
}

/// A rate, and the processor time it took.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Spawns with their ends per second.
    pub per_second: f64,
    /// Processor seconds of the supervisor, its helpers and the workers.
    pub cpu_seconds: f64,
}

/// A supervisor that can be measured.
pub trait Peer {
    /// Its name in the evidence.
    fn name(&self) -> &'static str;

    /// Starts it with this many services, and comes back when all of them run.
    ///
    /// # Errors
    /// When it does not get there.
    fn start(&self, venue: Venue<'_>, mode: Mode, count: usize) -> anyhow::Result<Stage>;

    /// Spawns with their ends per second, with so many under way at a time.
    ///
    /// # Errors
    /// When it cannot do that, with the reason.
    fn rate(
        &self,
        venue: Venue<'_>,
        short: Short,
        in_flight: usize,
        time: Duration,
    ) -> anyhow::Result<Rate>;

    /// Whether it starts a dead worker again.
    fn restarts(&self) -> bool {
        true
    }
}

/// A peer at work.
#[derive(Debug)]
pub struct Stage {
    room: room::Room,
    sockets: PathBuf,
}

impl Stage {
    fn new(room: room::Room, ground: &Ground) -> Self {
        Self {
            room,
            sockets: ground.dir().join("sockets"),
        }
    }

    /// Workers' processes, and what they daemonised.
    pub fn workers(&self) -> Vec<Process> {
        let mut found = living(self.room.pid());
        found.retain(|process| process.name == WORKER_NAME);
        found
    }

    /// The supervisor and its helpers.
    pub fn supervisors(&self) -> Vec<Process> {
        let mut found = living(self.room.pid());
        found.retain(|process| process.name != WORKER_NAME && !self.room.is_frame(process));
        found
    }

    /// Kills the worker of the first service and tells how many milliseconds later its successor accepts.
    ///
    /// # Errors
    /// When it never does.
    pub fn replacement(&self) -> anyhow::Result<f64> {
        let socket = self.sockets.join("0");
        let worker = Pinned::new(&self.workers());
        let killed = Instant::now();
        worker.signal(rustix::process::Signal::KILL);
        // The old one is dead before the socket is asked, so whoever accepts is the new one.
        anyhow::ensure!(worker.survivors(PATIENCE) == 0, "a killed worker lives on");
        until(
            || UnixStream::connect(&socket).ok(),
            Duration::from_micros(200),
        )
        .context("nobody took the dead worker's place")?;
        Ok(killed.elapsed().as_secs_f64() * 1e3)
    }

    /// Waits until so many services run, each ready.
    fn settle(self, mode: Mode, count: usize) -> anyhow::Result<Self> {
        let processes = if mode == Mode::Stubborn {
            2 * count
        } else {
            count
        };
        let mut before = Vec::new();
        until(
            || {
                let pids: Vec<u32> = self.workers().iter().map(|process| process.pid).collect();
                let same = pids.len() == processes && pids == before;
                before = pids;
                same.then_some(())
            },
            Duration::from_millis(20),
        )
        .with_context(|| {
            format!(
                "{} workers' processes are there and not {processes}",
                before.len()
            )
        })?;
        if mode == Mode::Ready {
            for slot in 0..count {
                let socket = self.sockets.join(slot.to_string());
                until(
                    || UnixStream::connect(&socket).ok(),
                    Duration::from_millis(1),
                )
                .context("a worker does not listen")?;
            }
        }
        Ok(self)
    }
}

/// Looks until there is something, with a pause between two looks; none when it never comes.
fn until<T>(mut look: impl FnMut() -> Option<T>, pause: Duration) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(pause);
    }
}

/// A fresh folder for sockets, and one for the peer's own files.
fn folders(ground: &Ground, name: &str) -> anyhow::Result<PathBuf> {
    ground.fresh("sockets")?;
    Ok(ground.fresh(name)?)
}
