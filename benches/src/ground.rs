//! The ground a bench of processes stands on: a directory in memory, a cgroup of its own, and the certainty
//! that all it starts is gone when it is.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Signal, getpid, set_child_subreaper};

use crate::processes::{Known, Pinned, living, reap_orphans};

/// The static worker, carried along so that it can lie beside what it is measured with.
static WORKER: &[u8] = include_bytes!(env!("TETHER_BENCH_WORKER"));

/// Name of the worker's program, by which its processes are told from their supervisors.
pub const WORKER_NAME: &str = "bench-worker";

/// The same program where it is process 1 of a peer's PID namespace.
pub const INIT_NAME: &str = "bench-init";

/// The same program where it is somebody's owner.
pub const OWNER_NAME: &str = "bench-owner";

/// Names of directories and cgroups begin like this, and end with the bench's process id.
const PREFIX: &str = "tether-bench-";

/// Longest time for what was killed to be gone.
const GONE: Duration = Duration::from_secs(10);

/// A directory, a cgroup, and all that is started there.
#[derive(Debug)]
pub struct Ground {
    dir: PathBuf,
    cgroups: Vec<PathBuf>,
    /// Children for which somebody waits.
    own: Mutex<Known>,
}

impl Ground {
    /// Makes it, and removes what a killed bench left.
    ///
    /// # Errors
    /// When there is no directory in memory to write to.
    pub fn new() -> anyhow::Result<Self> {
        anyhow::ensure!(
            !WORKER.is_empty(),
            "the static worker is written for x86-64 Linux only"
        );
        let memory = ["/dev/shm", "/run"].into_iter().map(Path::new);
        let memory = memory.filter(|dir| dir.is_dir()).collect::<Vec<_>>();
        let cgroups = own_cgroups();
        for parent in memory
            .iter()
            .copied()
            .chain(cgroups.iter().map(PathBuf::as_path))
        {
            sweep(parent);
        }
        // Whatever loses its parent becomes a child of the bench: nothing it started gets out of sight.
        set_child_subreaper(Some(getpid())).context("cannot become the parent of orphans")?;
        let name = format!("{PREFIX}{}", std::process::id());
        let parent = memory
            .first()
            .context("there is neither `/dev/shm` nor `/run`")?;
        let ground = Self {
            dir: parent.join(&name),
            cgroups: cgroups
                .iter()
                .filter_map(|parent| join(&parent.join(&name)).ok())
                .collect(),
            own: Mutex::default(),
        };
        fs::create_dir(&ground.dir)
            .with_context(|| format!("cannot make `{}`", ground.dir.display()))?;
        for program in [WORKER_NAME, INIT_NAME, OWNER_NAME] {
            let path = ground.dir.join(program);
            fs::write(&path, WORKER)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(ground)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A cgroup of version 2 to make others in, where there is one.
    pub fn unified(&self) -> Option<&Path> {
        let mut cgroups = self.cgroups.iter().map(PathBuf::as_path);
        cgroups.find(|path| path.join("cgroup.events").exists())
    }

    /// A fresh directory below it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn fresh(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.dir.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&path)?,
        }
        Ok(path)
    }

    /// Starts a program for which the caller waits.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, command: &mut std::process::Command) -> io::Result<std::process::Child> {
        // Held until the child is in the list, else it could be reaped in between.
        let mut own = self
            .own
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let child = command.spawn()?;
        // It is there until somebody waits for it, dead or alive, so it has a start time.
        let started = tether_kit::process::start_ticks(child.id()).unwrap_or_default();
        own.insert((child.id(), started));
        Ok(child)
    }

    /// Kills all that descends from the bench and waits for its end.
    ///
    /// # Errors
    /// When something cannot be killed.
    pub fn clear(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + GONE;
        loop {
            let left = living(std::process::id());
            if left.is_empty() {
                break;
            }
            let pinned = Pinned::new(&left);
            pinned.signal(Signal::KILL);
            anyhow::ensure!(Instant::now() < deadline, "these do not end: {left:?}");
            pinned.survivors(Duration::from_millis(500));
            self.reap();
        }
        self.reap();
        for cgroup in &self.cgroups {
            remove_below(cgroup);
        }
        Ok(())
    }

    /// Reaps the dead that were left to the bench.
    pub fn reap(&self) {
        let own = self
            .own
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        reap_orphans(&own);
    }

    /// Leaves nothing behind.
    pub fn remove(&self) {
        let _ = self.clear();
        for cgroup in &self.cgroups {
            if let Some(parent) = cgroup.parent() {
                let _ = fs::write(parent.join("cgroup.procs"), std::process::id().to_string());
            }
            let _ = fs::remove_dir(cgroup);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Where this process is in the hierarchies that systemd and the agent use: the unified one, and the one
/// that systemd names after itself where limits are still on version 1. In that of the processor as well: in its
/// root Linux gives each session a share of its own, so that a worker with a session, as an agent starts it, would
/// count for as much as all callers together.
fn own_cgroups() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let has = |list: &str, one: &str| list.split(',').any(|it| it == one);
    let mounted = |kind: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let fits =
                fields.get(2) == Some(&kind) && (option.is_empty() || has(fields.get(3)?, option));
            fits.then(|| PathBuf::from(fields[1]))
        })
    };
    [
        ("cgroup2", ""),
        ("cgroup", "name=systemd"),
        ("cgroup", "cpu"),
    ]
    .into_iter()
    .filter_map(|(kind, option)| {
        let mount = mounted(kind, option)?;
        // Number, controllers, path; those of the unified one are not listed.
        let own = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
            has(controllers, option).then_some(path)
        })?;
        Some(mount.join(own))
    })
    .collect()
}

/// Makes a cgroup and moves this process into it.
fn join(cgroup: &Path) -> io::Result<PathBuf> {
    fs::create_dir(cgroup)?;
    let moved = fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string());
    moved.inspect_err(|_| drop(fs::remove_dir(cgroup)))?;
    Ok(cgroup.to_owned())
}

/// Removes what a bench that was killed left in this directory or cgroup.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // A cgroup's files cannot be removed, and a directory in memory has no such file.
            if entry.path().join("cgroup.procs").exists() {
                let _ = fs::write(entry.path().join("cgroup.kill"), "1");
                let deadline = Instant::now() + GONE;
                while entry.path().exists() && Instant::now() < deadline {
                    remove_below(&entry.path());
                    let _ = fs::remove_dir(entry.path());
                    std::thread::yield_now();
                }
            } else {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn remove_below(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}
