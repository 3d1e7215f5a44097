//! Which worker, which life of it, which life of its owner.

use std::{fmt, str::FromStr};

use crate::{InvalidName, PoolName, name::MAX_LEN};

/// A worker's place in its pool, counted from 0.
pub type Slot = u32;

/// Which start of a slot; increases with every start and never repeats within a pool's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(pub u64);

/// Which life of an owner's connection; a fencing token, so it only ever increases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One incarnation of one slot, written `pool/slot.incarnation`; incarnation 0, whichever lives, is not
/// written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId {
    /// The pool it belongs to.
    pub pool: PoolName,
    /// Its place in the pool.
    pub slot: Slot,
    /// Which start of that place.
    pub incarnation: Incarnation,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.slot)?;
        match self.incarnation.0 {
            0 => Ok(()),
            which => write!(f, ".{which}"),
        }
    }
}

impl FromStr for WorkerId {
    type Err = InvalidName;

    /// Reads `pool/slot.incarnation` and `pool/slot` (incarnation 0, meaning "whichever lives").
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let wrong = || InvalidName::Worker {
            given: text
                .chars()
                .take(2 * MAX_LEN)
                .flat_map(char::escape_default)
                .collect(),
        };
        let (pool, rest) = text.rsplit_once('/').ok_or_else(wrong)?;
        let (slot, incarnation) = match rest.split_once('.') {
            Some((slot, incarnation)) => (slot, incarnation.parse().map_err(|_| wrong())?),
            None => (rest, 0),
        };
        Ok(Self {
            pool: PoolName::new(pool)?,
            slot: slot.parse().map_err(|_| wrong())?,
            incarnation: Incarnation(incarnation),
        })
    }
}

/// Pins one process on one machine: a pid alone is reused within seconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Process id, as seen in the PID namespace below.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id` of the machine.
    pub boot_id: String,
    /// Inode of `/proc/self/ns/pid`; two processes with another one do not share pids.
    pub pid_namespace: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_id_reads_back_as_it_was_written() {
        let id: WorkerId = "train.er/3.17".parse().unwrap();

        assert_eq!(id.to_string(), "train.er/3.17");
        assert_eq!((id.slot, id.incarnation), (3, Incarnation(17)));
    }

    #[test]
    fn a_slot_without_an_incarnation_is_shown_as_it_was_typed() {
        let id: WorkerId = "digits/0".parse().unwrap();

        assert_eq!(id.to_string(), "digits/0");
    }

    #[test]
    fn what_is_no_worker_is_told_how_one_is_written() {
        for bad in ["trainer", "trainer/x", "trainer/1.x", "trainer/-1"] {
            let error = bad.parse::<WorkerId>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!(
                    "`{bad}` is not a worker: write `pool/slot` or `pool/slot.incarnation`, as in `digits/0`"
                )
            );
        }
    }
}
