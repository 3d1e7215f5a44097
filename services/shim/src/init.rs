//! The zygote as the first process of a container, which starts the agent and is its parent.
//!
//! In a container the kernel lets nobody make namespaces or cgroups, but the container is one of each: its
//! first process inherits whatever is orphaned inside, and with that process all of it ends. So the zygote
//! is that process. An agent that is killed is started again and finds its workers; one that ends by
//! itself ends the container.

use alloc::ffi::CString;
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::WaitStatus;
use tether_clock::{BootClock, Clock, Tick};
use tether_shim_protocol::zygote::SOCKET_VARIABLE;
use tether_sys::{Birth, Child, Words};

use crate::zygote::Zygote;

/// Between the deaths of agents and their successors; doubles up to the longest.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// An agent that lived this long was well.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// Where the agent finds its end of requests: the first number after the standard streams.
const AGENT_FD: i32 = 3;

/// A program with its arguments and its environment.
#[derive(Debug)]
pub struct Agent {
    /// Its file, which is also its first argument, and the others.
    pub argv: Vec<CString>,
    /// `NAME=value` each.
    pub env: Vec<CString>,
}

/// Runs the agent until it ends by itself; its exit status. All processes but the agent may have as many
/// descriptors as is said.
///
/// # Errors
/// When the system refuses what it cannot do without.
pub fn run(agent: &Agent, descriptors: Option<u64>) -> Result<u8, Errno> {
    let mut zygote = Zygote::new(descriptors)?;
    let mut started = BootClock.now();
    let mut delay = FIRST_DELAY;
    // When the next agent is due, while there is none.
    let mut due = started;
    loop {
        let ended = zygote.turn(due)?;
        if let Some(status) = ended {
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
        } else if due != Tick::NEVER && zygote.asked_to_stop() {
            // Between two agents there is nobody to pass it on to.
            return Ok(1);
        } else if BootClock.now() >= due {
            let (requests, child) = start(agent)?;
            zygote.serve(requests);
            zygote.spare(child);
            (started, due) = (BootClock.now(), Tick::NEVER);
        }
    }
}

/// The status to end with; nothing where the agent was killed and nobody asked for the end.
fn by_itself(status: WaitStatus, asked: bool) -> Option<u8> {
    match status.exit_status() {
        Some(code) => Some(u8::try_from(code).unwrap_or(1)),
        None if asked => Some(1),
        None => None,
    }
}

/// Starts the agent, with its end of a new connection.
fn start(agent: &Agent) -> Result<(OwnedFd, Child), Errno> {
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    let own = CString::new(format!("{SOCKET_VARIABLE}={AGENT_FD}"));
    let env: Vec<CString> = agent.env.iter().cloned().chain(own).collect();
    let words = Words::new(agent.argv.clone(), env, &[]);
    let theirs = [theirs.as_fd()];
    let mut become_agent = || {
        tether_sys::reset_signals();
        // The agent's program was there a moment ago: this very program came out of it.
        if tether_sys::place(&theirs, AGENT_FD).is_ok()
            && let Some(program) = agent.argv.first()
        {
            tether_sys::exec(program, &words);
        }
    };
    let child = tether_sys::become_beside(&Birth::default(), &mut become_agent)?;
    Ok((ours, child))
}
