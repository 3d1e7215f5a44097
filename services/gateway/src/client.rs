//! The client's end of a call: whether it is still there, and what it is told.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use tonic::Status;

use crate::{
    answer::of as trailers_of,
    explain, record,
    wire::{Error, Reason, RecvStream, SendResponse, SendStream},
};

/// Whoever made a call.
#[derive(Debug)]
pub(crate) struct Client {
    respond: SendResponse,
}

impl Client {
    pub(crate) fn new(respond: SendResponse) -> Self {
        Self { respond }
    }

    /// What comes of some work, unless the client gives the call up first; the work is then to be dropped.
    pub(crate) async fn unless_gone<T>(
        &mut self,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        poll_fn(|cx| match self.respond.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => work.as_mut().poll(cx).map(Some),
        })
        .await
    }

    /// Ends the call with an error.
    pub(crate) fn refuse(self, status: Status) {
        self.head(status.into_http::<()>(), true);
    }

    /// Tells the head of an answer, and that it is all where it is. `None` where the client is gone.
    pub(crate) fn head(self, head: Response<()>, is_all: bool) -> Option<SendStream> {
        self.respond.send_response(head, is_all).ok()
    }

    /// Tells an answer that the gateway makes itself. One that keeps coming ends when the gateway does.
    pub(crate) async fn tell<B>(self, answer: Response<B>, over: impl Future<Output = ()>)
    where
        B: Body<Data = Bytes>,
    {
        let (head, body) = answer.into_parts();
        let (mut body, mut over) = (pin!(body), pin!(over));
        let is_all = body.is_end_stream();
        let Some(mut to) = self.head(Response::from_parts(head, ()), is_all) else {
            return;
        };
        while !body.is_end_stream() {
            let frame = tokio::select! {
                biased;
                _ = poll_fn(|cx| to.poll_reset(cx)) => return,
                frame = poll_fn(|cx| body.as_mut().poll_frame(cx)) => frame,
                () = &mut over => {
                    let _ = to.send_trailers(trailers_of(explain::dismissed(&record::at()).into()));
                    return;
                }
            };
            let Some(Ok(frame)) = frame else { break };
            let sent = match frame.into_data() {
                Ok(data) => send(&mut to, data).await,
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => {
                        let _ = to.send_trailers(trailers);
                        return;
                    }
                    Err(_) => continue,
                },
            };
            if sent.is_err() {
                return;
            }
        }
        let _ = to.send_data(Bytes::new(), true);
    }
}

async fn send(to: &mut SendStream, mut data: Bytes) -> Result<(), Error> {
    while !data.is_empty() {
        to.reserve(data.len());
        let Some(capacity) = poll_fn(|cx| to.poll_capacity(cx)).await else {
            let (reason, remote) = (Reason::CANCEL, true);
            return Err(Error::Reset { reason, remote });
        };
        let chunk = data.split_to(capacity?.min(data.len()));
        to.send_data(chunk, false)?;
    }
    Ok(())
}

/// The messages of a request, for a service of the gateway itself.
#[derive(Debug)]
pub(crate) struct Messages(pub(crate) RecvStream);

impl Body for Messages {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let stream = &mut self.get_mut().0;
        stream.poll_data(cx).map_ok(|data| {
            stream.release_capacity(data.len());
            Frame::data(data)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
