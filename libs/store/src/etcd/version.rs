//! Which etcd will do. Pure.

use std::fmt;

/// A release of etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u32, u32, u32);

/// The oldest that will do.
pub(crate) const FLOOR: Version = Version(3, 5, 16);

impl Version {
    /// Reads `3.5.16`, also with something behind it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.splitn(3, '.').map(|part| {
            let digits = part.find(|letter: char| !letter.is_ascii_digit());
            part[..digits.unwrap_or(part.len())].parse().ok()
        });
        Some(Self(numbers.next()??, numbers.next()??, numbers.next()??))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Whether a member that says this of itself will do.
pub(super) fn will_do(said: &str) -> bool {
    Version::parse(said).is_some_and(|version| version >= FLOOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_the_floor_or_not_understood_will_not_do() {
        for old in ["3.4.34", "3.5.15", "2.3.8", "3.5", "", "new", "3.5.x"] {
            assert!(!will_do(old), "{old}");
        }
        for new in [
            "3.5.16",
            "3.5.100",
            "3.6.0",
            "4.0.0",
            "3.5.16-rc.1",
            "3.6.0+git",
        ] {
            assert!(will_do(new), "{new}");
        }
    }
}
