//! The way of a request's messages to the server, until they end or are given up.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use tonic::Status;

use crate::{
    explain,
    meter::{Meter, PREFIX},
    pump::{End, Pump},
};

/// Why a request was given up on its way to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// The client cancelled or is gone.
    Cancelled,
    /// A message of this many bytes is over the limit.
    TooLarge(u32),
    /// The server does not read, and too much waits in all.
    Unread,
}

impl GivenUp {
    /// What its client is told, if it still listens.
    pub(crate) fn explain(self, limit: u32) -> Status {
        match self {
            Self::TooLarge(bytes) => explain::too_large(bytes, limit).into(),
            Self::Cancelled => Status::cancelled("the client cancelled"),
            Self::Unread => explain::unread("the worker").into(),
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Upload {
    pump: Pump,
    /// Whether the messages are over, and there may be trailers.
    is_over: bool,
}

impl Upload {
    pub(crate) fn new(pump: Pump) -> Self {
        Self {
            pump,
            is_over: false,
        }
    }

    /// Passes on what there is, until all of it is.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), GivenUp>> {
        if !self.is_over {
            let given_up = match ready!(self.pump.poll(cx, || {})) {
                End::Over => None,
                // The server has ended the call, and says so in its answer.
                End::Ended | End::Refused => return Poll::Ready(Ok(())),
                End::Broken(_) => Some(GivenUp::Cancelled),
                End::TooLarge(bytes) => Some(GivenUp::TooLarge(bytes)),
                End::Unread => Some(GivenUp::Unread),
            };
            if let Some(given_up) = given_up {
                self.pump.cancel();
                return Poll::Ready(Err(given_up));
            }
            self.is_over = true;
        }
        let sent = match ready!(self.pump.from.poll_trailers(cx)) {
            Ok(Some(trailers)) => self.pump.to.send_trailers(trailers),
            Ok(None) => self.pump.to.send_data(Bytes::new(), true),
            Err(_) => {
                self.pump.cancel();
                return Poll::Ready(Err(GivenUp::Cancelled));
            }
        };
        if let Err(error) = sent {
            tracing::trace!(%error, "Server takes no more of a request");
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes a request in whole, so that it can be sent more than once.
pub(crate) async fn collect(mut stream: RecvStream, limit: u32) -> Result<Bytes, GivenUp> {
    let mut meter = Meter::new(limit);
    let mut whole = BytesMut::new();
    while let Some(data) = poll_fn(|cx| stream.poll_data(cx)).await {
        let data = data.map_err(|_| GivenUp::Cancelled)?;
        meter.feed(&data).map_err(GivenUp::TooLarge)?;
        whole.extend_from_slice(&data);
        let _ = stream.flow_control().release_capacity(data.len());
        // One message is what it has; a second would not be measured by itself.
        let bytes = u32::try_from(whole.len()).unwrap_or(u32::MAX);
        if bytes.saturating_sub(PREFIX) > limit {
            return Err(GivenUp::TooLarge(bytes));
        }
    }
    Ok(whole.freeze())
}
