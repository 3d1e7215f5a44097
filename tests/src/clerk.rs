//! Workers that serve one call at a time and write down each, and callers that know what became of each.
//!
//! What a clerk has written survives its SIGKILL, so that whether a call was begun, by whom and how often, are facts and
//! no guesses from the answers.

pub mod book;
pub mod caller;
pub mod dice;
pub mod life;
pub mod order;
pub mod server;

use tether_clock::{BootClock, Clock as _};

/// Nanoseconds of the clock that all processes of a machine share.
pub fn now() -> u64 {
    BootClock.now().as_nanos()
}
