//! Messages as gRPC frames them, on their way out and in, whatever they are.

use std::future::poll_fn;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{HeaderMap, Response};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// The largest message that is taken: with the term around it it still fits into a frame.
pub(crate) const MESSAGE_MAX: usize = tether_port::FRAME_MAX - (1 << 20);

/// Before each message: whether it is compressed, and its size.
const PREFIX: usize = 5;

/// What a call sends.
#[derive(Debug)]
pub(crate) enum Body {
    /// One message.
    Whole(Bytes),
    /// Messages as they come.
    Pieces(mpsc::Receiver<Piece>),
}

/// A part of what a stream sends.
#[derive(Debug)]
pub(crate) enum Piece {
    Message(Bytes),
    /// The orderly end. Without it the stream was given up.
    End,
}

/// A body on its way. Dropped before its end, it was given up.
#[derive(Debug)]
pub(crate) struct Sending {
    stream: SendStream<Bytes>,
    pieces: Option<mpsc::Receiver<Piece>>,
    /// What of the last piece has found no room yet.
    rest: Bytes,
    /// Whether any of the pieces was taken.
    has_begun: bool,
}

impl Sending {
    /// What is one message waits in memory for its room, where it is anyway.
    pub(crate) fn new(body: Body, mut stream: SendStream<Bytes>) -> Self {
        let pieces = match body {
            Body::Whole(message) => {
                // Where the stream is over already its answer says so.
                let _ = stream.send_data(framed(&message), true);
                None
            }
            Body::Pieces(pieces) => Some(pieces),
        };
        Self {
            stream,
            pieces,
            rest: Bytes::new(),
            has_begun: false,
        }
    }

    /// Sends on until the answer begins.
    pub(crate) async fn until(
        &mut self,
        mut answer: ResponseFuture,
    ) -> Result<Response<RecvStream>, h2::Error> {
        tokio::select! {
            answer = &mut answer => return answer,
            () = self.run() => {}
        }
        answer.await
    }

    /// Sends what is left by itself, where something is.
    pub(crate) fn go_on(mut self) -> Option<AbortOnDropHandle<()>> {
        self.pieces.is_some().then(|| {
            let running = tokio::spawn(async move { self.run().await });
            AbortOnDropHandle::new(running)
        })
    }

    /// The pieces, where none was taken.
    pub(crate) fn untouched(self) -> Option<Body> {
        self.pieces.filter(|_| !self.has_begun).map(Body::Pieces)
    }

    /// Sends until the end, or until nobody takes any more. Interrupted, it can be run again.
    async fn run(&mut self) {
        while let Some(pieces) = &mut self.pieces {
            if !self.rest.is_empty() {
                self.stream.reserve_capacity(self.rest.len());
                match poll_fn(|context| self.stream.poll_capacity(context)).await {
                    Some(Ok(room)) => {
                        let part = self.rest.split_to(room.min(self.rest.len()));
                        // Where it is over, the next look finds that.
                        let _ = self.stream.send_data(part, false);
                    }
                    Some(Err(_)) | None => self.pieces = None,
                }
                continue;
            }
            let piece = pieces.recv().await;
            self.has_begun = true;
            match piece {
                Some(Piece::Message(message)) => self.rest = framed(&message),
                Some(Piece::End) => {
                    let _ = self.stream.send_data(Bytes::new(), true);
                    self.pieces = None;
                }
                None => {
                    self.stream.send_reset(Reason::CANCEL);
                    self.pieces = None;
                }
            }
        }
    }
}

fn framed(message: &Bytes) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// What a call is answered with.
#[derive(Debug)]
pub(crate) struct Messages {
    body: RecvStream,
    bytes: BytesMut,
    trailers: Option<HeaderMap>,
}

/// Why an answer cannot be read on.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The way it comes broke.
    Way(h2::Error),
    /// It is nothing that can be taken.
    Wrong(String),
}

impl Messages {
    pub(crate) fn new(body: RecvStream) -> Self {
        Self {
            body,
            bytes: BytesMut::new(),
            trailers: None,
        }
    }

    /// The next message, none after the last one.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(message));
            }
            let Some(data) = self.data().await.map_err(Broken::Way)? else {
                return match self.bytes.is_empty() {
                    true => Ok(None),
                    false => {
                        let text = "the answer ended in the middle of a message";
                        Err(Broken::Wrong(text.to_owned()))
                    }
                };
            };
            self.bytes.extend_from_slice(&data);
        }
    }

    /// The next bytes, and behind them what came after them.
    async fn data(&mut self) -> Result<Option<Bytes>, h2::Error> {
        match self.body.data().await {
            Some(Ok(data)) => {
                // On a stream that is over there is nobody to tell.
                let _ = self.body.flow_control().release_capacity(data.len());
                Ok(Some(data))
            }
            // Whoever has said everything may want to hear no more.
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => Ok(None),
            Some(Err(error)) => Err(error),
            None => {
                self.trailers = self.body.trailers().await?;
                Ok(None)
            }
        }
    }

    /// What came after the last message.
    pub(crate) fn trailers(self) -> HeaderMap {
        self.trailers.unwrap_or_default()
    }

    fn whole(&mut self) -> Result<Option<Bytes>, Broken> {
        let Some(&[compressed, a, b, c, d]) = self.bytes.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        if compressed != 0 {
            let text = "a message is compressed, which was not asked for";
            return Err(Broken::Wrong(text.to_owned()));
        }
        let size = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if size > MESSAGE_MAX {
            let text = format!("a message of {size} bytes is larger than {MESSAGE_MAX}");
            return Err(Broken::Wrong(text));
        }
        if self.bytes.len() - PREFIX < size {
            return Ok(None);
        }
        self.bytes.advance(PREFIX);
        Ok(Some(self.bytes.split_to(size).freeze()))
    }
}
