//! Making a unix socket: private from its first moment, and never stolen from a live process.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _},
        net::UnixStream,
    },
    path::Path,
};

use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_to, listen,
        socket_with,
    },
};
use tether_types::Address;
use tokio::net::UnixListener;

use super::Error;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

pub(super) fn bind(path: &Path) -> Result<UnixListener, Error> {
    let address = Address::Unix(path.to_owned());
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let refuse = |error| Error::new(&address, error);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(refuse)?;
    // Two that start at once must not both find a dead socket and the slower one remove the
    // faster one's new one. The lock goes with the handle.
    let directory = File::open(directory).map_err(refuse)?;
    flock(&directory, FlockOperation::LockExclusive).map_err(|error| refuse(error.into()))?;
    make_way(path, &address)?;
    private(path).map_err(refuse)
}

/// Removes the socket of a dead process.
fn make_way(path: &Path, address: &Address) -> Result<(), Error> {
    let refuse = |error| Error::new(address, error);
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(refuse)?,
    };
    if !found.file_type().is_socket() {
        return Err(Error::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(refuse)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(refuse(error)),
        // Full or busy is alive, too.
        _ => Err(Error::InUse(address.clone())),
    }
}

fn private(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // On Linux a socket's file gets the mode the socket has when it is bound, so there is no moment
    // in which others could connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind_to(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}
