//! A listening socket that goes on in another process: its queue of connections is the same in both, so that nobody who
//! connects meanwhile notices.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::net::{AddressFamily, sockopt};
use tokio::net::{TcpListener, UnixListener};

use super::Listener;

/// The file of a unix socket, which goes with it unless it is another process's by then.
#[derive(Debug)]
pub struct SocketFile {
    path: Option<PathBuf>,
    handed_over: Arc<AtomicBool>,
}

impl SocketFile {
    pub(super) fn of(listener: &UnixListener) -> Self {
        let address = listener.local_addr().ok();
        let path = address.and_then(|address| Some(address.as_pathname()?.to_owned()));
        Self {
            path,
            handed_over: Arc::default(),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.handed_over.load(Ordering::Acquire) {
            return;
        }
        if let Some(path) = &self.path {
            // Somebody who removed it before us did what we wanted.
            let _ = fs::remove_file(path);
        }
    }
}

/// What another process needs of a listener to go on with it.
#[derive(Debug)]
pub struct Handle {
    socket: OwnedFd,
    handed_over: Option<Arc<AtomicBool>>,
}

impl Handle {
    /// The socket, to be sent there.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// It is there: the socket's file is not removed when this process has done with it.
    pub fn hand_over(self) {
        if let Some(handed_over) = self.handed_over {
            handed_over.store(true, Ordering::Release);
        }
    }
}

impl Listener {
    /// What another process needs to go on with this.
    ///
    /// # Errors
    /// When the system refuses that, or this is none of the machine's networks.
    pub fn handle(&self) -> io::Result<Handle> {
        let (socket, file) = match self {
            Self::Tcp(listener) => (listener.as_fd(), None),
            Self::Unix(file, listener) => (listener.as_fd(), Some(file)),
            Self::Tls(listener, _) => return listener.handle(),
            Self::Other(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(Handle {
            socket: socket.try_clone_to_owned()?,
            handed_over: file.map(|file| Arc::clone(&file.handed_over)),
        })
    }

    /// One that another process has made.
    ///
    /// # Errors
    /// When it is no listening socket.
    pub fn from_socket(socket: OwnedFd) -> io::Result<Self> {
        if !sockopt::socket_acceptconn(&socket)? {
            let number = socket.as_raw_fd();
            let text = format!("descriptor {number} is no socket that listens");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        match sockopt::socket_domain(&socket)? {
            AddressFamily::UNIX => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                Ok(UnixListener::from_std(listener)?.into())
            }
            _ => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
        }
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(SocketFile::of(&listener), listener)
    }
}
