//! Which process the BEAM is.

use std::fs;

use anyhow::{Context as _, bail};
use tether_kit::process::{identity, parent};
use tether_types::ProcessIdentity;

/// OTP forks port programs by this one, and not by itself.
const FORKER: &str = "erl_child_setup";

/// How many ancestors may lie between.
const ANCESTORS_MAX: usize = 16;

/// The BEAM: the ancestor of this number, or the nearest that is no forker.
pub(crate) fn find(named: Option<u32>) -> anyhow::Result<ProcessIdentity> {
    let mut pid = std::process::id();
    for _ in 0..ANCESTORS_MAX {
        pid = match parent(pid) {
            Some(parent) if parent > 0 => parent,
            _ => break,
        };
        if named.map_or_else(|| !is_forker(pid), |named| named == pid) {
            return identity(pid)
                .with_context(|| format!("cannot look at the BEAM, process {pid}"));
        }
    }
    match named {
        Some(named) => {
            bail!("process {named} is said to be the BEAM, and is no ancestor of this one")
        }
        None => bail!("none of the nearest ancestors of this process could be the BEAM"),
    }
}

fn is_forker(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == FORKER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_ancestor_is_the_beam_unless_another_one_is_named() {
        let nearest = find(None).unwrap();
        assert_eq!(Some(nearest.pid), parent(std::process::id()));
        assert_eq!(find(Some(nearest.pid)).unwrap(), nearest);

        let own = find(Some(std::process::id())).unwrap_err().to_string();
        assert!(own.contains("no ancestor"), "{own}");
    }
}
