//! What the kernel alone takes for the walls of a guarded start: a bare loop that makes and takes down, for
//! each worker, what the agent's chain does on level G1, and does nothing else.
//!
//! A keeper is forked, makes a PID namespace with a first process in it, and has the program born into that
//! namespace and into a fresh cgroup; then all of it is reaped and removed. No protocol, no journal, no
//! lease, no output, no record of the death: who keeps these walls cannot be faster than this.
//!
//! `floor rate MILLIS CGROUP PROGRAM ARGUMENTS...` says how many lives that were. `floor hold COUNT CGROUP
//! PROGRAM ARGUMENTS...` keeps so many at a time, says that they are there, and ends with its standard input.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::AsFd as _, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};
use tether_sys::{Birth, Words, exit_child};

fn main() -> ExitCode {
    let words: Vec<CString> = std::env::args_os()
        .skip(1)
        .filter_map(|word| CString::new(word.into_vec()).ok())
        .collect();
    let [what, number, cgroup, program @ ..] = words.as_slice() else {
        return ExitCode::FAILURE;
    };
    let number = number.to_str().ok().and_then(|text| text.parse().ok());
    let number = number.unwrap_or(0);
    let cgroup = PathBuf::from(cgroup.to_string_lossy().into_owned());
    let done = match what.to_bytes() {
        b"hold" => hold(number, &cgroup, program),
        _ => count(Duration::from_millis(number), &cgroup, program)
            .and_then(|lives| writeln!(io::stdout(), "{lives}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "a bare start failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count(time: Duration, parent: &Path, program: &[CString]) -> io::Result<u32> {
    let began = Instant::now();
    let mut lives = 0;
    while began.elapsed() < time {
        let leaf = parent.join(format!("floor.{}.{lives}", std::process::id()));
        fs::create_dir(&leaf)?;
        let Some(keeper) = tether_sys::fork(&Birth::default())? else {
            let kept = keep(&leaf, program, |worker| {
                let status = wait(worker)?;
                if status == Some(0) {
                    Ok(())
                } else {
                    Err(io::Error::other("the program failed"))
                }
            });
            exit_child(i32::from(kept.is_err()))
        };
        let status = wait(keeper.pid)?;
        fs::remove_dir(&leaf)?;
        if status != Some(0) {
            return Err(io::Error::other("the keeper could not keep its worker"));
        }
        lives += 1;
    }
    Ok(lives)
}

fn hold(count: u64, parent: &Path, program: &[CString]) -> io::Result<()> {
    let mut keepers = Vec::new();
    for number in 0..count {
        let leaf = parent.join(format!("floor.{}.{number}", std::process::id()));
        fs::create_dir(&leaf)?;
        match tether_sys::fork(&Birth::default())? {
            Some(keeper) => keepers.push((keeper.pid, leaf)),
            None => {
                let kept = keep(&leaf, program, |_| ended_input());
                exit_child(i32::from(kept.is_err()))
            }
        }
    }
    writeln!(io::stdout(), "{count}")?;
    ended_input()?;
    let mut failed = 0;
    for (keeper, leaf) in keepers {
        failed += usize::from(wait(keeper)? != Some(0));
        fs::remove_dir(leaf)?;
    }
    if failed == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!("{failed} keepers kept nothing")))
    }
}

/// Comes back when standard input has ended.
fn ended_input() -> io::Result<()> {
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
}

/// In the keeper: one worker from its birth to the end of its namespace, which begins when `until` is back.
fn keep(
    leaf: &Path,
    program: &[CString],
    until: impl FnOnce(Pid) -> io::Result<()>,
) -> io::Result<()> {
    let leaf = File::open(leaf)?;
    tether_sys::unshare(true, false, false)?;
    let init = tether_sys::start_init(&(), wait_inside)?;
    let birth = Birth {
        cgroup: Some(leaf.as_fd()),
    };
    let words = Words::new(program.to_vec(), Vec::new(), &[]);
    let mut become_worker = || {
        if let [path, ..] = program {
            tether_sys::exec(path, &words);
        }
    };
    let worker = tether_sys::become_beside(&birth, &mut become_worker)?;
    let kept = until(worker.pid);
    pidfd_send_signal(&init.pidfd, Signal::KILL)?;
    // The kernel ends the worker with it, and who had it as a child reaps both.
    while waitpid(None, WaitOptions::empty()).is_ok() {}
    kept
}

/// The first process of the namespace, beside its parent in memory: it waits to be killed.
fn wait_inside((): &'static ()) {
    loop {
        tether_sys::wait_for_child_signal();
    }
}

fn wait(pid: Pid) -> io::Result<Option<i32>> {
    let status = waitpid(Some(pid), WaitOptions::empty())?;
    Ok(status.and_then(|(_, status)| status.exit_status()))
}
