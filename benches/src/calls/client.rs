//! A client that makes sure of every answer: its status in trailers, its length, and that it is its own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{self, ResponseFuture, SendRequest},
};
use http::{
    HeaderName, HeaderValue, Method, Request, Uri, header,
    uri::{Authority, Scheme},
};
use tokio::net::TcpStream;

use super::wire::{CONNECTION_WINDOW, Order, STREAM, STREAM_WINDOW, TOKEN_BYTES};

/// Longest time for a stream to be open.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pool that calls are for; only ours asks, and all are told.
pub(crate) const POOL: &str = "bench";

/// One connection, opened again when it is over.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    port: u16,
    sender: SendRequest<Bytes>,
}

/// A request as often as it is made.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    head: Request<()>,
    message: Bytes,
}

impl Ask {
    /// One whole message for a method.
    pub(crate) fn new(method: &'static str, message: Bytes) -> Self {
        let mut head = Request::new(());
        *head.method_mut() = Method::POST;
        let mut uri = Uri::from_static(method).into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(Authority::from_static("bench.test"));
        *head.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        let headers = [
            (header::CONTENT_TYPE, "application/grpc"),
            (header::TE, "trailers"),
            (header::USER_AGENT, "grpc-bench/1"),
            (HeaderName::from_static("tether-pool"), POOL),
        ];
        for (name, value) in headers {
            head.headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        Self { head, message }
    }

    /// For a stream of one message, which shows that it is open all the way, and of silence from then on.
    pub(crate) fn silence() -> Self {
        let order = Order {
            messages: 1,
            bytes: TOKEN_BYTES,
            pause: Duration::ZERO,
            hangs: true,
        };
        Self::new(STREAM, order.framed())
    }
}

/// The beginning of an answer, and the rest to come.
#[derive(Debug)]
pub(crate) struct Answer {
    body: RecvStream,
    bytes: usize,
}

impl Client {
    pub(crate) async fn connect(port: u16) -> anyhow::Result<Self> {
        Ok(Self {
            port,
            sender: open(port).await?,
        })
    }

    /// Sends a whole request.
    pub(crate) async fn start(
        &mut self,
        ask: &Ask,
    ) -> anyhow::Result<(ResponseFuture, SendStream<Bytes>)> {
        // One that was told to go away has to come again; nothing is lost by that.
        self.sender = match self.sender.clone().ready().await {
            Ok(ready) => ready,
            Err(_) => open(self.port).await?.ready().await?,
        };
        let (response, mut stream) = self.sender.send_request(ask.head.clone(), false)?;
        stream.send_data(ask.message.clone(), true)?;
        Ok((response, stream))
    }

    /// Sends a whole request and waits for the beginning of the answer.
    pub(crate) async fn call(&mut self, ask: &Ask) -> anyhow::Result<Answer> {
        let (response, _) = self.start(ask).await?;
        let response = response.await?;
        let status = response.status();
        anyhow::ensure!(status == http::StatusCode::OK, "status {status}");
        let headers = response.headers();
        if let Some(early) = headers.get("grpc-status") {
            let why = headers.get("grpc-message");
            anyhow::bail!("refused with {early:?}: {why:?}");
        }
        Ok(Answer {
            body: response.into_body(),
            bytes: 0,
        })
    }

    /// Whether its connection is over.
    pub(crate) async fn is_over(&self) -> bool {
        self.sender.clone().ready().await.is_err()
    }

    /// A stream that is open, with its first message read.
    pub(crate) async fn open(mut self, ask: &Ask) -> anyhow::Result<Answer> {
        let opening = async {
            let mut answer = self.call(ask).await?;
            anyhow::ensure!(answer.more().await?.is_some(), "it ended at once");
            Ok(answer)
        };
        tokio::time::timeout(PATIENCE, opening).await?
    }

    /// One message each way: what comes back is what was sent.
    pub(crate) async fn echo(&mut self, ask: &Ask) -> anyhow::Result<()> {
        let mut answer = self.call(ask).await?;
        while let Some(chunk) = answer.more().await? {
            let from = answer.bytes - chunk.len();
            let same = ask.message.get(from..answer.bytes) == Some(&chunk[..]);
            anyhow::ensure!(same, "the answer is not what was sent");
        }
        answer.end(ask.message.len()).await
    }
}

impl Answer {
    /// More of the body; none at its end.
    pub(crate) async fn more(&mut self) -> anyhow::Result<Option<Bytes>> {
        let Some(chunk) = self.body.data().await.transpose()? else {
            return Ok(None);
        };
        self.body.flow_control().release_capacity(chunk.len())?;
        self.bytes += chunk.len();
        Ok(Some(chunk))
    }

    /// The trailers, after a body of so many bytes.
    pub(crate) async fn end(mut self, bytes: usize) -> anyhow::Result<()> {
        let trailers = self.body.trailers().await?.context("no trailers")?;
        let status = trailers.get("grpc-status").context("no status")?;
        anyhow::ensure!(status == "0", "grpc-status {status:?}");
        anyhow::ensure!(self.bytes == bytes, "{} bytes, not {bytes}", self.bytes);
        Ok(())
    }
}

async fn open(port: u16) -> anyhow::Result<SendRequest<Bytes>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = client::Builder::new()
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_window_size(STREAM_WINDOW)
        .enable_push(false)
        .max_concurrent_reset_streams(10_000)
        .max_local_error_reset_streams(None)
        .data_frame_budget(CONNECTION_WINDOW as usize)
        .handshake(stream)
        .await?;
    // How it ends is told to the calls on it.
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender)
}
