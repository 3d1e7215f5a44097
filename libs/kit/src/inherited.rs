//! Listening sockets that this process was started with, as in sd_listen_fds(3): whoever made them goes on listening when
//! this process ends.

use std::{
    net::{IpAddr, SocketAddr},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::net::{SocketAddrUnix, getsockname};
use tether_types::Address;

/// The first number after the standard streams.
const FIRST: i32 = 3;

/// The name of a socket that got none.
const UNNAMED: &str = "unknown";

/// One of them.
type Named = (String, OwnedFd);

/// Those that nobody has taken; none before the first look.
static LEFT: Mutex<Option<Vec<Named>>> = Mutex::new(None);

/// Takes the one that listens at this address, where there is one.
pub fn at(address: &Address) -> Option<OwnedFd> {
    let mut left = left();
    let left = left.get_or_insert_with(announced);
    let place = left
        .iter()
        .position(|(_, socket)| listens_at(socket, address))?;
    Some(left.remove(place).1)
}

/// Takes all that are left, with their names.
pub fn rest() -> Vec<(String, OwnedFd)> {
    left().replace(Vec::new()).unwrap_or_else(announced)
}

fn left() -> MutexGuard<'static, Option<Vec<Named>>> {
    // Whole at every moment.
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn announced() -> Vec<Named> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let named = names(
        std::process::id(),
        &variable("LISTEN_PID"),
        &variable("LISTEN_FDS"),
        &variable("LISTEN_FDNAMES"),
    );
    let taken = named.into_iter().filter_map(|(number, name)| {
        match tether_sys::inherited(number) {
            Ok(socket) => Some((name, socket)),
            Err(error) => {
                tracing::warn!(number, name, %error, "Cannot take a socket that LISTEN_FDS announces");
                None
            }
        }
    });
    taken.collect()
}

/// Numbers and names, where the variables speak to the process `own`.
fn names(own: u32, pid: &str, count: &str, names: &str) -> Vec<(i32, String)> {
    if pid.parse() != Ok(own) {
        return Vec::new();
    }
    let count = count.parse::<u16>().unwrap_or(0);
    let mut names = names.split(':').filter(|name| !name.is_empty());
    (FIRST..FIRST + i32::from(count))
        .map(|number| (number, names.next().unwrap_or(UNNAMED).to_owned()))
        .collect()
}

fn listens_at(socket: &OwnedFd, address: &Address) -> bool {
    let Ok(bound) = getsockname(socket) else {
        return false;
    };
    match address {
        Address::Unix(path) => {
            let bound = SocketAddrUnix::try_from(bound);
            let bound = bound
                .ok()
                .and_then(|bound| bound.path_bytes().map(<[u8]>::to_vec));
            bound.is_some_and(|bound| bound == path.as_os_str().as_bytes())
        }
        Address::Tcp { host, port } => {
            let wanted = host.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, *port));
            let bound = SocketAddr::try_from(bound);
            wanted.is_ok_and(|wanted| bound.is_ok_and(|bound| bound == wanted))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_known_by_name_and_those_of_another_process_are_left_alone() {
        let own = |number, name: &str| (number, name.to_owned());

        assert_eq!(
            names(7, "7", "3", "http:grpc"),
            [own(3, "http"), own(4, "grpc"), own(5, "unknown")]
        );
        assert!(names(7, "8", "3", "http").is_empty());
        assert!(names(7, "7", "-1", "http").is_empty());
        assert!(names(7, "", "", "").is_empty());
    }

    #[test]
    fn a_socket_is_known_by_where_it_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let unix = std::os::unix::net::UnixListener::bind(&path)
            .unwrap()
            .into();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let tcp = tcp.into();
        let address = |text: String| text.parse::<Address>().unwrap();

        assert!(listens_at(
            &unix,
            &address(format!("unix:{}", path.display()))
        ));
        assert!(listens_at(&tcp, &address(format!("127.0.0.1:{port}"))));
        assert!(!listens_at(&unix, &address(format!("127.0.0.1:{port}"))));
        assert!(!listens_at(&tcp, &address(format!("127.0.0.2:{port}"))));
        assert!(!listens_at(
            &unix,
            &address(format!("unix:{}x", path.display()))
        ));
    }
}
