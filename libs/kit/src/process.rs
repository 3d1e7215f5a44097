//! Which process this is, in a way that no reused pid can be taken for it.

use std::{
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    os::unix::fs::MetadataExt as _,
};

use tether_types::ProcessIdentity;

/// The identity of the process that asks.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn own_identity() -> io::Result<ProcessIdentity> {
    let pid = std::process::id();
    let missing = || io::Error::other(format!("`/proc/{pid}/stat` tells no start time"));
    Ok(ProcessIdentity {
        pid,
        start_ticks: start_ticks(pid).ok_or_else(missing)?,
        boot_id: boot_id()?,
        pid_namespace: pid_namespace()?,
    })
}

/// A word that no other process and no later call says: which life of something speaks.
pub fn fresh_word() -> String {
    // The hasher's keys are random, and others each time.
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// The machine's boot id.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// The inode of the own PID namespace: two processes that tell the same one see the same pids.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn pid_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/pid")?.ino())
}

/// When a process was started, in clock ticks since boot; none when there is no such process.
pub fn start_ticks(pid: u32) -> Option<u64> {
    stat(pid, 22)
}

/// The process that this one is a child of; none when there is no such process.
pub fn parent(pid: u32) -> Option<u32> {
    stat(pid, 4)
}

/// A field of `/proc/PID/stat` after the command name, numbered as in proc(5).
fn stat<T: std::str::FromStr>(pid: u32, field: usize) -> Option<T> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name stands in parentheses and may hold anything, even a closing one.
    let after_name = &stat[stat.rfind(')')? + 1..];
    // The first after the name is field 3.
    after_name
        .split_ascii_whitespace()
        .nth(field - 3)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_an_identity_that_stays_and_a_dead_one_has_none() {
        let first = own_identity().unwrap();

        assert_eq!(first, own_identity().unwrap());
        assert!(first.start_ticks > 0 && first.pid_namespace > 0 && first.boot_id.len() == 36);
        assert_eq!(start_ticks(u32::MAX), None);
        let parent_id = std::os::unix::process::parent_id();
        assert_eq!(parent(std::process::id()), Some(parent_id));
    }
}
