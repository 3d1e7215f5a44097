//! One connection to a gRPC server, made when it is first needed and again when it broke: at once, not after a pause.

use std::{io, time::Duration};

use http::{Request, Response, Uri, uri::PathAndQuery};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::Mutex, time::timeout};

use crate::relay::WINDOW;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Upstream {
    address: String,
    connection: Mutex<Option<SendRequest<Incoming>>>,
}

impl Upstream {
    pub(crate) fn new(address: String) -> Self {
        Self {
            address,
            connection: Mutex::default(),
        }
    }

    /// Sends a call on, and tells the head of the answer.
    ///
    /// # Errors
    /// When there is no connection to be had, or it breaks.
    pub(crate) async fn send(
        &self,
        mut request: Request<Incoming>,
    ) -> io::Result<Response<Incoming>> {
        let path = request.uri().path_and_query().cloned();
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.address.as_str())
            .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        *request.uri_mut() = uri.build().map_err(io::Error::other)?;
        let mut connection = self.connection().await?;
        connection.ready().await.map_err(io::Error::other)?;
        connection
            .send_request(request)
            .await
            .map_err(io::Error::other)
    }

    async fn connection(&self) -> io::Result<SendRequest<Incoming>> {
        let mut kept = self.connection.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| !kept.is_closed()) {
            return Ok(kept.clone());
        }
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.address)).await;
        let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // Ends with the last call on it, once nobody has the sender any more.
        tokio::spawn(connection);
        Ok(kept.insert(sender).clone())
    }
}
