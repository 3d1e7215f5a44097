//! Which network TCP is spoken over: the machine's, unless a simulation has put another one in its place.
//!
//! A simulation runs every service on one thread, so it is a thread that has another network.

use std::{cell::RefCell, fmt, io, net::SocketAddr, pin::Pin, sync::Arc};

use tokio::io::{AsyncRead, AsyncWrite};

/// What a network takes its time for.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Where connections come from.
pub trait Network: Send + Sync {
    /// Connects to a port of a host.
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> Pending<'a, Box<dyn Bytes>>;

    /// Listens at a port of a host.
    fn bind<'a>(&'a self, host: &'a str, port: u16) -> Pending<'a, Box<dyn Accept>>;
}

/// A connection on a network that is not the machine's.
pub trait Bytes: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {
    /// Who is at the other end.
    ///
    /// # Errors
    /// When nobody is any more.
    fn peer(&self) -> io::Result<SocketAddr>;
}

/// A port on a network that is not the machine's.
pub trait Accept: fmt::Debug + Send + Sync {
    /// The next connection.
    fn accept(&self) -> Pending<'_, Box<dyn Bytes>>;

    /// Where it listens.
    ///
    /// # Errors
    /// When the network does not tell.
    fn local(&self) -> io::Result<SocketAddr>;
}

thread_local! {
    static NETWORK: RefCell<Option<Arc<dyn Network>>> = const { RefCell::new(None) };
}

/// From here on this thread's TCP goes over `network`; over the machine's again where there is none.
pub fn install(network: Option<Arc<dyn Network>>) {
    NETWORK.with_borrow_mut(|installed| *installed = network);
}

/// The network in the machine's place, where there is one.
pub(crate) fn installed() -> Option<Arc<dyn Network>> {
    NETWORK.with_borrow(Clone::clone)
}
