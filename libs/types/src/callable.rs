//! What may be told to those who call: an address that stands for one machine, and words that spoil no log. Looked
//! at where such things come in from outside.

use std::net::IpAddr;

use crate::Address;

/// Largest weight of an endpoint.
pub const WEIGHT_MAX: u32 = 65_535;

/// Longest word about an endpoint, in bytes.
pub const TEXT_MAX: usize = 256;

/// Why calls cannot go to an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCallable {
    /// No port.
    #[error("nobody serves at port 0 of `{0}`")]
    NoPort(Address),
    /// No host.
    #[error("`{}` is neither a name nor an IP address", .0.escape_default())]
    NoHost(String),
    /// A call to it would go to the gateway itself, or to everybody.
    #[error("nobody can be reached at `{0}`: it stands for no machine, or for many")]
    Nowhere(Address),
}

impl Address {
    /// Whether calls can go there, as far as the address alone says.
    ///
    /// # Errors
    /// Says why they cannot.
    pub fn check_callable(&self) -> Result<(), NotCallable> {
        match self {
            Self::Tcp { port: 0, .. } => Err(NotCallable::NoPort(self.clone())),
            Self::Tcp { host, .. } if !is_host(host) => Err(NotCallable::NoHost(host.clone())),
            Self::Tcp { host, .. } if is_nowhere(host) => Err(NotCallable::Nowhere(self.clone())),
            Self::Tcp { .. } | Self::Unix(_) => Ok(()),
        }
    }

    /// The same place as whoever else writes it would write it. What names a machine by name and what by number
    /// is not known to be one.
    #[must_use]
    pub fn canonical(&self) -> Self {
        match self {
            Self::Tcp { host, port } => Self::Tcp {
                host: match host.parse::<IpAddr>() {
                    Ok(ip) => ip.to_canonical().to_string(),
                    Err(_) => host.trim_end_matches('.').to_ascii_lowercase(),
                },
                port: *port,
            },
            Self::Unix(path) => Self::Unix(path.components().collect()),
        }
    }
}

fn is_host(host: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_ip = || host.parse::<IpAddr>().is_ok();
    host.len() <= 253 && ((!host.is_empty() && host.chars().all(is_name)) || is_ip())
}

fn is_nowhere(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| {
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        ip.is_unspecified() || ip.is_multicast() || broadcast
    })
}

/// Whether a word about an endpoint is short and has no control characters.
pub fn is_plain(text: &str) -> bool {
    text.len() <= TEXT_MAX && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_that_stands_for_no_one_machine_is_not_called() {
        for bad in [
            "10.0.0.2:0",
            "0.0.0.0:1",
            "[::]:1",
            "[ff02::1]:1",
            "255.255.255.255:1",
            "a*b:1",
        ] {
            assert!(address(bad).check_callable().is_err(), "{bad}");
        }
        for good in [
            "10.0.0.2:1",
            "[::1]:1",
            "worker-1.svc:1",
            "unix:/run/w.sock",
        ] {
            address(good).check_callable().unwrap();
        }
    }

    #[test]
    fn one_place_has_one_way_of_writing() {
        for (one, other) in [
            ("[::1]:1", "[0:0:0:0:0:0:0:1]:1"),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1:1"),
            ("Worker.Svc.:1", "worker.svc:1"),
            ("unix:/run//w.sock", "unix:/run/./w.sock"),
        ] {
            assert_eq!(address(one).canonical(), address(other).canonical());
        }
        assert_ne!(address("a:1").canonical(), address("a:2").canonical());
    }
}
