//! The end of a connection that asks.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Response, request::Parts};
use tether_http2::{Config, Error, Reason, Role};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    driver::Driver,
    handle::Handle,
    openers::Ticket,
    shared::Shared,
    streams::{RecvStream, SendStream},
};

/// Begins a connection. Nothing moves until [`ClientConnection`] is run.
pub fn connect<S>(io: S, config: Config) -> (SendRequest, ClientConnection<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let shared = Shared::new(Role::Client, config);
    let driver = Driver::new(io, Arc::clone(&shared));
    let senders = Arc::new(Senders(shared));
    (SendRequest::new(senders), ClientConnection(driver))
}

/// Drives a connection, until nobody needs it or it is gone.
#[derive(Debug)]
#[must_use = "nothing moves unless it is run"]
pub struct ClientConnection<S>(Driver<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Future for ClientConnection<S> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx)
    }
}

/// What those who can open streams share: with the last of them it is gone.
#[derive(Debug)]
struct Senders(Arc<Shared>);

impl Drop for Senders {
    fn drop(&mut self) {
        let mut core = self.0.lock();
        core.connection.close();
        core.on_output();
    }
}

/// The way to send requests.
#[derive(Debug)]
pub struct SendRequest {
    senders: Arc<Senders>,
    /// Whether a stream is kept free for it.
    promised: bool,
    /// Its place among those who wait for one.
    ticket: Option<Ticket>,
    /// How many streams the other side takes at once, as it was last found.
    most: u32,
}

impl Clone for SendRequest {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.senders))
    }
}

impl SendRequest {
    fn new(senders: Arc<Senders>) -> Self {
        Self {
            senders,
            promised: false,
            ticket: None,
            most: 0,
        }
    }

    /// Waits until the other side takes another stream, and keeps that for the request to come.
    ///
    /// # Errors
    /// Where the connection takes no more.
    pub async fn ready(mut self) -> Result<Self, Error> {
        poll_fn(|cx| self.poll_ready(cx)).await?;
        Ok(self)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut core = self.senders.0.lock();
        if let Some(error) = core.connection.is_closed() {
            return Poll::Ready(Err(error));
        }
        self.most = core.connection.max_streams();
        if self.promised {
            return Poll::Ready(Ok(()));
        }
        match self.ticket {
            // It was promised to it then.
            Some(ticket) if core.openers.had_turn(ticket) => self.ticket = None,
            Some(ticket) => {
                core.openers.wait(ticket, cx);
                return Poll::Pending;
            }
            None if core.free() > 0 && core.openers.is_empty() => core.promised += 1,
            None => {
                self.ticket = Some(core.openers.join(cx));
                core.wake_openers();
                return Poll::Pending;
            }
        }
        self.promised = true;
        Poll::Ready(Ok(()))
    }

    /// How many streams the other side takes at once, as it was when this was last ready.
    pub fn current_max_send_streams(&self) -> usize {
        self.most as usize
    }

    /// Sends the head of a request, which may be all of it.
    ///
    /// # Errors
    /// Where the connection takes no more streams.
    pub fn send_request(
        &mut self,
        head: &Parts,
        ends: bool,
    ) -> Result<(ResponseFuture, SendStream), Error> {
        let shared = &self.senders.0;
        let mut core = shared.lock();
        if std::mem::take(&mut self.promised) {
            core.promised -= 1;
        } else if core.free() == 0 && core.connection.is_closed().is_none() {
            let reason = Reason::REFUSED_STREAM;
            let remote = false;
            return Err(Error::Reset { reason, remote });
        }
        let (method, uri, fields) = (&head.method, &head.uri, &head.headers);
        let key = core.connection.open(method, uri, fields, ends)?;
        core.occupy(key, 2);
        core.on_output();
        if core.connection.is_closed().is_some() {
            // It was the last that there was a number for.
            core.wake_openers();
        }
        drop(core);
        let handle = |reads| Handle::new(shared, key, reads);
        let response = ResponseFuture(Some(RecvStream::new(handle(true))));
        Ok((response, SendStream(handle(false))))
    }
}

#[cfg(test)]
impl SendRequest {
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.senders.0)
    }
}

impl Drop for SendRequest {
    fn drop(&mut self) {
        if !self.promised && self.ticket.is_none() {
            return;
        }
        let mut core = self.senders.0.lock();
        let had_turn = self.ticket.map(|ticket| core.openers.had_turn(ticket));
        if self.promised || had_turn == Some(true) {
            core.promised -= 1;
            core.wake_openers();
        } else if let Some(ticket) = self.ticket {
            core.openers.leave(ticket);
        }
    }
}

/// The answer to a request, when it has begun.
#[derive(Debug)]
pub struct ResponseFuture(Option<RecvStream>);

impl Future for ResponseFuture {
    type Output = Result<Response<RecvStream>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(stream) = &self.0 else {
            return Poll::Ready(Err(Error::Misused("the answer was taken before")));
        };
        let head = {
            let mut core = stream.handle.lock();
            let head = core.take_head(stream.handle.key);
            let slot = core.slot(stream.handle.key);
            match (head, &slot.error) {
                (Some(head), _) => head,
                (None, Some(error)) => return Poll::Ready(Err(Error::clone(error))),
                (None, None) => {
                    slot.on_read(cx);
                    return Poll::Pending;
                }
            }
        };
        let stream = self.0.take();
        let stream = stream.ok_or(Error::Misused("the answer was taken before"))?;
        Poll::Ready(Ok(Response::from_parts(head, stream)))
    }
}
