//! Where something listens or is reached: `unix:/path` or `host:port`.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

/// A place to listen at or to connect to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A unix socket, by absolute path.
    Unix(PathBuf),
    /// A TCP port; the host is an IP address (without brackets) or a name.
    Tcp {
        /// IP address or name.
        host: String,
        /// Port; 0 asks for a free one when listening.
        port: u16,
    },
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is not an address: {why}; expected `unix:/path/to.sock`, `127.0.0.1:7437` or `[::1]:7437`"
)]
pub struct InvalidAddress {
    given: String,
    why: &'static str,
}

impl Address {
    /// Whether only processes of this machine can reach it. A host name counts as reachable from
    /// elsewhere, except `localhost`.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let refuse = |why| InvalidAddress {
            given: text.escape_default().to_string(),
            why,
        };
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///path` is how gRPC writes the same thing.
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(refuse("the path of a unix socket starts with `/`")),
            };
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let (host, port) = rest
            .rsplit_once(':')
            .ok_or_else(|| refuse("the port is missing"))?;
        let port = port
            .parse()
            .map_err(|_| refuse("the port is not a number from 0 to 65535"))?;
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(inner) => inner,
            None if host.contains(':') => return Err(refuse("an IPv6 address stands in brackets")),
            None => host,
        };
        if host.is_empty() || host.contains(['/', ' ']) {
            return Err(refuse("the host is missing"));
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_was_written() {
        for text in [
            "unix:/run/t.sock",
            "127.0.0.1:0",
            "[::1]:7437",
            "gateway.svc:7437",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for bad in ["", "7437", "unix:run", "::1:7437", ":1", "h:99999"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_loopback_and_sockets_are_local() {
        let local = |text: &str| text.parse::<Address>().unwrap().is_local();
        assert!(
            local("unix:/a") && local("127.9.9.9:1") && local("[::1]:1") && local("localhost:1")
        );
        assert!(
            !local("0.0.0.0:1") && !local("[::]:1") && !local("10.0.0.1:1") && !local("example:1")
        );
    }
}
