//! An answer that passes through: frame by frame as it comes, and with a real end where it breaks off.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::WaitForCancellationFutureOwned;

/// gRPC's UNAVAILABLE.
const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");

pub(crate) enum Passing {
    /// From somewhere else, until that is over or nobody is attached any more.
    Through {
        from: Incoming,
        over: Pin<Box<WaitForCancellationFutureOwned>>,
        ended: bool,
    },
    /// Ours: a message and its trailers.
    Own {
        message: Option<Bytes>,
        trailers: Option<HeaderMap>,
    },
}

impl Passing {
    /// The whole answer to a call, framed.
    pub(crate) fn answer(message: Bytes) -> Self {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Self::Own {
            message: Some(message),
            trailers: Some(trailers),
        }
    }

    pub(crate) fn nothing() -> Self {
        Self::Own {
            message: None,
            trailers: None,
        }
    }
}

/// That the BEAM cannot answer, and why: worth trying again.
pub(crate) fn unavailable(why: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", UNAVAILABLE);
    // What is not plain text there has to be escaped; these words are.
    let why = why.replace(
        |letter: char| !(' '..='~').contains(&letter) || letter == '%',
        "?",
    );
    if let Ok(why) = HeaderValue::try_from(why) {
        trailers.insert("grpc-message", why);
    }
    trailers
}

impl Body for Passing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Own { message, trailers } => {
                let frame = message.take().map(Frame::data);
                let frame = frame.or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Self::Through { ended: true, .. } => Poll::Ready(None),
            Self::Through { from, over, ended } => {
                let broken = match Pin::new(from).poll_frame(context) {
                    Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Some(Ok(frame))),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Ready(Some(Err(error))) => {
                        format!("the connection to the BEAM broke: {error}")
                    }
                    Poll::Pending => match over.as_mut().poll(context) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(()) => "the BEAM that was to answer is gone".to_owned(),
                    },
                };
                *ended = true;
                Poll::Ready(Some(Ok(Frame::trailers(unavailable(&broken)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own { message, trailers } => message.is_none() && trailers.is_none(),
            Self::Through { from, ended, .. } => *ended || from.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
