//! `tether-python`: what Snakepit takes for its Python, and what stands beside each worker.
//!
//! ```text
//! BEAM --Port--> tether-python ..........session, events..........> gateway
//!  |   (stdin,      |     one for each worker: owns its pool of one
//!  |  ready file)   | relay.sock: who is attached, and where
//!  |                v
//!  +-- calls --> worker <-- child -- tether-python --tether-beside <-- shim <-- agent
//!                   |                   ^
//!                   +-- Ping, Heartbeat, callbacks: the relay, for as long as the worker lives
//! ```
//!
//! Whatever is not Snakepit's worker server is handed to the real Python by exec.

mod attach;
mod berth;
mod beside;
mod local;
mod outward;
mod owner;
mod passing;
mod pool;
mod ports;
mod pulse;
mod python;
mod relay;
mod request;
mod story;
mod upstream;

use std::{env, ffi::OsString, process::ExitCode};

use tether_kit::stop::{EXIT_CONFIG, EXIT_FAILURE, EXIT_LOST};

/// Something is missing that has to be there first. (`EX_UNAVAILABLE` of sysexits.)
const EXIT_UNAVAILABLE: u8 = 69;

/// The first argument of the process that stands beside a worker; no option of Python begins so.
const BESIDE: &str = "--tether-beside";

/// Likewise of a program that owns a worker.
const OWN: &str = "--tether-own";

#[expect(
    clippy::print_stderr,
    reason = "Snakepit logs what its Python writes to standard error"
)]
fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let ended = match args.first() {
        Some(first) if first == BESIDE => beside::stand(&args[1..]),
        Some(first) if first == OWN => owner::own(),
        // These two come back only where there is nothing to become.
        _ if python::is_worker_server(&args) => Err(owner::begin(&args)),
        _ => Err(python::become_it(&args)),
    };
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("tether-python: {error:#}");
            ExitCode::from(status(&error))
        }
    }
}

/// A failure that has an exit status of its own.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Config(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Lost(String),
}

fn status(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(Refusal::Config(_)) => EXIT_CONFIG,
        Some(Refusal::Unavailable(_)) => EXIT_UNAVAILABLE,
        Some(Refusal::Lost(_)) => EXIT_LOST,
        None => EXIT_FAILURE,
    }
}

/// A runtime of one thread: there is nothing here to do at once.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
