//! One accepted connection, of either kind.

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::network::Bytes;

/// A byte stream over TCP or a unix socket.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
    /// Over a network that is not the machine's.
    Other(Box<dyn Bytes>),
    /// Over one of those, with TLS.
    Tls(Box<TlsStream<Stream>>),
}

/// Who is at the other end; found in a request's extensions.
#[derive(Debug, Clone)]
pub enum Peer {
    /// A process of this machine, as the kernel vouches.
    Process {
        /// Its user.
        uid: u32,
        /// Its process id when it connected.
        pid: Option<u32>,
    },
    /// An address.
    Address(SocketAddr),
    /// Gone before anybody asked.
    Unknown,
}

impl Stream {
    fn peer(&self) -> Peer {
        match self {
            Self::Tcp(stream) => stream.peer_addr().map_or(Peer::Unknown, Peer::Address),
            Self::Other(stream) => stream.peer().map_or(Peer::Unknown, Peer::Address),
            Self::Tls(stream) => stream.get_ref().0.peer(),
            Self::Unix(stream) => stream
                .peer_cred()
                .map_or(Peer::Unknown, |peer| Peer::Process {
                    uid: peer.uid(),
                    pid: peer.pid().and_then(|pid| pid.try_into().ok()),
                }),
        }
    }
}

/// A byte stream between two runtimes: the one that accepted it watches it no more.
#[derive(Debug)]
pub enum Detached {
    /// Over TCP.
    Tcp(std::net::TcpStream),
    /// Over a unix socket.
    Unix(std::os::unix::net::UnixStream),
    /// Over a network that is not the machine's, and belongs to no runtime.
    Other(Box<dyn Bytes>),
}

impl Stream {
    /// Takes it away from its runtime.
    ///
    /// # Errors
    /// When the system refuses that.
    pub fn detach(self) -> io::Result<Detached> {
        Ok(match self {
            Self::Tcp(stream) => Detached::Tcp(stream.into_std()?),
            Self::Unix(stream) => Detached::Unix(stream.into_std()?),
            Self::Other(stream) => Detached::Other(stream),
            // It is agreed on where it is spoken.
            Self::Tls(_) => return Err(io::ErrorKind::Unsupported.into()),
        })
    }
}

impl Detached {
    /// Gives it to the runtime that this is called in.
    ///
    /// # Errors
    /// When the system refuses that.
    pub fn attach(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            Self::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
            Self::Other(stream) => Stream::Other(stream),
        })
    }
}

macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Unix($stream) => $call,
            Stream::Other($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// An accepted stream that fails once it is cut: tonic goes on serving connections whose peers never
/// hang up, and a service that stops must not wait for them.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    pub(super) fn new(stream: Stream, cut: CancellationToken) -> Self {
        Self {
            stream,
            cut: Box::pin(cut.cancelled_owned()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.stream.peer()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
