//! Makes a listening socket for workers: open to nobody else before it listens, and never stolen.

use std::{
    fs, io,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, fchmod},
    net::{
        AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, getsockname, listen,
        socket_with,
    },
};
use tether_types::Address;

/// Connections that may wait to be accepted, also while no worker is there.
const BACKLOG: i32 = 1024;

/// Listens there; port 0 takes a free one. What a dead process left of a unix socket is removed.
pub(super) fn bind(address: &Address) -> io::Result<OwnedFd> {
    let socket: OwnedFd = match address {
        Address::Unix(path) => unix(path)?,
        Address::Tcp { host, port } => TcpListener::bind((host.as_str(), *port))?.into(),
    };
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn unix(path: &Path) -> io::Result<OwnedFd> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    make_way(path)?;
    let kind = SocketType::STREAM;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    // The file gets the mode that the socket has when it is bound.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Removes the socket of a dead process.
fn make_way(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is no socket is there",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // Full or busy is alive, too.
        Err(_) | Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// Where callers on this machine reach a listening socket.
pub(super) fn local_address(socket: impl AsFd) -> io::Result<Address> {
    let address = getsockname(socket)?;
    if let Ok(path) = SocketAddrUnix::try_from(address.clone()) {
        let path = path.path_bytes().map(crate::launch::path_of);
        return path
            .map(|path| Address::Unix(PathBuf::from(path)))
            .ok_or_else(nowhere);
    }
    let mut address =
        std::net::SocketAddr::try_from(address as SocketAddrAny).map_err(|_| nowhere())?;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(Address::Tcp {
        host: address.ip().to_string(),
        port: address.port(),
    })
}

fn nowhere() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "it is no socket that can be connected to, expected one of unix with a path, or of TCP",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_of_a_dead_process_makes_way_and_a_live_one_or_a_file_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/w.sock");
        let address = Address::Unix(path.clone());

        let first = bind(&address).unwrap();
        let refused = bind(&address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(local_address(&first).unwrap(), address);
        drop(first);
        assert!(bind(&address).is_ok());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(bind(&address).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_free_port_is_told_and_a_socket_for_everybody_is_reached_from_here() {
        let address = Address::Tcp {
            host: "0.0.0.0".into(),
            port: 0,
        };
        let socket = bind(&address).unwrap();

        let Address::Tcp { host, port } = local_address(&socket).unwrap() else {
            panic!("it is TCP");
        };

        assert_eq!(host, "127.0.0.1");
        assert!(std::net::TcpStream::connect((host, port)).is_ok());
    }
}
