//! What `/proc` says about a process: its parent, its state and when it started.

use alloc::format;

use crate::files;

/// The fields of `/proc/PID/stat` that tell one process from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) parent: u32,
    pub(crate) start_ticks: u64,
}

impl Stat {
    /// Reads it, `None` where there is no such process.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let line = files::read(format!("/proc/{pid}/stat").as_bytes()).ok()?;
        Self::parse(&line)
    }

    /// The name in the second field may hold spaces and parentheses of its own, so the fields
    /// are counted from the last parenthesis.
    fn parse(line: &[u8]) -> Option<Self> {
        let name_end = line.iter().rposition(|byte| *byte == b')')?;
        let rest = str::from_utf8(line.get(name_end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Self {
            state: *fields.next()?.as_bytes().first()?,
            parent: fields.next()?.parse().ok()?,
            start_ticks: fields.nth(17)?.parse().ok()?,
        })
    }

    /// Whether it has ended and only waits to be reaped.
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = b"7 (a) Z 1 (b) S 42 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2\n";

        let stat = Stat::parse(line).unwrap();

        assert_eq!(
            stat,
            Stat {
                state: b'S',
                parent: 42,
                start_ticks: 98765
            }
        );
    }

    #[test]
    fn the_own_process_is_found_and_is_no_zombie() {
        let stat = Stat::of(std::process::id()).unwrap();

        assert_eq!(stat.parent, std::os::unix::process::parent_id());
        assert!(!stat.is_zombie());
        assert!(Stat::of(u32::MAX).is_none());
    }
}
