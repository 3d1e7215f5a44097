//! The way of a request's messages to the server: chunk by chunk, never faster than it takes them.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, OnceLock},
};

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http_body::{Body, Frame};
use tonic::Status;

use crate::explain;

/// Why a request was given up on its way to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// The client cancelled or is gone.
    Cancelled,
    /// A message of this many bytes is over the limit.
    TooLarge(u32),
}

impl GivenUp {
    /// What its client is told, if it still listens.
    pub(crate) fn explain(self, limit: u32) -> Status {
        match self {
            Self::TooLarge(bytes) => explain::too_large(bytes, limit).into(),
            Self::Cancelled => Status::cancelled("the client cancelled"),
        }
    }
}

/// What comes before each message: a flag and its length, in bytes.
const PREFIX: u32 = 5;

/// Sends `body` on until it ends, the server resets the stream, or the request has to be given up,
/// for a reason that is then left in `given_up`.
pub(crate) async fn run<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    mut stream: SendStream<Bytes>,
    limit: u32,
    given_up: Arc<OnceLock<GivenUp>>,
) {
    let mut meter = Meter::new(limit);
    let give_up = |why, mut stream: SendStream<Bytes>| {
        let _ = given_up.set(why);
        stream.send_reset(Reason::CANCEL);
    };
    loop {
        let frame = tokio::select! {
            biased;
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return,
            frame = next_frame(&mut body) => frame,
        };
        // An error while sending means that the server has ended the call, and says so there.
        let sent = match frame {
            None if broke_off(&body) => return give_up(GivenUp::Cancelled, stream),
            None => stream.send_data(Bytes::new(), true),
            Some(Err(_)) => return give_up(GivenUp::Cancelled, stream),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    if let Err(why) = meter.feed(&data) {
                        return give_up(why, stream);
                    }
                    let last = body.is_end_stream();
                    match send(&mut stream, data, last).await {
                        Ok(()) if !last => continue,
                        done => done,
                    }
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => stream.send_trailers(trailers),
                    Err(_) => continue,
                },
            },
        };
        if let Err(error) = sent {
            tracing::trace!(%error, "Server takes no more of a request");
        }
        return;
    }
}

/// Takes a request in whole, so that it can be sent more than once.
pub(crate) async fn collect<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    limit: u32,
) -> Result<Bytes, GivenUp> {
    let mut meter = Meter::new(limit);
    let mut whole = BytesMut::new();
    while let Some(frame) = next_frame(&mut body).await {
        let frame = frame.map_err(|_| GivenUp::Cancelled)?;
        if let Ok(data) = frame.into_data() {
            meter.feed(&data)?;
            whole.extend_from_slice(&data);
            // One message is what it has; a second would not be measured by itself.
            let bytes = u32::try_from(whole.len()).unwrap_or(u32::MAX);
            if bytes.saturating_sub(PREFIX) > limit {
                return Err(GivenUp::TooLarge(bytes));
            }
        }
    }
    match broke_off(&body) {
        true => Err(GivenUp::Cancelled),
        false => Ok(whole.freeze()),
    }
}

/// Whether a body without more frames is not whole: hyper takes a reset without an error for an end.
fn broke_off<B: Body>(body: &B) -> bool {
    !body.is_end_stream()
}

async fn next_frame<B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
) -> Option<Result<Frame<Bytes>, B::Error>> {
    poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

async fn send(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    last: bool,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        // Capacity is asked for only with the data in hand: held for data that is yet to come, it
        // would be missing to other calls on the connection.
        stream.reserve_capacity(data.len());
        let Some(capacity) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return Err(Reason::CANCEL.into());
        };
        let chunk = data.split_to(capacity?.min(data.len()));
        if !chunk.is_empty() {
            stream.send_data(chunk, last && data.is_empty())?;
            if data.is_empty() {
                return Ok(());
            }
        }
    }
    stream.send_data(data, last)
}

/// Watches the five bytes before each gRPC message: a flag and the message's length.
#[derive(Debug)]
struct Meter {
    limit: u32,
    prefix: [u8; 5],
    read: usize,
    /// Bytes of the present message still to come.
    rest: usize,
}

impl Meter {
    fn new(limit: u32) -> Self {
        Self {
            limit,
            prefix: [0; 5],
            read: 0,
            rest: 0,
        }
    }

    fn feed(&mut self, mut data: &[u8]) -> Result<(), GivenUp> {
        while !data.is_empty() {
            if self.rest > 0 {
                let skip = self.rest.min(data.len());
                self.rest -= skip;
                data = &data[skip..];
                continue;
            }
            self.prefix[self.read] = data[0];
            self.read += 1;
            data = &data[1..];
            if self.read == self.prefix.len() {
                let [_flag, length @ ..] = self.prefix;
                let length = u32::from_be_bytes(length);
                if length > self.limit {
                    return Err(GivenUp::TooLarge(length));
                }
                self.read = 0;
                self.rest = length as usize;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut message = vec![0];
        message.extend(length.to_be_bytes());
        message.resize(5 + length as usize, 7);
        message
    }

    #[test]
    fn a_message_over_the_limit_is_found_however_the_bytes_are_cut() {
        let stream: Vec<u8> = [message(10), message(0), message(11)].concat();
        for size in 1..stream.len() {
            let mut meter = Meter::new(10);

            let found = stream
                .chunks(size)
                .find_map(|chunk| meter.feed(chunk).err());

            assert_eq!(found, Some(GivenUp::TooLarge(11)), "cut into {size}");
        }
    }

    #[test]
    fn messages_at_the_limit_pass() {
        let stream: Vec<u8> = [message(10), message(10)].concat();

        assert_eq!(Meter::new(10).feed(&stream), Ok(()));
    }
}
