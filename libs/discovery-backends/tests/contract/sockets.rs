//! Sockets of this machine, as the kernel lists them.

use std::{collections::BTreeSet, fs, net::SocketAddr};

/// One line of the kernel's list.
struct Socket {
    local: String,
    remote: String,
    state: String,
    inode: String,
}

/// How many sockets of this process are connected to that address, and not closed by it.
pub(crate) fn connected_to(address: SocketAddr) -> usize {
    let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
    let own: BTreeSet<String> = links.map(|link| link.display().to_string()).collect();
    let remote = written(address);
    let such = all().into_iter().filter(|socket| socket.remote == remote);
    such.filter(|socket| own.contains(&format!("socket:[{}]", socket.inode)))
        .count()
}

/// Whether somebody waits for datagrams there.
pub(crate) fn receives(address: SocketAddr) -> bool {
    let local = written(address);
    all()
        .iter()
        .any(|socket| socket.local == local && socket.state == "07")
}

/// As the kernel writes it.
fn written(address: SocketAddr) -> String {
    let SocketAddr::V4(v4) = address else {
        panic!("tests use IPv4");
    };
    format!(
        "{:08X}:{:04X}",
        u32::from_le_bytes(v4.ip().octets()),
        v4.port()
    )
}

fn all() -> Vec<Socket> {
    let lists = ["/proc/net/tcp", "/proc/net/udp"].map(|list| fs::read_to_string(list).unwrap());
    let lines = lists.iter().flat_map(|list| list.lines().skip(1));
    let sockets = lines.filter_map(|line| {
        let mut words = line.split_whitespace().skip(1).map(str::to_owned);
        Some(Socket {
            local: words.next()?,
            remote: words.next()?,
            state: words.next()?,
            inode: words.nth(5)?,
        })
    });
    sockets.collect()
}
