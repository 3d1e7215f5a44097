//! One connection to a gRPC server, made when it is first needed and again when it broke: at once, not after a pause.

use std::{error::Error, io, time::Duration};

use http::{Request, Response, Uri, uri::PathAndQuery};
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tether_kit::serve::{CONNECTION_WINDOW, STREAM_WINDOW};
use tokio::{net::TcpStream, sync::Mutex, time::timeout};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Upstream<B = Incoming> {
    address: String,
    connection: Mutex<Option<SendRequest<B>>>,
}

impl<B> Upstream<B>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
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
    pub(crate) async fn send(&self, mut request: Request<B>) -> io::Result<Response<Incoming>> {
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

    /// Also who waits for another's try waits no longer.
    async fn connection(&self) -> io::Result<SendRequest<B>> {
        let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn connect(&self) -> io::Result<SendRequest<B>> {
        let mut kept = self.connection.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| !kept.is_closed()) {
            return Ok(kept.clone());
        }
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // Ends with the last call on it, once nobody has the sender any more.
        tokio::spawn(connection);
        Ok(kept.insert(sender).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use tokio::net::{TcpListener, UnixListener, UnixStream};

    use super::*;
    use crate::{
        passing::Passing,
        relay::{serve, serve_calls},
    };

    const SOME: usize = 4 << 20;
    const MUCH: usize = 100_000_000;
    const DEADLINE: Duration = Duration::from_secs(60);

    /// Answers `Echo` with what it is sent, and `Stall` with much; reads nothing of `Unread`.
    async fn answer(request: Request<Incoming>) -> Response<Passing> {
        let answer = match request.uri().path() {
            "/Stall" => Bytes::from(vec![1; SOME]),
            "/Unread" => {
                let _unread = request;
                std::future::pending().await
            }
            _ => {
                let sent = request.into_body().collect().await.unwrap();
                sent.to_bytes()
            }
        };
        Response::new(Passing::answer(answer))
    }

    /// What calls that through a relay.
    async fn relayed() -> SendRequest<Full<Bytes>> {
        let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = far.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (stream, _) = far.accept().await.unwrap();
            serve(stream, answer).await;
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.sock");
        let near = UnixListener::bind(&path).unwrap();
        tokio::spawn(serve_calls(near, Arc::new(Upstream::new(address))));
        let stream = UnixStream::connect(path).await.unwrap();
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }

    fn request(path: &str, size: usize) -> Request<Full<Bytes>> {
        let uri = format!("http://worker/{path}");
        let body = Full::from(vec![1; size]);
        Request::post(uri).body(body).unwrap()
    }

    /// How much an echo brings back.
    async fn echo(caller: &mut SendRequest<Full<Bytes>>, size: usize) -> usize {
        let echoed = async {
            let answer = caller.send_request(request("Echo", size)).await.unwrap();
            answer.into_body().collect().await.unwrap().to_bytes().len()
        };
        timeout(DEADLINE, echoed).await.expect("it is answered")
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_stops_no_other_call() {
        let mut caller = relayed().await;
        let _unread = caller.send_request(request("Stall", 0)).await.unwrap();
        let _waits = tokio::spawn(caller.send_request(request("Unread", SOME)));

        for _ in 0..10 {
            assert_eq!(echo(&mut caller, 1000).await, 1000);
        }
        assert_eq!(echo(&mut caller, SOME).await, SOME);
    }

    #[tokio::test]
    async fn what_is_large_comes_through_whole() {
        assert_eq!(echo(&mut relayed().await, MUCH).await, MUCH);
    }
}
