//! Connecting to a service by its address.

use std::{future::Future, io, time::Duration};

use hyper_util::rt::TokioIo;
use tether_types::Address;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tonic::transport::{self, Channel, Endpoint, Uri};
use tower::service_fn;

use crate::{
    listen::Stream,
    network,
    serve::{CONNECTION_WINDOW, STREAM_WINDOW},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A channel that connects when it is first used, and again when it was cut.
///
/// It sends no HTTP/2 pings: gRPC servers in C and Python answer idle pings with `GOAWAY`, and our own
/// streams carry signs of life that mean more than a ping does.
pub fn connect(address: &Address) -> Channel {
    // The authority only fills the `:authority` header; the connector below knows where to go.
    let endpoint = match address {
        Address::Tcp { .. } => Endpoint::try_from(format!("http://{address}")).ok(),
        Address::Unix(_) => None,
    };
    let endpoint = endpoint.unwrap_or_else(|| Endpoint::from_static("http://localhost"));
    let endpoint = endpoint
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW);
    let address = address.clone();
    endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| within(address.clone())))
}

/// A channel to `address` that stands, with settings of its own.
///
/// # Errors
/// When it cannot be reached.
pub async fn connect_as(
    endpoint: Endpoint,
    address: &Address,
) -> Result<Channel, transport::Error> {
    let address = address.clone();
    endpoint
        .connect_with_connector(service_fn(move |_: Uri| within(address.clone())))
        .await
}

/// A channel whose connections are made by `dial`, when it is first used and again when one was cut; with settings
/// of its own.
pub fn connect_by<F, S>(endpoint: Endpoint, dial: impl Fn() -> F + Send + 'static) -> Channel
where
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let endpoint = endpoint
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW);
    endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let dialled = dial();
        async { dialled.await.map(TokioIo::new) }
    }))
}

/// A connection to `address`, however long it takes.
///
/// # Errors
/// As the network says.
pub async fn dial(address: &Address) -> io::Result<Stream> {
    let (host, port) = match address {
        Address::Unix(path) => return UnixStream::connect(path).await.map(Stream::Unix),
        Address::Tcp { host, port } => (host.as_str(), *port),
    };
    if let Some(network) = network::installed() {
        return network.connect(host, port).await.map(Stream::Other);
    }
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(Stream::Tcp(stream))
}

async fn within(address: Address) -> io::Result<TokioIo<Stream>> {
    let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dial(&address))
        .await
        .unwrap_or_else(|_| {
            let text = format!("no connection within {CONNECT_TIMEOUT:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        });
    match dialled {
        Ok(stream) => Ok(TokioIo::new(stream)),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("cannot connect to `{address}`: {error}"),
        )),
    }
}
