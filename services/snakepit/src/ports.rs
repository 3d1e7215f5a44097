//! A port that is one worker's alone.
//!
//! gRPC binds with SO_REUSEPORT, so that two servers can be at one port and neither hears of it. So the port is chosen
//! and bound before the worker is there, exclusively; only then is the worker let in beside. Once it serves, every
//! socket that listens at the port has to be its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt},
};

/// Held for as long as the worker lives: a socket that never listens.
#[derive(Debug)]
pub(crate) struct Reserved {
    number: u16,
    _socket: OwnedFd,
}

impl Reserved {
    /// Takes this port, or one that is free.
    ///
    /// # Errors
    /// When somebody else has it.
    pub(crate) fn take(wanted: Option<u16>) -> io::Result<Self> {
        let port = wanted.unwrap_or(0);
        let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        match Self::bind(AddressFamily::INET6, all) {
            // A machine without IPv6.
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {
                let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
                Ok(Self::bind(AddressFamily::INET, all)?)
            }
            bound => Ok(bound?),
        }
    }

    fn bind(family: AddressFamily, address: SocketAddr) -> Result<Self, Errno> {
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        if family == AddressFamily::INET6 {
            sockopt::set_ipv6_v6only(&socket, false)?;
        }
        bind(&socket, &address)?;
        // From here on the worker may bind it too, and whoever chooses a free port still cannot.
        sockopt::set_socket_reuseport(&socket, true)?;
        let bound = SocketAddr::try_from(getsockname(&socket)?)?;
        Ok(Self {
            number: bound.port(),
            _socket: socket,
        })
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

/// Whether all that listens at this port are processes below this one, and there is one.
///
/// # Errors
/// Says that there is none, or another's.
pub(crate) fn is_of_children_alone(port: u16) -> io::Result<()> {
    let mut listening = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        // One that is not there has nobody in it.
        if let Ok(text) = fs::read_to_string(format!("/proc/self/net/{table}")) {
            listening.extend(listening_at(port, &text));
        }
    }
    if listening.is_empty() {
        return Err(io::Error::other(
            "the worker says that it serves there, and nobody does",
        ));
    }
    let own = sockets_of(&descendants()?);
    match listening.is_subset(&own) {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there too, and would get calls of this worker",
        )),
    }
}

/// Inodes of the sockets that listen at this port, by a table of `/proc/net`.
fn listening_at(port: u16, table: &str) -> impl Iterator<Item = u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).filter_map(move |line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let is_it = fields.get(3) == Some(&LISTEN) && u16::from_str_radix(local, 16) == Ok(port);
        is_it.then(|| fields.get(9)?.parse().ok()).flatten()
    })
}

/// Every process below this one.
fn descendants() -> io::Result<BTreeSet<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(parent) = tether_kit::process::parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut next) = (BTreeSet::new(), vec![std::process::id()]);
    while let Some(parent) = next.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.insert(child);
            next.push(child);
        }
    }
    Ok(found)
}

/// Inodes of all sockets that these processes hold.
fn sockets_of(processes: &BTreeSet<u32>) -> BTreeSet<u64> {
    let held = processes
        .iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok());
    held.flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.ok()?.path()).ok()?;
            let inode = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            inode.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_reserved_port_is_nobody_elses_and_yet_lets_in_who_shares_it() {
        let port = Reserved::take(None).unwrap();

        let taken = Reserved::take(Some(port.number())).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let plain = TcpListener::bind(("127.0.0.1", port.number())).unwrap_err();
        assert_eq!(plain.kind(), io::ErrorKind::AddrInUse);
        let sharing = socket_with(
            AddressFamily::INET6,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        sockopt::set_socket_reuseport(&sharing, true).unwrap();
        bind(
            &sharing,
            &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.number())),
        )
        .unwrap();
    }

    #[test]
    fn what_listens_in_another_process_is_found() {
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = own.local_addr().unwrap().port();

        // This process is none of its own children.
        let found = is_of_children_alone(port).unwrap_err();
        assert_eq!(found.kind(), io::ErrorKind::AddrInUse);
        drop(own);
        let nobody = is_of_children_alone(port).unwrap_err();
        assert!(nobody.to_string().contains("nobody does"));
    }
}
