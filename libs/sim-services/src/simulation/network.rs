//! The simulated network, as services see one.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tether_kit::network::{self, Accept, Bytes, Network, Pending};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

/// From here on this thread's TCP is simulated.
pub(crate) fn install() {
    network::install(Some(Arc::new(Simulated)));
}

struct Simulated;

#[derive(Debug)]
struct Wire(TcpStream);

struct Port(TcpListener);

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Port").field(&self.0.local_addr()).finish()
    }
}

impl Network for Simulated {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> Pending<'a, Box<dyn Bytes>> {
        Box::pin(async move {
            let stream = TcpStream::connect((host.to_owned(), port)).await?;
            Ok(Box::new(Wire(stream)) as Box<dyn Bytes>)
        })
    }

    fn bind<'a>(&'a self, _: &'a str, port: u16) -> Pending<'a, Box<dyn Accept>> {
        Box::pin(async move {
            let listener = TcpListener::bind(("0.0.0.0", port)).await?;
            Ok(Box::new(Port(listener)) as Box<dyn Accept>)
        })
    }
}

impl Accept for Port {
    fn accept(&self) -> Pending<'_, Box<dyn Bytes>> {
        Box::pin(async move {
            let (stream, _) = self.0.accept().await?;
            Ok(Box::new(Wire(stream)) as Box<dyn Bytes>)
        })
    }

    fn local(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Bytes for Wire {
    fn peer(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
