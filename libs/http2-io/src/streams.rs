//! The two directions of a stream, as calls hold them.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use tether_http2::{Error, Reason};

use crate::handle::Handle;

/// What the other side sends.
#[derive(Debug)]
pub struct RecvStream {
    pub(crate) handle: Handle,
    /// Whether that was found when the last piece was taken.
    is_over: bool,
}

impl RecvStream {
    pub(crate) fn new(handle: Handle) -> Self {
        Self {
            handle,
            is_over: false,
        }
    }

    /// The next piece of the body; `None` behind its last.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let key = self.handle.key;
        let untold = std::mem::take(&mut self.handle.untold);
        let mut core = self.handle.lock();
        core.release(key, untold);
        let slot = core.slot(key);
        if let Some(data) = slot.received.pop() {
            let is_over = slot.is_over();
            drop(core);
            self.is_over = is_over;
            return Poll::Ready(Some(Ok(data)));
        }
        if slot.has_ended {
            slot.ends_by_itself = false;
            return Poll::Ready(None);
        }
        if let Some(error) = &slot.error {
            return Poll::Ready(Some(Err(Error::clone(error))));
        }
        slot.on_read(cx);
        Poll::Pending
    }

    /// The fields behind the body, if there are any, once all of the body was taken.
    pub fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, Error>> {
        let key = self.handle.key;
        let untold = std::mem::take(&mut self.handle.untold);
        let mut core = self.handle.lock();
        core.release(key, untold);
        let slot = core.slot(key);
        if slot.has_ended && slot.received.is_empty() {
            return Poll::Ready(Ok(core.take_trailers(key)));
        }
        if !slot.has_ended
            && let Some(error) = &slot.error
        {
            return Poll::Ready(Err(Error::clone(error)));
        }
        slot.on_read(cx);
        Poll::Pending
    }

    /// Whether all was taken and nothing more comes, not even the word that it is over.
    pub fn is_end_stream(&self) -> bool {
        self.is_over || self.handle.lock().slot(self.handle.key).is_over()
    }

    /// So many bytes were taken: the other side may send as many more, and hears of it when somebody asks for what came.
    pub fn release_capacity(&mut self, bytes: usize) {
        self.handle.untold += bytes;
    }
}

/// What is sent to the other side.
#[derive(Debug)]
pub struct SendStream(pub(crate) Handle);

impl SendStream {
    /// How many bytes can be sent now.
    pub fn capacity(&self) -> usize {
        self.0.lock().capacity(self.0.key)
    }

    /// Waits until some can be sent; `None` where the stream is over.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<usize, Error>>> {
        let mut core = self.0.lock();
        if let Some(error) = &core.slot(self.0.key).error {
            return Poll::Ready(Some(Err(Error::clone(error))));
        }
        match core.capacity(self.0.key) {
            0 if !core.connection.is_sending(self.0.key) => Poll::Ready(None),
            0 => {
                core.on_write(self.0.key, true, cx);
                Poll::Pending
            }
            capacity => Poll::Ready(Some(Ok(capacity))),
        }
    }

    /// Sends a piece that there is capacity for.
    ///
    /// # Errors
    /// Where the stream is over.
    pub fn send_data(&mut self, data: &Bytes, ends: bool) -> Result<(), Error> {
        self.0.lock().send_data(self.0.key, data, ends)
    }

    /// Sends a piece if there is capacity for it; answers whether there was.
    ///
    /// # Errors
    /// Where the stream is over.
    pub fn try_send(&mut self, data: &Bytes, ends: bool) -> Result<bool, Error> {
        let mut core = self.0.lock();
        if core.capacity(self.0.key) < data.len() {
            return Ok(false);
        }
        core.send_data(self.0.key, data, ends).map(|()| true)
    }

    /// Ends the body with fields.
    ///
    /// # Errors
    /// Where the stream is over.
    pub fn send_trailers(&mut self, fields: &HeaderMap) -> Result<(), Error> {
        let mut core = self.0.lock();
        let sent = core.connection.send_trailers(self.0.key, fields);
        core.on_output();
        sent
    }

    /// Gives the stream up, both ways.
    pub fn send_reset(&mut self, reason: Reason) {
        let mut core = self.0.lock();
        core.connection.reset(self.0.key, reason);
        core.on_reset(self.0.key, reason);
        core.on_output();
    }

    /// Waits until the other side gives the stream up, or the connection is gone.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let mut core = self.0.lock();
        if let Some(error) = &core.slot(self.0.key).error {
            return Poll::Ready(Error::clone(error));
        }
        core.on_write(self.0.key, false, cx);
        Poll::Pending
    }
}
