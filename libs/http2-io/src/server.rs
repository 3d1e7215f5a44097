//! The end of a connection that answers.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tether_http2::{Config, Error, Role};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    driver::Driver,
    handle::Handle,
    shared::Shared,
    streams::{RecvStream, SendStream},
};

/// A connection of a client. It moves only while somebody waits in [`accept`](Self::accept).
#[derive(Debug)]
pub struct ServerConnection<S> {
    driver: Driver<S>,
    shared: Arc<Shared>,
    /// Whether others are to have their turn before more is read.
    yields: bool,
}

/// A request, and the way to answer it.
pub type Taken = (Request<RecvStream>, SendResponse);

/// Serves a client that begins with its preface.
pub fn accept<S: AsyncRead + AsyncWrite + Unpin>(io: S, config: Config) -> ServerConnection<S> {
    let shared = Shared::new(Role::Server, config);
    ServerConnection {
        driver: Driver::new(io, Arc::clone(&shared)),
        shared,
        yields: false,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ServerConnection<S> {
    /// The next request; `None` when the client has gone, or all was done after a farewell.
    pub async fn accept(&mut self) -> Option<Result<Taken, Error>> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Taken, Error>>> {
        loop {
            let next = self.shared.lock().next_request();
            if let Some((key, head)) = next {
                let handle = |reads| Handle::new(&self.shared, key, reads);
                let request = Request::from_parts(head, RecvStream::new(handle(true)));
                return Poll::Ready(Some(Ok((request, SendResponse(SendStream(handle(false)))))));
            }
            if std::mem::take(&mut self.yields) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.driver.poll(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(None),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending if self.shared.lock().has_requests() => {
                    self.yields = self.driver.comes_back;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Takes no new streams, once the client knows; the connection ends with those under way.
    pub fn graceful_shutdown(&mut self) {
        let mut core = self.shared.lock();
        core.connection.say_farewell();
        core.on_output();
    }
}

/// The way to answer a request.
#[derive(Debug)]
pub struct SendResponse(SendStream);

impl SendResponse {
    /// Sends the head of an answer, which may be all of it.
    ///
    /// # Errors
    /// Where the stream is over.
    pub fn send_response(self, head: &Response<()>, ends: bool) -> Result<SendStream, Error> {
        {
            let mut core = self.0.0.lock();
            let (status, fields) = (head.status(), head.headers());
            core.connection
                .respond(self.0.0.key, status, fields, ends)?;
            core.on_output();
        }
        Ok(self.0)
    }

    /// Waits until the client gives the call up.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        self.0.poll_reset(cx)
    }
}
