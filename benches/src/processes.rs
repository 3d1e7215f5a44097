//! Trees of processes: who is in one, what it costs, and ends that are seen by pidfd.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
};

/// Longer than any of the supervisors here takes to let go of what only a start needed.
const SETTLING: Duration = Duration::from_millis(1_500);

/// What still falls after this long is read as it is.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// One process as `/proc` tells it.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its program's name, up to 15 letters.
    pub name: String,
    parent: u32,
    zombie: bool,
    /// When it was started, in clock ticks since boot: it tells two processes of one id apart.
    started: u64,
    /// Processor time of its own and of the children it has reaped.
    cpu: Duration,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything, even a closing one.
        let (before, after) = stat.rsplit_once(") ")?;
        let (_, name) = before.split_once('(')?;
        let fields: Vec<&str> = after.split_ascii_whitespace().collect();
        // Fields 14 to 17; the first after the name is field 3. Linux counts in hundredths of a second.
        let ticks: u64 = fields
            .get(11..15)?
            .iter()
            .flat_map(|field| field.parse::<u64>())
            .sum();
        Some(Self {
            pid,
            name: name.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            zombie: matches!(*fields.first()?, "Z" | "X"),
            started: fields.get(19)?.parse().ok()?,
            cpu: Duration::from_millis(ticks * 10),
        })
    }
}

/// All that descends from a process, the dead that nobody reaped included.
fn descendants(of: u32) -> Vec<Process> {
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut children: BTreeMap<u32, Vec<Process>> = BTreeMap::new();
    for process in pids.filter_map(Process::read) {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut open = vec![of];
    while let Some(parent) = open.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            open.push(child.pid);
            found.push(child);
        }
    }
    found
}

/// Every living descendant of a process.
pub fn living(of: u32) -> Vec<Process> {
    let mut found = descendants(of);
    found.retain(|process| !process.zombie);
    found
}

/// A process and every living descendant of it.
pub fn family(of: u32) -> Vec<Process> {
    Process::read(of).into_iter().chain(living(of)).collect()
}

/// Processor time of all descendants of a process, and of all it has reaped.
pub fn cpu_below(of: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{of}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields = after.split_ascii_whitespace().skip(13).take(2);
    let reaped: u64 = fields.flat_map(|field| field.parse::<u64>()).sum();
    let living: Duration = descendants(of).iter().map(|process| process.cpu).sum();
    Duration::from_millis(reaped * 10) + living
}

/// Time that these have run so far, to the nanosecond, all their threads together.
pub fn run_time<'a>(processes: impl IntoIterator<Item = &'a Process>) -> Duration {
    let threads = processes.into_iter().flat_map(|process| {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid));
        tasks.into_iter().flatten().flatten()
    });
    let nanos = threads.filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// Proportional set size of a process in bytes; 0 when it is gone.
pub fn pss_bytes(pid: u32) -> u64 {
    // These have no memory of their own: all of them live in their zygote's, where it is counted once.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if matches!(name.trim_end(), "tether-shim" | "tether-init") {
        return 0;
    }
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// What is read once it has stopped falling: supervisors let go of what a start took a moment after it.
pub fn settled(mut read: impl FnMut() -> f64) -> f64 {
    let mut last = f64::INFINITY;
    let deadline = Instant::now() + SETTLES_WITHIN;
    loop {
        std::thread::sleep(SETTLING);
        let now = read();
        if now > last * 0.99 || Instant::now() > deadline {
            return now;
        }
        last = now;
    }
}

/// What the kernel holds for processes, in bytes: objects, stacks, page tables, per-processor data.
///
/// # Errors
/// When `/proc/meminfo` cannot be read.
pub fn kernel_bytes() -> io::Result<u64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let wanted = ["Slab:", "KernelStack:", "PageTables:", "Percpu:"];
    let kib: u64 = info
        .lines()
        .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
        .filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    Ok(kib * 1024)
}

/// Processes that are held by pidfd: whatever is signalled, it is them and nobody else.
#[derive(Debug)]
pub struct Pinned(Vec<OwnedFd>);

impl Pinned {
    /// Pins those that still live.
    pub fn new<'a>(processes: impl IntoIterator<Item = &'a Process>) -> Self {
        Self::of(processes.into_iter().map(|process| process.pid))
    }

    /// Pins those of these process ids that still live.
    pub fn of(pids: impl IntoIterator<Item = u32>) -> Self {
        let open = |pid: u32| {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
            pidfd_open(pid, PidfdFlags::empty()).ok()
        };
        Self(pids.into_iter().filter_map(open).collect())
    }

    /// Sends all of them a signal.
    pub fn signal(&self, signal: Signal) {
        for pidfd in &self.0 {
            // One that ended by itself is as dead as it shall be.
            let _ = pidfd_send_signal(pidfd, signal);
        }
    }

    /// How many live on after all are dead or the time is over.
    pub fn survivors(&self, patience: Duration) -> usize {
        let deadline = Instant::now() + patience;
        let lives = |pidfd: &&OwnedFd| !ended(pidfd, deadline);
        self.0.iter().filter(lives).count()
    }
}

fn ended(pidfd: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Process ids with their start times, as ids come round again.
pub type Known = BTreeSet<(u32, u64)>;

/// Reaps every dead child of this process that was left to it by its dead parent: all but its `own` ones, for
/// which somebody waits.
pub fn reap_orphans(own: &Known) {
    let me = std::process::id();
    let orphans = descendants(me).into_iter().filter(|process| {
        let key = (process.pid, process.started);
        process.zombie && process.parent == me && !own.contains(&key)
    });
    for orphan in orphans {
        if let Some(pid) = i32::try_from(orphan.pid).ok().and_then(Pid::from_raw) {
            let _ = waitid(
                WaitId::Pid(pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Child, Command},
        sync::{Mutex, MutexGuard, PoisonError},
    };

    use super::*;

    /// One reaps what the others wait for, so they take turns.
    static TURN: Mutex<()> = Mutex::new(());

    fn turn() -> MutexGuard<'static, ()> {
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shell(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).spawn().unwrap()
    }

    fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < deadline, "it never came");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_tree_is_found_killed_and_seen_to_end_while_its_parent_lives() {
        let _turn = turn();
        let mut parent = shell("(sleep 60; :) & sleep 60 & wait; wait");
        let children = until(|| {
            let found = living(parent.id());
            (found.iter().filter(|child| child.name == "sleep").count() == 2).then_some(found)
        });
        let pinned = Pinned::new(&children);

        assert_eq!(pinned.survivors(Duration::ZERO), 3);
        pinned.signal(Signal::KILL);
        assert_eq!(pinned.survivors(Duration::from_secs(10)), 0);

        parent.wait().unwrap();
    }

    #[test]
    fn processor_time_of_reaped_children_is_counted_once_they_are_gone() {
        let _turn = turn();
        let busy = "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'";

        // Reaped by the process that is asked about, and by a living child of it.
        for script in [
            format!("{busy}; sleep 60; :"),
            format!("({busy}; sleep 60; :); :"),
        ] {
            let mut parent = shell(&script);
            until(|| {
                let found = living(parent.id());
                found
                    .iter()
                    .any(|child| child.name == "sleep")
                    .then_some(())
            });
            let cpu = cpu_below(parent.id());
            let all = Pinned::new(&living(parent.id()));
            all.signal(Signal::KILL);
            parent.kill().unwrap();
            parent.wait().unwrap();
            assert!(cpu >= Duration::from_millis(20), "{script}: {cpu:?}");
        }
        assert_eq!(cpu_below(u32::MAX), Duration::ZERO);
    }

    #[test]
    fn a_dead_child_is_reaped_although_an_earlier_one_had_its_id() {
        let _turn = turn();
        let mut child = shell("exit 0");
        let dead = until(|| {
            let all = descendants(std::process::id());
            all.into_iter()
                .find(|process| process.pid == child.id() && process.zombie)
        });
        let known = |started| Known::from([(dead.pid, started)]);
        let there = || Process::read(dead.pid).is_some();

        reap_orphans(&known(dead.started));
        assert!(there());
        reap_orphans(&known(dead.started - 1));
        assert!(!there() && child.wait().is_err());
    }

    #[test]
    fn the_time_of_all_threads_is_counted_and_that_of_the_dead_is_not() {
        let me = Process::read(std::process::id()).unwrap();
        let before = run_time([&me]);
        let busy = std::thread::spawn(|| {
            let until = Instant::now() + Duration::from_millis(100);
            while Instant::now() < until {}
            std::thread::park();
        });
        until(|| (run_time([&me]) >= before + Duration::from_millis(20)).then_some(()));
        busy.thread().unpark();
        busy.join().unwrap();

        let gone = Process {
            pid: u32::MAX,
            ..me
        };
        assert_eq!(run_time([&gone]), Duration::ZERO);
    }

    #[test]
    fn this_process_has_memory_and_a_dead_one_has_none() {
        assert!(pss_bytes(std::process::id()) > 100_000);
        assert_eq!(pss_bytes(u32::MAX), 0);
        assert!(kernel_bytes().unwrap() > 1_000_000);
    }
}
