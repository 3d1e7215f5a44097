//! Which processor runs what: what is measured has one to itself, and all that loads it shares another.

use std::{
    fs, io,
    process::{Child, Command},
};

use anyhow::Context as _;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use crate::{ground::Ground, processes::Process};

/// The processor for what is measured, while this process is on another.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    measured: usize,
}

impl Cores {
    /// The first two that this process may use. It stays on the second one from here on, and so does all it starts
    /// elsewhere than through [`Cores::start`]; call it before there is a second thread.
    ///
    /// # Errors
    /// Where there are fewer than two.
    pub fn divide() -> anyhow::Result<Self> {
        let usable = sched_getaffinity(None).context("cannot tell processors apart")?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|core| usable.is_set(*core));
        let (Some(measured), Some(load)) = (usable.next(), usable.next()) else {
            anyhow::bail!("one processor for what is measured and one for its load are needed");
        };
        stay(load)?;
        Ok(Self { measured })
    }

    /// Starts a program on the measured processor; all its threads and children stay there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(self, ground: &Ground, command: &mut Command) -> io::Result<Child> {
        // A child stays where the thread does that started it.
        std::thread::scope(|scope| {
            let start = || {
                stay(self.measured)?;
                ground.start(command)
            };
            let started = scope.spawn(start).join();
            started.unwrap_or_else(|_| Err(io::Error::other("the thread that starts it broke")))
        })
    }

    /// Makes sure that every thread of these processes is on the measured processor and no other.
    ///
    /// # Errors
    /// When one is not.
    pub fn check(self, processes: &[Process]) -> anyhow::Result<()> {
        let only = format!("Cpus_allowed_list:\t{}", self.measured);
        for process in processes {
            let tasks = fs::read_dir(format!("/proc/{}/task", process.pid))?;
            for task in tasks.flatten() {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                let elsewhere = !status.is_empty() && !status.lines().any(|line| line == only);
                anyhow::ensure!(!elsewhere, "`{}` left its processor", process.name);
            }
        }
        Ok(())
    }
}

fn stay(core: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(core);
    Ok(sched_setaffinity(None, &only)?)
}

/// Lets this process, and those it starts, have as many open files as may be.
///
/// # Errors
/// When the system refuses.
pub fn open_many_files() -> io::Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: most,
        maximum: most,
    };
    Ok(setrlimit(Resource::Nofile, all)?)
}
