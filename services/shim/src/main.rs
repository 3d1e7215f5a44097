//! `tether-shim`: the program of shims, and of the zygote that starts them.
//!
//! What needs the standard library is here, before there is a shim: arguments and environment.

use std::env;
use std::ffi::{CString, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::panic;
use std::process::ExitCode;

use tether_shim::init::{self, Agent};
use tether_shim::setup::{self, Error, Role};
use tether_shim::{complain, zygote};
use tether_shim_protocol::zygote::DESCRIPTORS_VARIABLE;

/// Processes that share memory must not share a heap.
#[global_allocator]
static HEAP: tether_sys::OwnHeap = tether_sys::OwnHeap;

const USAGE: &str = "\
tether-shim runs workers for `tether-agent`, which starts it and speaks to it on standard
input: over a stream it runs one worker, over packets it forks a process for each. It does nothing useful by hand: start `tether up` and apply a pool, or `tether run`.

Usage: tether-shim
       tether-shim --version
";

/// The agent's mistake, or a human's.
const EX_USAGE: u8 = 2;

/// The first argument of a zygote that is to be the first process of a container.
const FIRST_PROCESS: &str = "--init";

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
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
    // The library keeps count of panics in a place that all shims share: the first ends with this, and each
    // later one by the library's own hand, with SIGABRT. Either ends one process.
    panic::set_hook(Box::new(|panic| {
        complain(&panic.to_string());
        tether_sys::exit_child(101);
    }));
    tether_sys::close_from(3);
    let descriptors = env::var(DESCRIPTORS_VARIABLE).ok();
    let descriptors = descriptors.and_then(|given| given.parse().ok());
    if let Some(agent) = agent() {
        return match init::run(&agent, descriptors) {
            Ok(code) => ExitCode::from(code),
            Err(errno) => {
                complain(&format!("the first process of the container ends: {errno}"));
                ExitCode::FAILURE
            }
        };
    }
    let ran = match setup::role() {
        Some(Role::Zygote) => setup::take_stdin()
            .and_then(|agent| zygote::run(agent, descriptors))
            .map_err(Error::from),
        Some(Role::Shim) => run_shim(),
        None => {
            complain(&format!("standard input is not a unix socket\n\n{USAGE}"));
            return ExitCode::from(EX_USAGE);
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("tether-shim ends and its worker with it: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// One shim alone, without a zygote.
fn run_shim() -> Result<(), Error> {
    tether_sys::reset_signals();
    let link = setup::take_stdin()?;
    let page = tether_sys::View::make()?;
    setup::run(link, Vec::new(), tether_sys::take_signals()?, page)
}

/// The agent, where this process is to be the first of a container.
fn agent() -> Option<Agent> {
    let mut words = env::args_os().skip(1);
    if words.next()?.to_str() != Some(FIRST_PROCESS) {
        return None;
    }
    let argv: Option<Vec<CString>> = words.map(c_string).collect();
    let argv = argv.filter(|argv| !argv.is_empty())?;
    let env = env::vars_os().filter_map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        c_string(name)
    });
    Some(Agent {
        argv,
        env: env.collect(),
    })
}

fn c_string(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}
