//! One direction of a call: messages from one HTTP/2 stream to another, byte for byte, never faster than the
//! receiver takes them.

use std::{
    collections::VecDeque,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use crate::{
    budget::{Budget, Seat},
    meter::Meter,
    wire::{Error, Reason, RecvStream, SendStream},
};

/// How much of a request is kept until its answer begins, in bytes: one that sent more is not sent again.
const REPEATABLE: usize = 64 << 10;

/// In how many pieces: each keeps the memory that it was read into.
const PIECES: usize = 64;

/// Where messages come from: what was kept of them, and then a peer that may still be sending.
#[derive(Debug)]
pub(crate) struct Source {
    kept: VecDeque<Bytes>,
    live: Option<RecvStream>,
    /// Bytes that came from the peer, and for which it may not send others yet.
    uncredited: usize,
}

impl Source {
    /// From a peer.
    pub(crate) fn live(stream: RecvStream) -> Self {
        Self {
            kept: VecDeque::new(),
            live: Some(stream),
            uncredited: 0,
        }
    }

    /// All there is.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self {
            kept: [bytes].into(),
            live: None,
            uncredited: 0,
        }
    }

    /// Whether there is nothing, and will be nothing.
    pub(crate) fn is_over(&self) -> bool {
        let live = self.live.as_ref();
        self.kept.is_empty() && live.is_none_or(RecvStream::is_end_stream)
    }

    /// Whether all of a request is here, and it is no more than may be sent twice.
    pub(crate) fn is_whole(&self) -> bool {
        let live = self.live.as_ref();
        let bytes: usize = self.kept.iter().map(Bytes::len).sum();
        bytes <= REPEATABLE && live.is_none_or(RecvStream::is_end_stream)
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        match (self.kept.pop_front(), &mut self.live) {
            (Some(bytes), _) => Poll::Ready(Some(Ok(bytes))),
            (None, Some(stream)) => {
                let came = ready!(stream.poll_data(cx));
                if let Some(Ok(data)) = &came {
                    self.uncredited += data.len();
                }
                Poll::Ready(came)
            }
            (None, None) => Poll::Ready(None),
        }
    }

    pub(crate) fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, Error>> {
        match &mut self.live {
            Some(stream) => stream.poll_trailers(cx),
            None => Poll::Ready(Ok(None)),
        }
    }

    /// So many bytes went on: the peer may send as many more.
    fn credit(&mut self, bytes: usize) {
        if let Some(stream) = &mut self.live {
            let bytes = bytes.min(self.uncredited);
            self.uncredited -= bytes;
            stream.release_capacity(bytes);
        }
    }
}

/// Why no more messages come.
#[derive(Debug)]
pub(crate) enum End {
    /// All were passed on; trailers may follow.
    Over,
    /// All were passed on, and the stream is ended with the last.
    Ended,
    /// Their sender broke off.
    Broken(Error),
    /// The receiver takes no more.
    Refused,
    /// A message of this many bytes is over the limit.
    TooLarge(u32),
    /// The receiver does not read, and too much waits in all.
    Unread,
}

/// What was sent of a request.
#[derive(Debug, Default)]
struct Copy {
    pieces: Vec<Bytes>,
    bytes: usize,
}

/// Passes messages on.
#[derive(Debug)]
pub(crate) struct Pump {
    pub(crate) from: Source,
    pub(crate) to: SendStream,
    meter: Option<Meter>,
    seat: Seat,
    /// What came while the receiver took nothing, in one piece: HTTP/2 would keep each small frame by itself, at many
    /// times its size.
    held: BytesMut,
    /// What was sent so far, to send it again where the receiver refuses it; `None` where that is too much to keep.
    sent: Option<Copy>,
    end: Option<End>,
    /// Whether the stream ends with the last message, rather than with trailers.
    ends: bool,
}

impl Pump {
    /// Passes the messages of a request on, of which none may be longer than `limit`.
    pub(crate) fn request(from: Source, to: SendStream, limit: u32, budget: Budget) -> Self {
        let meter = Some(Meter::new(limit));
        Self::new(from, to, meter, budget, true)
    }

    /// Passes the messages of an answer on, after which there are trailers.
    pub(crate) fn answer(from: RecvStream, to: SendStream, budget: Budget) -> Self {
        Self::new(Source::live(from), to, None, budget, false)
    }

    fn new(from: Source, to: SendStream, meter: Option<Meter>, budget: Budget, ends: bool) -> Self {
        Self {
            from,
            to,
            meter,
            seat: budget.seat(),
            held: BytesMut::new(),
            // An answer is never sent again.
            sent: ends.then(Copy::default),
            end: None,
            ends,
        }
    }

    /// Passes on what there is; `on_message` hears of each piece that came.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, mut on_message: impl FnMut()) -> Poll<End> {
        if self.to.poll_reset(cx).is_ready() {
            return Poll::Ready(End::Refused);
        }
        if self.seat.is_given_up(cx) {
            return Poll::Ready(End::Unread);
        }
        loop {
            if !self.held.is_empty() && self.send_held(cx).is_err() {
                return Poll::Ready(End::Refused);
            }
            // What came before the end is passed on before it is told.
            if self.end.is_some() {
                return match self.held.is_empty() {
                    true => Poll::Ready(self.end.take().unwrap_or(End::Over)),
                    false => Poll::Pending,
                };
            }
            match ready!(self.from.poll_data(cx)) {
                None => self.end = Some(End::Over),
                Some(Err(error)) => self.end = Some(End::Broken(error)),
                Some(Ok(data)) => {
                    on_message();
                    if let Err(end) = self.take(data) {
                        return Poll::Ready(end);
                    }
                }
            }
        }
    }

    /// Passes a piece on, or holds it.
    fn take(&mut self, data: Bytes) -> Result<(), End> {
        if let Some(meter) = &mut self.meter {
            meter.feed(&data).map_err(End::TooLarge)?;
        }
        let last = self.is_last();
        let length = data.len();
        if self.held.is_empty() {
            // Capacity is asked for only with the data in hand: held for data that is yet to come, it would be
            // missing to other calls on the connection.
            if self.to.reserve(length) >= length {
                self.keep(&data);
                self.to.send_data(data, last).map_err(|_| End::Refused)?;
                self.from.credit(length);
                if last {
                    self.end = Some(End::Ended);
                }
                return Ok(());
            }
        }
        self.held.extend_from_slice(&data);
        self.seat.more(length);
        Ok(())
    }

    fn keep(&mut self, data: &Bytes) {
        if let Some(sent) = &mut self.sent {
            sent.bytes += data.len();
            sent.pieces.push(data.clone());
            if sent.bytes > REPEATABLE || sent.pieces.len() > PIECES {
                self.sent = None;
            }
        }
    }

    /// What was sent is not needed any more.
    pub(crate) fn forget(&mut self) {
        self.sent = None;
    }

    /// All messages, where they are over and were kept.
    pub(crate) fn copy(&self) -> Option<Source> {
        let sent = self.sent.as_ref()?.pieces.iter().cloned();
        let held = (!self.held.is_empty()).then(|| Bytes::copy_from_slice(&self.held));
        let rest = self.from.kept.iter().cloned();
        let copy = Source {
            kept: sent.chain(held).chain(rest).collect(),
            live: None,
            uncredited: 0,
        };
        (self.from.is_whole() && copy.is_whole()).then_some(copy)
    }

    /// The messages from their beginning, those that were sent too; `None` where those were too much to keep.
    pub(crate) fn again(mut self) -> Option<Source> {
        let sent = self.sent.take()?;
        let held = std::mem::take(&mut self.held);
        self.seat.less(held.len());
        let held = (!held.is_empty()).then(|| held.freeze());
        let rest = std::mem::take(&mut self.from.kept);
        Some(Source {
            kept: sent.pieces.into_iter().chain(held).chain(rest).collect(),
            live: self.from.live.take(),
            uncredited: self.from.uncredited,
        })
    }

    /// Whether the piece that came last is the end of the stream.
    fn is_last(&self) -> bool {
        self.ends && self.from.is_over()
    }

    /// Sends what is held, as far as the receiver takes it now.
    fn send_held(&mut self, cx: &mut Context<'_>) -> Result<(), ()> {
        while !self.held.is_empty() {
            let mut capacity = self.to.reserve(self.held.len());
            if capacity == 0 {
                capacity = match self.to.poll_capacity(cx) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Some(Ok(capacity))) => capacity,
                    Poll::Ready(None | Some(Err(_))) => return Err(()),
                };
            }
            let chunk = self.held.split_to(capacity.min(self.held.len())).freeze();
            let length = chunk.len();
            if length > 0 {
                let last = self.held.is_empty() && self.is_last();
                self.keep(&chunk);
                self.seat.less(length);
                self.to.send_data(chunk, last).map_err(|_| ())?;
                self.from.credit(length);
                if last {
                    self.end = Some(End::Ended);
                }
            }
        }
        // It would keep its memory for as long as the stream lasts.
        self.held = BytesMut::new();
        Ok(())
    }

    /// Tells the receiver that the call is given up.
    pub(crate) fn cancel(&mut self) {
        self.to.send_reset(Reason::CANCEL);
    }
}
