//! Messages as gRPC frames them, on their way out and in, whatever they are.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use tokio::sync::mpsc;

/// The largest message that is taken: with the term around it it still fits into a frame.
pub(crate) const MESSAGE_MAX: usize = tether_port::FRAME_MAX - (1 << 20);

/// Before each message: whether it is compressed, and its size.
const PREFIX: usize = 5;

/// What a call sends.
#[derive(Debug)]
pub(crate) enum Body {
    /// One message.
    Whole(Option<Bytes>),
    /// Messages as they come.
    Pieces(mpsc::Receiver<Piece>),
    /// Nothing more.
    Over,
}

/// A part of what a stream sends.
#[derive(Debug)]
pub(crate) enum Piece {
    Message(Bytes),
    /// The orderly end. Without it the stream was given up.
    End,
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let message = match &mut *self {
            Self::Whole(message) => message.take(),
            Self::Pieces(pieces) => match ready!(pieces.poll_recv(context)) {
                Some(Piece::Message(message)) => Some(message),
                Some(Piece::End) => None,
                None => return Poll::Ready(Some(Err(h2::Reason::CANCEL.into()))),
            },
            Self::Over => None,
        };
        if message.is_none() {
            *self = Self::Over;
        }
        Poll::Ready(message.map(|message| Ok(Frame::data(framed(&message)))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Over)
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
    body: Incoming,
    bytes: BytesMut,
    trailers: Option<HeaderMap>,
}

/// Why an answer cannot be read on.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The way it comes broke.
    Way(hyper::Error),
    /// It is nothing that can be taken.
    Wrong(String),
}

impl Messages {
    pub(crate) fn new(body: Incoming) -> Self {
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
            let frame =
                std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            match frame.await.transpose().map_err(Broken::Way)? {
                None if self.bytes.is_empty() => return Ok(None),
                None => {
                    let text = "the answer ended in the middle of a message";
                    return Err(Broken::Wrong(text.to_owned()));
                }
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.bytes.extend_from_slice(&data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
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
