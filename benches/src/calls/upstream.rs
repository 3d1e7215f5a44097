//! The worker behind every proxy: it answers at once, and looks at nothing it need not.

use std::{future::poll_fn, net::SocketAddr};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    server::{self, SendResponse},
};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::wire::{CONNECTION_WINDOW, ECHO, Order, STREAM, STREAM_WINDOW, now, numbered};

/// A running server; it ends with this.
#[derive(Debug)]
pub(crate) struct Upstream {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Upstream {
    /// Listens on a port of its own.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A connection that breaks is seen by who made it.
                tokio::spawn(async move { serve(stream).await.ok() });
            }
        });
        Ok(Self { address, accepting })
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

async fn serve(stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = server::Builder::new()
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_window_size(STREAM_WINDOW)
        .max_concurrent_streams(100_000)
        // Whoever loads this is trusted, and cancels by the thousand.
        .max_pending_accept_reset_streams(1_000_000)
        .max_local_error_reset_streams(None)
        .data_frame_budget(CONNECTION_WINDOW as usize)
        .handshake(stream)
        .await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        // A call that breaks is seen by who made it.
        tokio::spawn(async move { answer(request, respond).await.ok() });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> anyhow::Result<()> {
    let (head, mut body) = request.into_parts();
    let mut chunks = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        chunks.push(chunk);
    }
    let mut response = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, grpc);
    let mut stream = respond.send_response(response, false)?;
    match head.uri.path() {
        ECHO => {
            for chunk in chunks {
                stream.send_data(chunk, false)?;
            }
        }
        STREAM => {
            let whole = chunks.iter().fold(BytesMut::new(), |mut whole, chunk| {
                whole.extend_from_slice(chunk);
                whole
            });
            let order = Order::read(whole.freeze()).context("it asks for nothing")?;
            send(&mut stream, order).await?;
        }
        other => anyhow::bail!("there is no method `{other}`"),
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(stream.send_trailers(trailers)?)
}

async fn send(stream: &mut SendStream<Bytes>, order: Order) -> anyhow::Result<()> {
    if order.pause.is_zero() {
        let message = numbered(0, order.bytes);
        for _ in 0..order.messages {
            room(stream, message.len()).await?;
            stream.send_data(message.clone(), false)?;
        }
    } else {
        let mut pace = interval(order.pause);
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for _ in 0..order.messages {
            pace.tick().await;
            let message = numbered(now(), order.bytes);
            room(stream, message.len()).await?;
            stream.send_data(message, false)?;
        }
    }
    if order.hangs {
        poll_fn(|context| stream.poll_reset(context)).await?;
    }
    Ok(())
}

/// Waits until so many bytes may be sent.
async fn room(stream: &mut SendStream<Bytes>, bytes: usize) -> anyhow::Result<()> {
    stream.reserve_capacity(bytes);
    while stream.capacity() < bytes {
        let more = poll_fn(|context| stream.poll_capacity(context)).await;
        more.context("nobody listens any more")??;
    }
    Ok(())
}
