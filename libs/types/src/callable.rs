//! What may be told to those who call: an address that stands for one machine, and words that spoil no log. Looked
//! at where such things come in from outside.

use std::{net::IpAddr, path::Path};

use crate::Address;

/// Largest weight of an endpoint.
pub const WEIGHT_MAX: u32 = 65_535;

/// Longest word about an endpoint, in bytes.
pub const TEXT_MAX: usize = 256;

/// Longest name of a host and longest part of one between dots, as DNS has them.
const HOST_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// Longest path at which a socket can be: the kernel has room for 108 bytes, of which one ends it.
const PATH_MAX: usize = 107;

/// How much of what was given is shown.
const SHOWN_MAX: usize = 60;

/// Why calls cannot go to an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCallable {
    /// No port.
    #[error("nobody serves at port 0 of `{0}`")]
    NoPort(Address),
    /// No host.
    #[error("the host `{}` is no IP address and no name: {why}", shown(.host))]
    NoHost {
        /// What stands in its place.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// No socket.
    #[error("nobody serves at the socket `{}`: {why}", shown(.path))]
    NoSocket {
        /// What stands in the place of its path.
        path: String,
        /// What is wrong with it.
        why: String,
    },
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
            Self::Tcp { host, .. } => match host.parse::<IpAddr>() {
                Ok(ip) if is_nowhere(ip) => Err(NotCallable::Nowhere(self.clone())),
                Ok(_) => Ok(()),
                Err(_) => check_name(host).map_err(|why| NotCallable::NoHost {
                    host: host.clone(),
                    why,
                }),
            },
            Self::Unix(path) => check_path(path).map_err(|why| NotCallable::NoSocket {
                path: path.display().to_string(),
                why,
            }),
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

/// Whether DNS could have a host of this name. One of numbers alone is none: `10.1` and `0` are read as IP addresses
/// by many who connect, and not as the ones that were meant.
fn check_name(host: &str) -> Result<(), String> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(odd) = host.chars().find(|&c| !is_of_name(c)) {
        return Err(match odd.is_alphabetic() {
            true => {
                format!("it has the character {odd:?}; write a name of other letters as `xn--...`")
            }
            false => format!("it has the character {odd:?}"),
        });
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > HOST_MAX {
        return Err(format!(
            "it has {} bytes, and a name {HOST_MAX} at most",
            name.len()
        ));
    }
    let mut labels = name.split('.');
    if let Some(label) = labels.clone().find(|label| label.len() > LABEL_MAX) {
        let count = label.len();
        return Err(format!(
            "a part of it has {count} bytes, and one of a name {LABEL_MAX} at most"
        ));
    }
    if labels.clone().any(str::is_empty) {
        return Err("a part of it is empty".to_owned());
    }
    match labels.all(is_number) {
        true => Err("it is made of numbers alone".to_owned()),
        false => Ok(()),
    }
}

fn is_number(label: &str) -> bool {
    let hex = label
        .strip_prefix("0x")
        .or_else(|| label.strip_prefix("0X"));
    label.bytes().all(|byte| byte.is_ascii_digit())
        || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn check_path(path: &Path) -> Result<(), String> {
    let bytes = path.as_os_str().len();
    if bytes > PATH_MAX {
        return Err(format!(
            "its path has {bytes} bytes, and the kernel has room for {PATH_MAX}"
        ));
    }
    let path = path.to_string_lossy();
    match path.chars().find(|c| c.is_control()) {
        Some(odd) => Err(format!("its path has the character {odd:?}")),
        None => Ok(()),
    }
}

fn is_nowhere(ip: IpAddr) -> bool {
    // `::ffff:0.0.0.0` is no other place than `0.0.0.0`.
    let ip = ip.to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    ip.is_unspecified() || ip.is_multicast() || broadcast
}

/// Its beginning, for messages.
fn shown(text: &str) -> String {
    let mut letters = text.chars();
    let mut shown: String = letters.by_ref().take(SHOWN_MAX).collect();
    if letters.next().is_some() {
        shown.push('…');
    }
    shown.escape_debug().to_string()
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
            "[::ffff:0.0.0.0]:1",
            "[::ffff:224.0.0.1]:1",
            "255.255.255.255:1",
        ] {
            let error = address(bad).check_callable().unwrap_err();
            assert!(error.to_string().starts_with("nobody"), "{error}");
        }
        for good in [
            "10.0.0.2:1",
            "[::1]:1",
            "worker-1.svc:1",
            "_grpc.worker.svc.:1",
            "xn--bcher-kva.example:1",
            "web.1:1",
            "unix:/run/w.sock",
        ] {
            address(good).check_callable().unwrap();
        }
    }

    #[test]
    fn what_is_no_host_and_no_socket_is_refused_with_what_is_wrong_and_a_short_word() {
        let (label, name) = ("a".repeat(64), "a.".repeat(130));
        let path = format!("unix:/{}", "a".repeat(1 << 20));
        for (bad, why) in [
            ("a*b:1", "character '*'"),
            (
                "bücher.example:1",
                "character 'ü'; write a name of other letters as `xn--...`",
            ),
            ("a\u{1b}[2Jb:1", "character '\\u{1b}'"),
            ("[fe80::1%eth0]:1", "character ':'"),
            ("a..b:1", "a part of it is empty"),
            (".:1", "a part of it is empty"),
            (&format!("{label}:1"), "64 bytes"),
            (&format!("{name}a:1"), "261 bytes"),
            ("10.0.0.256:1", "numbers alone"),
            ("10.1:1", "numbers alone"),
            ("0x7f000001:1", "numbers alone"),
            (path.as_str(), "1048577 bytes"),
            ("unix:/run/a\nb", "'\\n'"),
        ] {
            let error = address(bad).check_callable().unwrap_err().to_string();
            assert!(error.contains(why) && error.len() < 300, "{bad}: {error}");
            assert!(!error.chars().any(char::is_control), "{error:?}");
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
