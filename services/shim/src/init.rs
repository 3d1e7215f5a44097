//! The zygote as the first process of a container, which starts the agent and is its parent.
//!
//! In a container the kernel lets nobody make namespaces or cgroups, but the container is one of each: its
//! first process inherits whatever is orphaned inside, and with that process all of it ends. So the zygote
//! is that process. An agent that is killed is started again and finds its workers; one that ends by
//! itself ends the container.

use std::env;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::WaitStatus;
use tether_clock::{BootClock, Clock, Tick};
use tether_shim_protocol::zygote::SOCKET_VARIABLE;
use tether_sys::{Birth, Child};

use crate::zygote::{Turn, Zygote};

/// The first argument of a zygote that is to be the first process of a container.
const FLAG: &str = "--init";

/// Between the deaths of agents and their successors; doubles up to the longest.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// An agent that lived this long was well.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// Where the agent finds its end of requests: the first number after the standard streams.
const AGENT_FD: i32 = 3;

/// The agent's program and arguments, where this process is to be the first of a container.
pub(crate) fn agent() -> Option<Vec<CString>> {
    let mut words = env::args_os().skip(1);
    if words.next()?.to_str() != Some(FLAG) {
        return None;
    }
    let words: Option<Vec<CString>> = words.map(c_string).collect();
    words.filter(|words| !words.is_empty())
}

fn c_string(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}

/// Runs the agent until it ends by itself; its exit status.
pub(crate) fn run(agent: &[CString]) -> io::Result<ExitCode> {
    let (requests, child) = start(agent)?;
    let mut zygote = Zygote::new(requests)?;
    zygote.spare(child);
    let mut started = BootClock.now();
    let mut delay = FIRST_DELAY;
    // When the next agent is due, while there is none.
    let mut due = Tick::NEVER;
    loop {
        match zygote.turn(due)? {
            Turn::Shim(link, sockets) => {
                zygote.into_shim(link, sockets)?;
                return Ok(ExitCode::SUCCESS);
            }
            Turn::SparedEnded(status) => {
                if let Some(code) = by_itself(status, zygote.asked_to_stop()) {
                    return Ok(code);
                }
                let now = BootClock.now();
                delay = if now.since(started) >= WELL_AFTER {
                    FIRST_DELAY
                } else {
                    (delay * 2).min(LONGEST_DELAY)
                };
                due = now + delay;
            }
            // Between two agents there is nobody to pass it on to.
            Turn::Go if due != Tick::NEVER && zygote.asked_to_stop() => {
                return Ok(ExitCode::FAILURE);
            }
            Turn::Go if BootClock.now() >= due => {
                let (requests, child) = start(agent)?;
                zygote.serve(requests);
                zygote.spare(child);
                (started, due) = (BootClock.now(), Tick::NEVER);
            }
            Turn::Go => {}
        }
    }
}

/// The status to end with; nothing where the agent was killed and nobody asked for the end.
fn by_itself(status: WaitStatus, asked: bool) -> Option<ExitCode> {
    match status.exit_status() {
        Some(code) => Some(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        None if asked => Some(ExitCode::FAILURE),
        None => None,
    }
}

/// Starts the agent, with its end of a new connection.
fn start(agent: &[CString]) -> io::Result<(OwnedFd, Child)> {
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    if let Some(child) = tether_sys::fork(&Birth::default())? {
        return Ok((ours, child));
    }
    tether_sys::reset_signals();
    if tether_sys::place(&[theirs], AGENT_FD).is_ok() {
        let own = format!("{SOCKET_VARIABLE}={AGENT_FD}");
        let env: Vec<CString> = env::vars_os()
            .filter_map(|(name, value)| {
                let text = [name.into_vec(), b"=".to_vec(), value.into_vec()].concat();
                CString::new(text).ok()
            })
            .chain(CString::new(own))
            .collect();
        tether_sys::exec(&agent[0], agent, &env);
    }
    // The agent's program was there a moment ago: this very program came out of it.
    tether_sys::exit_child(127);
}
