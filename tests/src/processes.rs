//! Finds processes by what they inherited: a worker's environment names its runtime directory, and
//! everything it forks, daemonised or not, carries that along.

use std::{fs, os::unix::ffi::OsStrExt as _, path::Path};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its command line.
    pub command: String,
}

/// What the workers of one runtime directory left in the process table.
#[derive(Debug, Clone)]
pub struct Traces {
    marker: Vec<u8>,
}

impl Traces {
    /// Traces of workers below this runtime directory.
    pub fn of(runtime: &Path) -> Self {
        Self {
            marker: format!("TETHER_DIR={}/workers/", runtime.display()).into_bytes(),
        }
    }

    /// Traces of one incarnation of those, as `POOL.SLOT.INCARNATION`.
    #[must_use]
    pub fn of_one(&self, incarnation: &str) -> Self {
        let mut marker = self.marker.clone();
        // With the end of the variable, as 5 is the beginning of 51.
        marker.extend(incarnation.as_bytes());
        marker.push(0);
        Self { marker }
    }

    /// Every process that lives and came from one of them. Zombies are dead and do not count.
    pub fn find(&self) -> Vec<Process> {
        living(|pid| says(pid, "environ", &self.marker))
    }
}

/// Every process that lives and names this directory in its command line or its environment, whoever
/// started it: services, shims, workers.
pub fn mentioning(dir: &Path) -> Vec<Process> {
    let name = dir.as_os_str().as_bytes();
    living(|pid| says(pid, "cmdline", name) || says(pid, "environ", name))
}

/// Every process that lives and whose environment has this variable with this value.
pub fn marked(variable: &str) -> Vec<Process> {
    let text = format!("{variable}\0").into_bytes();
    living(|pid| says(pid, "environ", &text))
}

fn living(belongs: impl Fn(u32) -> bool) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| belongs(pid) && !is_zombie(pid))
        .map(|pid| Process {
            pid,
            command: command(pid),
        })
        .collect()
}

/// Whether such a file of a process contains this. A zombie's files read as empty.
fn says(pid: u32, file: &str, text: &[u8]) -> bool {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    bytes.windows(text.len()).any(|window| window == text)
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.starts_with(['Z', 'X']));
    state.unwrap_or(true)
}

fn command(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .replace('\0', " ")
        .trim_end()
        .to_owned()
}

/// Sends one process a signal.
///
/// # Panics
/// When there is no such process.
pub fn kill(pid: u32, signal: Signal) {
    signal_all(&[pid], signal);
}

/// Sends several processes a signal in the same instant: all are pinned before the first is hit.
///
/// # Panics
/// When one of them does not exist.
pub fn signal_all(pids: &[u32], signal: Signal) {
    let pinned: Vec<_> = pids
        .iter()
        .map(|&pid| {
            let raw = i32::try_from(pid)
                .ok()
                .and_then(Pid::from_raw)
                .expect("a pid is positive");
            pidfd_open(raw, PidfdFlags::empty()).expect("the process is there")
        })
        .collect();
    for pidfd in &pinned {
        match pidfd_send_signal(pidfd, signal) {
            // It was there when this began, and has ended with one that was signalled before it.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => panic!("a process cannot be signalled: {error}"),
        }
    }
}

/// Whether what is called so was made by a process that is gone: our names begin with `prefix`, and go on with the
/// id of their maker.
pub fn is_of_gone_maker(name: &str, prefix: &str) -> bool {
    let maker = name.strip_prefix(prefix);
    let maker = maker.and_then(|rest| rest.split('-').next());
    maker.is_some_and(|maker| !fs::exists(format!("/proc/{maker}")).unwrap_or(true))
}
