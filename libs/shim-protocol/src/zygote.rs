//! What an agent asks of its zygote, over a socket that keeps messages apart and carries descriptors.

use alloc::vec;
use alloc::vec::Vec;

/// The longest request.
pub const REQUEST_BYTES_MAX: usize = 4096;

/// The most descriptors beside one request: a link, listening sockets, and what an earlier incarnation had
/// kept. It is the most that the kernel lets one message carry.
pub const FDS_MAX: usize = 253;

/// Names, in the environment of an agent that the first process of a container started, the descriptor on
/// which that process, a zygote, takes requests.
pub const SOCKET_VARIABLE: &str = "TETHER_ZYGOTE_FD";

/// Tells a zygote in its environment how many descriptors it and what comes of it may have open: as many as
/// its agent was given, before that asked for more for itself.
pub const DESCRIPTORS_VARIABLE: &str = "TETHER_DESCRIPTORS";

/// One request, one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Fork a shim. The first descriptor beside it is the shim's link, the others are sockets that its
    /// worker is to be given. The shim says `Hello` on its link; there is no other answer.
    Spawn,
    /// Try out what the kernel allows here; answered with one byte, [`Means`].
    Probe {
        /// A cgroup v2 in which leaves may be made.
        cgroup: Option<Vec<u8>>,
    },
}

impl Request {
    /// The message.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Spawn => vec![b'S'],
            Self::Probe { cgroup: None } => vec![b'P'],
            Self::Probe {
                cgroup: Some(cgroup),
            } => [b"C", cgroup.as_slice()].concat(),
        }
    }

    /// Reads a message; nothing where it means nothing, as the empty one at the end of a connection.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (b'S', []) => Some(Self::Spawn),
            (b'P', []) => Some(Self::Probe { cgroup: None }),
            (b'C', cgroup) => Some(Self::Probe {
                cgroup: Some(cgroup.to_vec()),
            }),
            _ => None,
        }
    }
}

/// What the kernel was seen to allow, by a canary that tried each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Means {
    /// A PID namespace can be made, and dies with its first process.
    pub namespace: bool,
    /// It takes a user namespace.
    pub user_namespace: bool,
    /// A `/proc` of that namespace can be mounted.
    pub private_proc: bool,
    /// A cgroup v2 leaf can be made, joined and killed as one.
    pub cgroup: bool,
    /// A child can be born in it.
    pub born_in_cgroup: bool,
    /// A SIGKILL timer on `CLOCK_BOOTTIME` goes off.
    pub timer: bool,
}

impl Means {
    /// One bit each.
    pub fn to_byte(self) -> u8 {
        [
            self.namespace,
            self.user_namespace,
            self.private_proc,
            self.cgroup,
            self.born_in_cgroup,
            self.timer,
        ]
        .into_iter()
        .enumerate()
        .fold(0, |bits, (place, means)| bits | u8::from(means) << place)
    }

    /// Reads [`Self::to_byte`].
    pub fn from_byte(bits: u8) -> Self {
        let bit = |place: u8| bits & (1 << place) != 0;
        Self {
            namespace: bit(0),
            user_namespace: bit(1),
            private_proc: bit(2),
            cgroup: bit(3),
            born_in_cgroup: bit(4),
            timer: bit(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_means_read_back_as_they_were_written() {
        let leaf = Some(b"/sys/fs/cgroup/t".to_vec());
        for request in [
            Request::Spawn,
            Request::Probe { cgroup: None },
            Request::Probe { cgroup: leaf },
        ] {
            assert_eq!(Request::from_bytes(&request.to_bytes()), Some(request));
        }
        for bits in 0..64 {
            assert_eq!(Means::from_byte(bits).to_byte(), bits);
        }
        assert_eq!(Request::from_bytes(b""), None);
    }
}
