//! Where a worker is reached, as its agent said.

use std::{fmt, net::SocketAddrV4};

/// A text. What most workers of many nodes have, an IPv4 address with a port, is kept as the six bytes that it
/// stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reached {
    /// What says the same when it is written.
    V4(SocketAddrV4),
    /// Anything else.
    Text(Box<str>),
}

impl Reached {
    pub(super) fn at(address: &str) -> Self {
        match address.parse::<SocketAddrV4>() {
            Ok(v4) if v4.to_string() == address => Self::V4(v4),
            _ => Self::Text(address.into()),
        }
    }
}

impl Default for Reached {
    fn default() -> Self {
        Self::Text(Box::default())
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(v4) => v4.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_as_it_was_said() {
        for (said, is_short) in [
            ("10.1.2.3:8080", true),
            ("10.1.2.3:0", true),
            ("10.1.2.3:080", false),
            ("010.1.2.3:80", false),
            ("10.1.2.3", false),
            ("[::1]:80", false),
            ("localhost:80", false),
            ("unix:/run/tether/w-1.sock", false),
            ("", false),
        ] {
            let kept = Reached::at(said);
            assert_eq!(kept.to_string(), said);
            assert_eq!(matches!(kept, Reached::V4(_)), is_short, "{said}");
        }
        assert!(size_of::<Reached>() <= 16);
    }
}
