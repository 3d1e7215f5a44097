//! All that belongs to one BEAM, pinned before it is hurt, and when each of it was gone.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tether_clock::{BootClock, Clock as _};
use tether_kit::process::{parent, start_ticks};
use tether_tests::mentioning;

use crate::{
    lab::Beam,
    lineage::{Pinned, descendants},
};

/// What a worker's shim is called, and the first process of its namespace.
const SHIM: [&str; 2] = ["tether-shim", "tether-init"];

/// A process of the emulator's own, which is there for as long as it is.
const OF_EMULATOR: &str = "erl_child_setup";

/// In which Linux tells programs when a process began, whatever its own clock ticks in (USER_HZ, proc(5)).
const TICK: Duration = Duration::from_millis(10);

/// The BEAM and what ends with it.
#[derive(Debug)]
pub(crate) struct Kin {
    beam: Pinned,
    others: Vec<Member>,
    mark: std::path::PathBuf,
}

#[derive(Debug)]
struct Member {
    process: Pinned,
    name: String,
    is_workers: bool,
}

/// When, counted from the blow, the last of its workers' processes and the last of all was gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gone {
    pub(crate) workers: Duration,
    pub(crate) all: Duration,
}

impl Kin {
    /// Pins the BEAM, all that descends from it, its workers wherever they run, what these have shed, and their shims.
    pub(crate) fn of(beam: &Beam, workers: u32) -> anyhow::Result<Self> {
        let mark = beam.dir.join("mark");
        let marked: BTreeSet<u32> = mentioning(&mark)
            .iter()
            .map(|process| process.pid)
            .collect();
        let workers_own: BTreeSet<u32> = marked
            .iter()
            .copied()
            .filter(|&pid| name(pid).starts_with("python"))
            .collect();
        let shims: BTreeSet<u32> = workers_own
            .iter()
            .flat_map(|&pid| shims_above(pid))
            .collect();
        let below = descendants(beam.pid()).into_iter().map(|kin| kin.pid);
        let mut all: BTreeSet<u32> = below.chain(marked).chain(shims.iter().copied()).collect();
        all.remove(&beam.pid());
        let members = all.into_iter().map(|pid| {
            let name = name(pid);
            let process = Pinned::new(pid).with_context(|| format!("{name} has ended"))?;
            let is_workers = workers_own.contains(&pid) || shims.contains(&pid);
            Ok(Member {
                process,
                name,
                is_workers,
            })
        });
        let kin = Self {
            beam: Pinned::new(beam.pid())?,
            others: members.collect::<anyhow::Result<_>>()?,
            mark,
        };
        let names = || kin.others.iter().map(|member| member.name.as_str());
        let wanted = usize::try_from(workers)?;
        // A worker and its daemon, each with a shim above it; and the program of the port.
        ensure!(
            workers_own.len() >= 2 * wanted
                && shims.len() >= wanted
                && names().any(|name| name == "tether"),
            "not all of it is there: {:?}",
            names().collect::<Vec<_>>()
        );
        Ok(kin)
    }

    /// Kills the BEAM, and sees when everything was gone. Fails where something is left after `within`, or was
    /// found beside what was pinned.
    pub(crate) fn kill(&self, within: Duration) -> anyhow::Result<Gone> {
        self.kill_with(&[], within)
    }

    /// The same, with others in the same instant.
    pub(crate) fn kill_with(&self, others: &[Pinned], within: Duration) -> anyhow::Result<Gone> {
        let start = Instant::now();
        for other in others {
            ensure!(other.kill(), "process {} has ended", other.pid);
        }
        ensure!(self.beam.kill(), "the BEAM has ended");
        self.watch_all(start, within)
    }

    /// The end of all of it, and that nothing is found beside it.
    pub(crate) fn watch_all(&self, start: Instant, within: Duration) -> anyhow::Result<Gone> {
        let gone = self.watch(start, within, |_| true)?;
        self.no_orphans(|_| true)?;
        Ok(gone)
    }

    /// The same, where the BEAM itself goes on.
    pub(crate) fn watch_others(&self, start: Instant, within: Duration) -> anyhow::Result<Gone> {
        let is_others = |name: &str| name != OF_EMULATOR;
        let gone = self.watch(start, within, |member| is_others(&member.name))?;
        self.no_orphans(|pid| pid != self.beam.pid && is_others(&name(pid)))?;
        ensure!(self.beam.lives(), "the BEAM has ended");
        Ok(gone)
    }

    fn no_orphans(&self, which: impl Fn(u32) -> bool) -> anyhow::Result<()> {
        let mut orphans = mentioning(&self.mark);
        orphans.retain(|process| which(process.pid));
        ensure!(
            orphans.is_empty(),
            "orphans: {}",
            orphans
                .iter()
                .map(|orphan| format!("{}: {}", orphan.command, life(orphan.pid)))
                .collect::<Vec<_>>()
                .join("; ")
        );
        Ok(())
    }

    /// The program of its port.
    pub(crate) fn program(&self) -> anyhow::Result<Pinned> {
        let mut others = self.others.iter();
        let program = others.find(|member| member.name == "tether");
        Ok(Pinned::new(program.context("no port")?.process.pid)?)
    }

    /// Stops the BEAM, and sees when its workers, with all they have shed, were gone.
    pub(crate) fn stop(&self, within: Duration) -> anyhow::Result<Gone> {
        let start = Instant::now();
        ensure!(
            self.beam.signal(rustix::process::Signal::STOP),
            "the BEAM has ended"
        );
        self.watch(start, within, |member| member.is_workers)
    }

    /// Whether the BEAM still lives.
    pub(crate) fn beam_lives(&self) -> bool {
        self.beam.lives()
    }

    /// Whether all of it still lives.
    pub(crate) fn lives(&self) -> bool {
        self.beam.lives() && self.others.iter().all(|member| member.process.lives())
    }

    /// The end of a worker's processes, seen after the BEAM's.
    pub(crate) fn watch_workers(&self, start: Instant, within: Duration) -> anyhow::Result<Gone> {
        self.watch(start, within, |member| member.is_workers)
    }

    fn watch(
        &self,
        start: Instant,
        within: Duration,
        which: impl Fn(&Member) -> bool,
    ) -> anyhow::Result<Gone> {
        let mut left: Vec<&Member> = self.others.iter().filter(|member| which(member)).collect();
        let mut gone = Gone {
            workers: Duration::ZERO,
            all: Duration::ZERO,
        };
        while !left.is_empty() {
            let rest = within.saturating_sub(start.elapsed());
            ensure!(
                !rest.is_zero(),
                "left after {within:?}: {:?}",
                left.iter()
                    .map(|member| (&member.name, member.process.pid))
                    .collect::<Vec<_>>()
            );
            let fds = left
                .iter()
                .map(|member| member.process.fd())
                .collect::<Result<Vec<_>, _>>()?;
            let mut polled: Vec<_> = fds
                .iter()
                .map(|fd| PollFd::new(fd, PollFlags::IN))
                .collect();
            let rest = Timespec {
                tv_sec: i64::try_from(rest.as_secs())?,
                tv_nsec: i64::from(rest.subsec_nanos()),
            };
            match poll(&mut polled, Some(&rest)) {
                Err(Errno::INTR) => continue,
                polled => polled?,
            };
            let now = start.elapsed();
            let ended: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            for (member, _) in left.iter().zip(&ended).filter(|(_, ended)| **ended) {
                gone.all = now;
                if member.is_workers {
                    gone.workers = now;
                }
            }
            let mut ended = ended.into_iter();
            left.retain(|_| !ended.next().unwrap_or(false));
        }
        Ok(gone)
    }
}

/// The shim of a process, and what is between them.
fn shims_above(pid: u32) -> Vec<u32> {
    let above = std::iter::successors(parent(pid), |&pid| parent(pid));
    above
        .take_while(|&pid| SHIM.contains(&name(pid).as_str()))
        .collect()
}

/// Whose child a process is, and for how long it has run.
fn life(pid: u32) -> String {
    let Some(began) = start_ticks(pid).and_then(|ticks| u32::try_from(ticks).ok()) else {
        return format!("process {pid}, gone now");
    };
    let above = parent(pid).unwrap_or_default();
    let up = Duration::from_nanos(BootClock.now().as_nanos());
    format!(
        "process {pid}, below {above} `{}`, for {:?}",
        name(above),
        up.saturating_sub(TICK * began)
    )
}

fn name(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}
