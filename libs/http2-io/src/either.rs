//! HTTP/2 by either of two engines behind the same types: the `h2` crate, and our own. Which one is chosen where a
//! connection is made; errors are told in our own words.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request::Parts};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Config, Error, Reason, recycle};

/// Who reads and writes frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The `h2` crate.
    H2,
    /// `tether-http2`.
    Own,
}

/// Cancelled streams of which h2 remembers that frames may still come.
const REMEMBERED: usize = 10_000;

/// The end of a connection that answers.
#[derive(Debug)]
pub enum Server<S> {
    /// By h2.
    H2(Box<h2::server::Connection<S, Bytes>>),
    /// By our own.
    Own(crate::ServerConnection<S>),
}

/// Serves a client that begins with its preface.
///
/// # Errors
/// Where it does not.
pub async fn accept<S>(engine: Engine, io: S, config: &Config) -> Result<Server<S>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if engine == Engine::Own {
        return Ok(Server::Own(crate::accept(io, *config)));
    }
    let mut builder = h2::server::Builder::new();
    builder
        .initial_connection_window_size(config.connection_window)
        .initial_window_size(config.stream_window)
        .max_concurrent_streams(config.max_streams)
        .max_header_list_size(config.header_list)
        .max_send_buffer_size(config.stream_buffer())
        .max_pending_accept_reset_streams(config.max_abandoned)
        // Counted over the life of a connection, and a BEAM keeps its connection for months.
        .max_local_error_reset_streams(None);
    let connection = builder.handshake(io).await.map_err(of_h2)?;
    Ok(Server::H2(Box::new(connection)))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Server<S> {
    /// The next request; `None` when the connection has ended.
    pub async fn accept(&mut self) -> Option<Result<(Request<RecvStream>, SendResponse), Error>> {
        match self {
            Self::H2(connection) => Some(match connection.accept().await? {
                Ok((request, respond)) => {
                    Ok((request.map(RecvStream::H2), SendResponse::H2(respond)))
                }
                Err(error) => Err(of_h2(error)),
            }),
            Self::Own(connection) => {
                let accepted = connection.accept().await?;
                let own = |(request, respond): (Request<_>, _)| {
                    (request.map(RecvStream::Own), SendResponse::Own(respond))
                };
                Some(accepted.map(own))
            }
        }
    }

    /// Takes no new streams, once the client knows; the connection ends with those under way.
    pub fn graceful_shutdown(&mut self) {
        match self {
            Self::H2(connection) => connection.graceful_shutdown(),
            Self::Own(connection) => connection.graceful_shutdown(),
        }
    }
}

/// Drives a connection to its end.
pub type Driving = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Begins a connection. Nothing moves until the future is run.
///
/// # Errors
/// Where it breaks at once.
pub async fn connect<S>(
    engine: Engine,
    io: S,
    config: &Config,
) -> Result<(SendRequest, Driving), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if engine == Engine::Own {
        let (sender, connection) = crate::connect(io, *config);
        return Ok((SendRequest::Own(sender), Box::pin(connection)));
    }
    let mut builder = h2::client::Builder::new();
    builder
        .initial_connection_window_size(config.connection_window)
        .initial_window_size(config.stream_window)
        .max_header_list_size(config.header_list)
        .max_send_buffer_size(config.stream_buffer())
        // These protect against a hostile peer by closing the connection. Cancelled calls and
        // streams of tiny messages look the same, and closing would end everybody's calls.
        .max_local_error_reset_streams(None)
        .max_concurrent_reset_streams(REMEMBERED)
        .data_frame_budget(config.connection_window as usize)
        .enable_push(false);
    let (sender, connection) = builder.handshake(io).await.map_err(of_h2)?;
    let driving = async { connection.await.map_err(of_h2) };
    Ok((SendRequest::H2(sender), Box::pin(driving)))
}

/// The way to send requests.
#[derive(Debug, Clone)]
pub enum SendRequest {
    /// By h2.
    H2(h2::client::SendRequest<Bytes>),
    /// By our own.
    Own(crate::SendRequest),
}

impl SendRequest {
    /// Waits until another request can be sent.
    ///
    /// # Errors
    /// Where the connection takes no more.
    pub async fn ready(self) -> Result<Self, Error> {
        match self {
            Self::H2(sender) => sender.ready().await.map(Self::H2).map_err(of_h2),
            Self::Own(sender) => sender.ready().await.map(Self::Own),
        }
    }

    /// How many streams the other side takes at once, as it was when this was last ready.
    pub fn current_max_send_streams(&self) -> usize {
        match self {
            Self::H2(sender) => sender.current_max_send_streams(),
            Self::Own(sender) => sender.current_max_send_streams(),
        }
    }

    /// Sends the head of a request, which may be all of it.
    ///
    /// # Errors
    /// Where the connection takes no more.
    pub fn send_request(
        &mut self,
        head: &Parts,
        ends: bool,
    ) -> Result<(ResponseFuture, SendStream), Error> {
        match self {
            Self::H2(sender) => {
                let request = Request::from_parts(head.clone(), ());
                let (response, stream) = sender.send_request(request, ends).map_err(of_h2)?;
                Ok((ResponseFuture::H2(response), SendStream::H2(stream)))
            }
            Self::Own(sender) => {
                let (response, stream) = sender.send_request(head, ends)?;
                Ok((ResponseFuture::Own(response), SendStream::Own(stream)))
            }
        }
    }
}

/// The answer to a request, when it has begun.
#[derive(Debug)]
pub enum ResponseFuture {
    /// By h2.
    H2(h2::client::ResponseFuture),
    /// By our own.
    Own(crate::ResponseFuture),
}

impl Future for ResponseFuture {
    type Output = Result<Response<RecvStream>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::H2(response) => Pin::new(response)
                .poll(cx)
                .map_ok(|head| head.map(RecvStream::H2))
                .map_err(of_h2),
            Self::Own(response) => Pin::new(response)
                .poll(cx)
                .map_ok(|head| head.map(RecvStream::Own)),
        }
    }
}

/// The way to answer a request.
#[derive(Debug)]
pub enum SendResponse {
    /// By h2.
    H2(h2::server::SendResponse<Bytes>),
    /// By our own.
    Own(crate::SendResponse),
}

impl SendResponse {
    /// Sends the head of an answer, which may be all of it.
    ///
    /// # Errors
    /// Where the client is gone.
    pub fn send_response(self, head: Response<()>, ends: bool) -> Result<SendStream, Error> {
        match self {
            Self::H2(mut respond) => {
                let sent = respond.send_response(head, ends);
                sent.map(SendStream::H2).map_err(of_h2)
            }
            Self::Own(respond) => {
                let sent = respond.send_response(&head, ends);
                recycle(head.into_parts().0.headers);
                sent.map(SendStream::Own)
            }
        }
    }

    /// Waits until the client gives the call up.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2(respond) => respond.poll_reset(cx).map(drop),
            Self::Own(respond) => respond.poll_reset(cx).map(drop),
        }
    }
}

/// What the other side sends.
#[derive(Debug)]
pub enum RecvStream {
    /// By h2.
    H2(h2::RecvStream),
    /// By our own.
    Own(crate::RecvStream),
}

impl RecvStream {
    /// The next piece of the body; `None` behind its last.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        match self {
            Self::H2(stream) => stream.poll_data(cx).map_err(of_h2),
            Self::Own(stream) => stream.poll_data(cx),
        }
    }

    /// The fields behind the body, if there are any.
    pub fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, Error>> {
        match self {
            Self::H2(stream) => stream.poll_trailers(cx).map_err(of_h2),
            Self::Own(stream) => stream.poll_trailers(cx),
        }
    }

    /// Whether all was taken and nothing more comes.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::H2(stream) => stream.is_end_stream(),
            Self::Own(stream) => stream.is_end_stream(),
        }
    }

    /// So many bytes were taken: the other side may send as many more.
    pub fn release_capacity(&mut self, bytes: usize) {
        match self {
            // Fails only for more than was received.
            Self::H2(stream) => drop(stream.flow_control().release_capacity(bytes)),
            Self::Own(stream) => stream.release_capacity(bytes),
        }
    }
}

/// What is sent to the other side.
#[derive(Debug)]
pub enum SendStream {
    /// By h2.
    H2(h2::SendStream<Bytes>),
    /// By our own.
    Own(crate::SendStream),
}

impl SendStream {
    /// Asks for room for so many bytes, which are in hand; answers with how many can be sent now.
    pub fn reserve(&mut self, bytes: usize) -> usize {
        match self {
            Self::H2(stream) => {
                stream.reserve_capacity(bytes);
                stream.capacity()
            }
            Self::Own(stream) => stream.capacity(),
        }
    }

    /// Waits until some can be sent; `None` where the stream is over.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<usize, Error>>> {
        match self {
            Self::H2(stream) => stream.poll_capacity(cx).map_err(of_h2),
            Self::Own(stream) => stream.poll_capacity(cx),
        }
    }

    /// Sends a piece that there is capacity for.
    ///
    /// # Errors
    /// Where the stream is over.
    pub fn send_data(&mut self, data: Bytes, ends: bool) -> Result<(), Error> {
        match self {
            Self::H2(stream) => stream.send_data(data, ends).map_err(of_h2),
            Self::Own(stream) => stream.send_data(&data, ends),
        }
    }

    /// Sends a piece if there is capacity for it, and asks for that otherwise; answers whether there was.
    ///
    /// # Errors
    /// Where the stream is over.
    pub fn try_send(&mut self, data: &Bytes, ends: bool) -> Result<bool, Error> {
        match self {
            Self::H2(stream) => {
                stream.reserve_capacity(data.len());
                if stream.capacity() < data.len() {
                    return Ok(false);
                }
                stream.send_data(data.clone(), ends).map_err(of_h2)?;
                Ok(true)
            }
            Self::Own(stream) => stream.try_send(data, ends),
        }
    }

    /// Ends the body with fields.
    ///
    /// # Errors
    /// Where the stream is over.
    pub fn send_trailers(&mut self, fields: HeaderMap) -> Result<(), Error> {
        match self {
            Self::H2(stream) => stream.send_trailers(fields).map_err(of_h2),
            Self::Own(stream) => {
                let sent = stream.send_trailers(&fields);
                recycle(fields);
                sent
            }
        }
    }

    /// Gives the stream up, both ways.
    pub fn send_reset(&mut self, reason: Reason) {
        match self {
            Self::H2(stream) => stream.send_reset(h2::Reason::from(reason.0)),
            Self::Own(stream) => stream.send_reset(reason),
        }
    }

    /// Waits until the other side gives the stream up, or the connection is gone.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2(stream) => stream.poll_reset(cx).map(drop),
            Self::Own(stream) => stream.poll_reset(cx).map(drop),
        }
    }
}

/// h2's errors in our words.
fn of_h2(error: h2::Error) -> Error {
    let remote = error.is_remote();
    match error.reason().map(|reason| Reason(reason.into())) {
        Some(reason) if error.is_reset() => Error::Reset { reason, remote },
        Some(reason) if error.is_go_away() => Error::GoAway { reason, remote },
        _ => {
            let text = error.to_string();
            let kind = error
                .get_io()
                .map_or(std::io::ErrorKind::Other, std::io::Error::kind);
            Error::Io(kind, text)
        }
    }
}
