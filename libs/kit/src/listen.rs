//! Listening: unix sockets that only their owner reaches, and TCP that is not open to the world by
//! accident.

mod connection;
mod handle;
mod socket;

use std::{
    future::ready, io, net::SocketAddr, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration,
};

use futures::{Stream as Items, StreamExt as _, stream};
use tether_types::Address;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

pub use connection::{Connection, Detached, Peer, Stream};
pub use handle::{Handle, SocketFile};

use crate::{
    inherited,
    network::{self, Accept},
    tls::Acceptor,
};

/// How many clients may be about to agree on TLS at a time, and how long each may take.
const HANDSHAKES: usize = 100;
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why an address cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Plain text where others could read along.
    #[error(
        "refusing plain text on `{0}`, which other machines can reach; listen on a loopback address or a unix socket, or set `insecure = true` beside it if every network in between is trusted"
    )]
    Insecure(Address),
    /// The address belongs to a running process.
    #[error("`{0}` is already in use by a running process; stop that one, or listen elsewhere")]
    InUse(Address),
    /// This user may not.
    #[error("this user may not listen at `{address}`; {advice}")]
    Permission {
        /// Where.
        address: Address,
        /// What to do.
        advice: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Something that is no socket is in the way.
    #[error("cannot listen at `unix:{}`: a file that is not a socket is there; move it away", .0.display())]
    NotASocket(PathBuf),
    /// Anything else.
    #[error(
        "cannot listen at `{address}`; check that the address belongs to this machine and is spelled right"
    )]
    Io {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    fn new(address: &Address, source: io::Error) -> Self {
        let address = address.clone();
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(address),
            io::ErrorKind::PermissionDenied => Self::Permission {
                advice: match address {
                    Address::Tcp { .. } => "ports below 1024 are for root, choose a higher one",
                    Address::Unix(_) => "choose a directory this user may write to",
                },
                address,
                source,
            },
            _ => Self::Io { address, source },
        }
    }
}

/// A place where connections come in. A socket's file goes with it, whether it ever served or not.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A unix socket. Its file is removed while it still listens, so nobody else can have put theirs in its place.
    Unix(SocketFile, UnixListener),
    /// A port of a network that is not the machine's.
    Other(Box<dyn Accept>),
    /// One of those, where TLS is spoken.
    Tls(Box<Listener>, Arc<Acceptor>),
}

/// Whether one may listen at `address` at all; touches nothing.
///
/// # Errors
/// [`Error::Insecure`] where others could read along.
pub fn check(address: &Address, insecure: bool) -> Result<(), Error> {
    if !insecure && !address.is_local() {
        return Err(Error::Insecure(address.clone()));
    }
    Ok(())
}

/// Listens at `address`; port 0 takes a free one. Where this process was started with a socket that listens there, that is
/// the one.
///
/// A unix socket is made with mode 0600, in a directory that is made with mode 0700 if it is missing.
/// What a dead process left behind is removed; a live one keeps its socket.
///
/// # Errors
/// Names the address, the cause and what to do.
pub async fn bind(address: &Address, insecure: bool) -> Result<Listener, Error> {
    check(address, insecure)?;
    if let Some(socket) = inherited::at(address) {
        return take_over(socket).map_err(|error| Error::new(address, error));
    }
    match address {
        Address::Unix(path) => socket::bind(path).map(Listener::from),
        Address::Tcp { host, port } => match network::installed() {
            Some(network) => network.bind(host, *port).await.map(Listener::Other),
            None => TcpListener::bind((host.as_str(), *port))
                .await
                .map(Listener::Tcp),
        }
        .map_err(|error| Error::new(address, error)),
    }
}

/// A socket that whoever started this process goes on listening at, so that its file is not ours to remove.
fn take_over(socket: OwnedFd) -> io::Result<Listener> {
    let listener = Listener::from_socket(socket)?;
    listener.handle()?.hand_over();
    Ok(listener)
}

impl Listener {
    /// Where it listens, with the port that was taken.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn local_address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(tcp),
            Self::Other(port) => port.local().map(tcp),
            Self::Tls(listener, _) => listener.local_address(),
            Self::Unix(_, listener) => match listener.local_addr()?.as_pathname() {
                Some(path) => Ok(Address::Unix(path.to_owned())),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        }
    }

    /// The connections as they come, for `serve_with_incoming_shutdown`; never ends. All of them fail
    /// once `cut` is cancelled. Dropping the stream closes the listener and removes its socket.
    pub fn incoming(self, cut: CancellationToken) -> impl Items<Item = io::Result<Connection>> {
        let tls = self.tls().cloned();
        let accepted = stream::unfold(self, |listener| async {
            Some((listener.next().await, listener))
        });
        let secured = accepted.map(move |stream| secured(stream, tls.clone()));
        let connected = move |stream: Option<Stream>| {
            ready(stream.map(|stream| Ok(Connection::new(stream, cut.clone()))))
        };
        secured.buffer_unordered(HANDSHAKES).filter_map(connected)
    }

    /// With what TLS is spoken here, where it is: what comes out of `next` is to go through it.
    pub fn tls(&self) -> Option<&Arc<Acceptor>> {
        match self {
            Self::Tls(_, acceptor) => Some(acceptor),
            Self::Tcp(_) | Self::Unix(..) | Self::Other(_) => None,
        }
    }

    /// The same, with TLS.
    #[must_use]
    pub fn with_tls(self, acceptor: Arc<Acceptor>) -> Self {
        Self::Tls(Box::new(self), acceptor)
    }

    /// The next connection, as it is: where TLS is spoken, before a word of that.
    pub async fn next(&self) -> Stream {
        loop {
            match self.accept().await {
                Ok(stream) => return stream,
                // One connection that failed, or too many open files: neither is a reason to stop,
                // and the pause keeps the second from taking a whole core.
                Err(error) => {
                    tracing::warn!(%error, "A connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(_, listener) => Ok(Stream::Unix(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Other(port) => Ok(Stream::Other(port.accept().await?)),
            Self::Tls(listener, _) => Box::pin(listener.accept()).await,
        }
    }
}

/// A connection with TLS, where that is to be; none where its client does not manage.
async fn secured(stream: Stream, tls: Option<Arc<Acceptor>>) -> Option<Stream> {
    let Some(tls) = tls else { return Some(stream) };
    let accepted = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
    match accepted.unwrap_or_else(|late| Err(late.into())) {
        Ok(stream) => Some(stream),
        Err(error) => {
            tracing::debug!(%error, "A client did not come to speak TLS");
            None
        }
    }
}

fn tcp(local: SocketAddr) -> Address {
    Address::Tcp {
        host: local.ip().to_string(),
        port: local.port(),
    }
}
