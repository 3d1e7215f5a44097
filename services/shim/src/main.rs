//! `tether-shim`: the small process around one worker, and the zygote that forks it.
//!
//! The shim starts the worker, is the parent of everything the worker leaves behind, holds the
//! deadline of its permission, and ends the whole tree when that permission ends: whether or not
//! an agent is there to ask for it. It has one thread, waits in one place, and a worker never
//! outlives it. What it decides is in [`plan`]; everything else does what it is told.

mod cgroup;
mod death;
mod forkserver;
mod init;
mod launch;
mod link;
mod namespace;
mod output;
mod owner;
mod plan;
mod probe;
mod proc;
mod setup;
mod shim;
mod stdio;
mod terms;
mod tree;
mod turn;
mod zygote;

use std::io::{self, Write};
use std::process::ExitCode;

use setup::Role;

const USAGE: &str = "\
tether-shim runs workers for `tether-agent`, which starts it and speaks to it on standard
input: over a stream it runs one worker, over packets it forks a process for each. It does nothing useful by hand: start `tether up` and apply a pool, or `tether run`.

Usage: tether-shim
       tether-shim --version
";

/// The agent's mistake, or a human's.
const EX_USAGE: u8 = 2;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("-V" | "--version") => {
            let _ = writeln!(io::stdout(), "tether-shim {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("-h" | "--help") => {
            let _ = io::stdout().write_all(USAGE.as_bytes());
            return ExitCode::SUCCESS;
        }
        Some(_) | None => {}
    }
    tether_sys::close_from(3);
    if let Some(agent) = init::agent() {
        return match init::run(&agent) {
            Ok(code) => code,
            Err(error) => {
                let _ = writeln!(
                    io::stderr(),
                    "the first process of the container ends: {error}"
                );
                ExitCode::FAILURE
            }
        };
    }
    let ran = match setup::role() {
        Some(Role::Zygote) => setup::take_stdin().and_then(zygote::run),
        Some(Role::Shim) => {
            tether_sys::reset_signals();
            setup::take_stdin()
                .and_then(|link| setup::run(link.into(), Vec::new(), tether_sys::take_signals()?))
        }
        None => {
            let _ = write!(
                io::stderr(),
                "standard input is not a unix socket\n\n{USAGE}"
            );
            return ExitCode::from(EX_USAGE);
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(
                io::stderr(),
                "tether-shim ends and its worker with it: {error}"
            );
            ExitCode::FAILURE
        }
    }
}
