//! One direction of a call: messages from one HTTP/2 stream to another, byte for byte, never faster than the
//! receiver takes them.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use tether_endpoints::{Peek, Peeked};

use crate::{
    budget::{Budget, Seat},
    held::Held,
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
    /// There where something came before anybody took it.
    early: Option<Box<Early>>,
    live: Option<RecvStream>,
    /// Bytes that came from the peer, and for which it may not send others yet.
    uncredited: usize,
}

/// What came before anybody took it, after what was kept; both are counted.
#[derive(Debug)]
struct Early {
    held: Held,
    seat: Seat,
}

impl Early {
    fn new(budget: &Budget) -> Box<Self> {
        Box::new(Self {
            held: Held::default(),
            seat: budget.seat(),
        })
    }
}

/// A call that waits has to go, because too much waits in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMuch;

impl Source {
    /// From a peer.
    pub(crate) fn live(stream: RecvStream) -> Self {
        Self {
            kept: VecDeque::new(),
            early: None,
            live: Some(stream),
            uncredited: 0,
        }
    }

    /// All there is.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self {
            kept: [bytes].into(),
            early: None,
            live: None,
            uncredited: 0,
        }
    }

    /// Whether there is nothing, and will be nothing.
    pub(crate) fn is_over(&self) -> bool {
        let live = self.live.as_ref();
        let none_early = self.early.as_ref();
        let none_early = none_early.is_none_or(|early| early.held.is_empty());
        self.kept.is_empty() && none_early && live.is_none_or(RecvStream::is_end_stream)
    }

    /// Whether all of a request is here, and it is no more than may be sent twice.
    pub(crate) fn is_whole(&self) -> bool {
        let live = self.live.as_ref();
        let bytes: usize = self.kept.iter().map(Bytes::len).sum();
        bytes <= REPEATABLE && live.is_none_or(RecvStream::is_end_stream)
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let early = self.early.as_mut();
        let first = self.kept.pop_front();
        let first = first.or_else(|| early?.held.take(usize::MAX));
        let Some(bytes) = first else {
            self.early = None;
            return self.poll_peer(cx);
        };
        if let Some(early) = &mut self.early {
            early.seat.less(bytes.len());
        }
        Poll::Ready(Some(Ok(bytes)))
    }

    fn poll_peer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let Some(stream) = &mut self.live else {
            return Poll::Ready(None);
        };
        let came = ready!(stream.poll_data(cx));
        if let Some(Ok(data)) = &came {
            self.uncredited += data.len();
        }
        Poll::Ready(came)
    }

    /// Takes what the peer sends before anybody takes it, and keeps it. Ready with `None` where nothing more comes; why
    /// that is, the peer's stream tells again.
    fn poll_early(&mut self, cx: &mut Context<'_>, budget: &Budget) -> Poll<Option<Bytes>> {
        let data = match ready!(self.poll_peer(cx)) {
            Some(Ok(data)) => data,
            Some(Err(_)) | None => return Poll::Ready(None),
        };
        let early = self.early.get_or_insert_with(|| Early::new(budget));
        early.held.push(&data);
        early.seat.more(data.len());
        Poll::Ready(Some(data))
    }

    /// The key in this field of the first message, as soon as it is known whether there is one.
    pub(crate) async fn peek(
        &mut self,
        field: u32,
        budget: &Budget,
    ) -> Result<Option<Vec<u8>>, TooMuch> {
        let mut peek = Peek::new(field);
        loop {
            let came = poll_fn(|cx| match self.poll_early(cx, budget) {
                Poll::Ready(came) => Poll::Ready(Ok(came)),
                Poll::Pending => self.poll_given_up(cx).map(Err),
            });
            let Some(data) = came.await? else {
                return Ok(None);
            };
            match peek.feed(&data) {
                Peeked::Wants => {}
                Peeked::Key(key) => return Ok(Some(key)),
                Peeked::Nothing => return Ok(None),
            }
        }
    }

    /// Whether a call that waits has to go, for what it has sent early.
    fn poll_given_up(&self, cx: &mut Context<'_>) -> Poll<TooMuch> {
        let early = self.early.as_ref();
        match early.is_some_and(|early| early.seat.is_given_up(cx)) {
            true => Poll::Ready(TooMuch),
            false => Poll::Pending,
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

    /// Waits for some work and takes what the peer sends meanwhile, so that it is counted. Whoever has a source waits so.
    pub(crate) async fn hold_while<T>(
        &mut self,
        mut work: Pin<&mut impl Future<Output = T>>,
        budget: &Budget,
    ) -> Result<T, TooMuch> {
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            while let Poll::Ready(Some(_)) = self.poll_early(cx, budget) {}
            self.poll_given_up(cx).map(Err)
        })
        .await
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
#[derive(Debug)]
struct Copy {
    budget: Budget,
    /// Most requests are one piece.
    first: Bytes,
    later: Vec<Bytes>,
    bytes: usize,
}

impl Copy {
    fn new(budget: &Budget) -> Self {
        Self {
            budget: budget.clone(),
            first: Bytes::new(),
            later: Vec::new(),
            bytes: 0,
        }
    }

    /// Keeps one more piece, unless that is too much.
    fn push(&mut self, data: Bytes) -> bool {
        let fits = self.bytes + data.len() <= REPEATABLE && self.later.len() < PIECES;
        let may = fits && self.budget.copy(data.len());
        if may {
            let is_first = self.bytes == 0;
            self.bytes += data.len();
            match is_first {
                true => self.first = data,
                false => self.later.push(data),
            }
        }
        may
    }

    fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        let first = (!self.first.is_empty()).then_some(&self.first);
        first.into_iter().chain(&self.later)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.budget.drop_copy(self.bytes);
    }
}

/// Passes messages on.
#[derive(Debug)]
pub(crate) struct Pump {
    pub(crate) from: Source,
    pub(crate) to: SendStream,
    meter: Option<Meter>,
    seat: Seat,
    /// What came while the receiver took nothing.
    held: Held,
    /// What was sent so far, to send it again where the receiver refuses it; `None` where that is too much to keep.
    sent: Option<Box<Copy>>,
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
            held: Held::default(),
            // An answer is never sent again.
            sent: ends.then(|| Box::new(Copy::new(&budget))),
            end: None,
            ends,
        }
    }

    /// Passes on what there is; `on_message` hears of each piece that came.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, on_message: impl FnMut()) -> Poll<End> {
        match self.pass(cx, on_message) {
            Poll::Pending if self.to.poll_reset(cx).is_ready() => Poll::Ready(End::Refused),
            // Looked at last: it may have fallen behind just now.
            Poll::Pending if self.seat.is_given_up(cx) => Poll::Ready(End::Unread),
            passed => passed,
        }
    }

    fn pass(&mut self, cx: &mut Context<'_>, mut on_message: impl FnMut()) -> Poll<End> {
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
            let sent = self.to.try_send(&data, last);
            if !matches!(sent, Ok(false)) {
                self.keep(data);
                sent.map_err(|_| End::Refused)?;
                self.from.credit(length);
                if last {
                    self.end = Some(End::Ended);
                }
                return Ok(());
            }
        }
        self.held.push(&data);
        self.seat.more(length);
        Ok(())
    }

    fn keep(&mut self, data: Bytes) {
        if self.sent.as_mut().is_some_and(|sent| !sent.push(data)) {
            self.sent = None;
        }
    }

    /// What was sent is not needed any more.
    pub(crate) fn forget(&mut self) {
        self.sent = None;
    }

    /// All messages, where they are over and were kept.
    pub(crate) fn copy(&self) -> Option<Source> {
        let sent = self.sent.as_ref()?;
        let rest: usize = self.from.kept.iter().map(Bytes::len).sum();
        let early = self.from.early.iter();
        let early_bytes: usize = early.clone().map(|early| early.held.len()).sum();
        let bytes = sent.bytes + self.held.len() + rest + early_bytes;
        if bytes > REPEATABLE || !self.from.is_whole() {
            return None;
        }
        let mut counted = Early::new(self.seat.budget());
        counted.seat.more(bytes);
        let sent = sent.pieces().cloned();
        let rest = self.from.kept.iter().cloned();
        let early = early.flat_map(|early| early.held.copy());
        Some(Source {
            kept: sent
                .chain(self.held.copy())
                .chain(rest)
                .chain(early)
                .collect(),
            early: Some(counted),
            live: None,
            uncredited: 0,
        })
    }

    /// The messages from their beginning, those that were sent too; `None` where those were too much to keep.
    pub(crate) fn again(mut self) -> Option<Source> {
        let sent = self.sent.take()?;
        let mut from = self.from;
        let held = std::iter::from_fn(|| self.held.take(usize::MAX));
        let kept = sent.pieces().cloned().chain(held).chain(from.kept);
        from.kept = kept.collect();
        let early = from
            .early
            .get_or_insert_with(|| Early::new(self.seat.budget()));
        early.seat.more(from.kept.iter().map(Bytes::len).sum());
        Some(from)
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
            let chunk = match capacity {
                0 => None,
                capacity => self.held.take(capacity),
            };
            if let Some(chunk) = chunk {
                let length = chunk.len();
                let last = self.held.is_empty() && self.is_last();
                self.keep(chunk.clone());
                self.seat.less(length);
                self.to.send_data(chunk, last).map_err(|_| ())?;
                self.from.credit(length);
                if last {
                    self.end = Some(End::Ended);
                }
            }
        }
        Ok(())
    }

    /// Tells the receiver that the call is given up.
    pub(crate) fn cancel(&mut self) {
        self.to.send_reset(Reason::CANCEL);
    }
}
