//! Every process below this one, and signals that can reach no other.
//!
//! The shim is the subreaper of its worker, so whatever daemonises, starts a session of its own
//! or forks twice stays below it. A pid is only a hint: a signal goes through a pidfd, and only
//! after the process behind it has been shown to descend from the shim.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;

use rustix::io::Result;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use crate::files;
use crate::proc::Stat;

/// How often a killing round looks for processes that were forked while it stopped the others.
const STOP_SWEEPS: usize = 64;

/// Longer parent chains than this are not followed: the kernel's pid limit is far off, and a
/// chain read while it changes could in theory go in a circle.
const DEPTH_MAX: usize = 4096;

/// Sends `signal` to every process below this one.
pub(crate) fn signal_all(signal: Signal) {
    for pid in below(own_id()) {
        // A process that ended meanwhile needs no signal.
        let _ = signal_one(pid, signal);
    }
}

/// One round of killing: stop everything first, so that nothing forks while the others die.
///
/// `reap` is called between sweeps: a chain of processes that fork and exit leaves a zombie for
/// each link, and walking over those would be slower than the chain.
pub(crate) fn kill_all(mut reap: impl FnMut()) {
    let mut stopped = BTreeSet::new();
    for _ in 0..STOP_SWEEPS {
        let fresh: Vec<u32> = below(own_id())
            .into_iter()
            .filter(|pid| stopped.insert(*pid))
            .collect();
        if fresh.is_empty() {
            break;
        }
        for pid in fresh {
            let _ = signal_one(pid, Signal::STOP);
        }
        reap();
    }
    signal_all(Signal::KILL);
}

/// Processes below this one that have not ended.
pub(crate) fn count_living() -> u32 {
    let living = |pid: &u32| Stat::of(*pid).is_some_and(|stat| !stat.is_zombie());
    u32::try_from(below(own_id()).iter().filter(|pid| living(pid)).count()).unwrap_or(u32::MAX)
}

fn signal_one(pid: u32, signal: Signal) -> Result<()> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
    if descends(pid, own_id()) {
        pidfd_send_signal(&pidfd, signal)
    } else {
        Ok(())
    }
}

/// Whether `pid` descends from `root`, by a parent chain that was read twice and stood still.
/// Standing still proves that no pid in it was reused in between: a process whose parent ends
/// gets another parent.
fn descends(pid: u32, root: u32) -> bool {
    let first = chain(pid, root);
    first.is_some() && first == chain(pid, root)
}

/// The parents of `pid` up to `root`, `None` where they do not lead there.
fn chain(pid: u32, root: u32) -> Option<Vec<u32>> {
    let mut parents = Vec::new();
    let mut at = pid;
    while at != root {
        at = Stat::of(at)?.parent;
        if at == 0 || parents.len() == DEPTH_MAX {
            return None;
        }
        parents.push(at);
    }
    Some(parents)
}

/// Everything below `root`, parents before their children. Processes that move while this reads
/// can be missed; whoever relies on it repeats it until the kernel says there are no children.
fn below(root: u32) -> Vec<u32> {
    walk(root, children)
        // For want of memory for a moment nobody looks through all processes of a machine.
        .or_else(|| walk(root, children))
        .or_else(|| walk_table(root))
        .unwrap_or_default()
}

/// `children` of `root`, of each of those, and so on; `None` where `root`'s cannot be told.
fn walk(root: u32, children: impl Fn(u32) -> Option<Vec<u32>>) -> Option<Vec<u32>> {
    let mut found = children(root)?;
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        let more = children(*pid).unwrap_or_default();
        found.extend(more);
        next += 1;
    }
    Some(found)
}

/// The children of this process.
pub(crate) fn own_children() -> Vec<Pid> {
    let own = own_id();
    let is_own = |pid: &u32| Stat::of(*pid).is_some_and(|stat| stat.parent == own);
    let by_table = || Some(walk_table(own)?.into_iter().filter(is_own).collect());
    let pids = children(own).or_else(|| children(own)).or_else(by_table);
    let pids = pids.unwrap_or_default();
    pids.into_iter()
        .filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .collect()
}

fn own_id() -> u32 {
    getpid().as_raw_nonzero().get().unsigned_abs()
}

/// The children of every thread of `pid`, from files that not every kernel is built with.
fn children(pid: u32) -> Option<Vec<u32>> {
    let mut found = Vec::new();
    let threads = format!("/proc/{pid}/task");
    for (thread, _) in files::entries(threads.as_bytes()).ok()? {
        let thread = files::join(threads.as_bytes(), &thread);
        let list = files::text(&files::join(&thread, b"children"))?;
        found.extend(
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    Some(found)
}

/// The same from the whole process table, for kernels without `children` files.
fn walk_table(root: u32) -> Option<Vec<u32>> {
    let pids = files::entries(b"/proc").ok()?.into_iter();
    let pids = pids.filter_map(|(name, _)| str::from_utf8(&name).ok()?.parse::<u32>().ok());
    let table: Vec<(u32, u32)> = pids
        .filter_map(|pid| Some((pid, Stat::of(pid)?.parent)))
        .collect();
    walk(root, |parent| {
        Some(
            table
                .iter()
                .filter(|row| row.1 == parent)
                .map(|row| row.0)
                .collect(),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{self, Command, Stdio};

    use super::*;

    #[test]
    fn both_ways_of_looking_find_children_and_grandchildren() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        let own = process::id();

        let found = [walk(own, children), walk_table(own)];
        let related = [descends(grandchild, own), descends(grandchild, shell.id())];
        let reversed = descends(own, shell.id());
        signal_one(grandchild, Signal::KILL).unwrap();
        shell.wait().unwrap();

        // A kernel without `children` files leaves the table alone to be checked.
        for found in found.into_iter().flatten() {
            let at = |pid| found.iter().position(|found| *found == pid);
            assert!(
                at(shell.id()).unwrap() < at(grandchild).unwrap(),
                "{found:?}"
            );
        }
        assert_eq!(related, [true, true]);
        assert!(!reversed);
    }

    #[test]
    fn a_process_from_elsewhere_is_not_signalled() {
        let mut bystander = Command::new("sleep").arg("60").spawn().unwrap();

        // Its parent is this process, which does not descend from it.
        assert!(!descends(process::id(), bystander.id()));
        assert!(!descends(1, process::id()));

        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
}
