//! The record of a death on disk, for an agent that was not there when it happened.

use std::fs::{self, File};
use std::io::{self, Write};

use tether_shim_protocol::{DEATH_FILE, Dead, Message, encode};

/// Writes the record to the working directory, whole or not at all.
pub(crate) fn record(dead: &Dead) -> io::Result<()> {
    let unfinished = format!("{DEATH_FILE}.new");
    let mut file = File::create(&unfinished)?;
    // Not synchronised: what the machine itself takes down is no news to the next agent.
    file.write_all(&encode(&Message::Dead(Box::new(dead.clone()))))?;
    fs::rename(&unfinished, DEATH_FILE)
}

/// Removes the record once an agent has its own.
pub(crate) fn forget() {
    let _ = fs::remove_file(DEATH_FILE);
}
