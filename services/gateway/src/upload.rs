//! The way of a request's messages to the server, until they end or are given up.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use tether_proto::Failure;

use crate::{
    budget::Budget,
    explain,
    meter::{Meter, PREFIX},
    pump::{End, Pump, Source},
    wire::RecvStream,
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
    pub(crate) fn explain(self, limit: u32) -> Failure {
        match self {
            Self::TooLarge(bytes) => explain::too_large(bytes, limit),
            Self::Cancelled => explain::cancelled(),
            Self::Unread => explain::unread("the worker"),
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Upload {
    pump: Pump,
    stage: Stage,
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Messages,
    /// The messages are over, and there may be trailers.
    Trailers,
    Done,
}

impl Upload {
    pub(crate) fn new(pump: Pump) -> Self {
        Self {
            pump,
            stage: Stage::Messages,
        }
    }

    /// Passes on what there is. Fails, once, where the request is given up.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Result<(), GivenUp> {
        if self.stage == Stage::Messages {
            let Poll::Ready(end) = self.pump.poll(cx, || {}) else {
                return Ok(());
            };
            self.stage = Stage::Done;
            let given_up = match end {
                End::Over => None,
                // The server has ended the call, and says so in its answer.
                End::Ended | End::Refused => return Ok(()),
                End::Broken(_) => Some(GivenUp::Cancelled),
                End::TooLarge(bytes) => Some(GivenUp::TooLarge(bytes)),
                End::Unread => Some(GivenUp::Unread),
            };
            if let Some(given_up) = given_up {
                self.pump.cancel();
                return Err(given_up);
            }
            self.stage = Stage::Trailers;
        }
        if self.stage == Stage::Done {
            return Ok(());
        }
        let Poll::Ready(trailers) = self.pump.from.poll_trailers(cx) else {
            return Ok(());
        };
        self.stage = Stage::Done;
        let sent = match trailers {
            Ok(Some(trailers)) => {
                // They are not kept with what was sent.
                self.pump.forget();
                self.pump.to.send_trailers(trailers)
            }
            Ok(None) => self.pump.to.send_data(Bytes::new(), true),
            Err(_) => {
                self.pump.cancel();
                return Err(GivenUp::Cancelled);
            }
        };
        if let Err(error) = sent {
            tracing::trace!(%error, "Server takes no more of a request");
        }
        Ok(())
    }

    /// Whether all of it was passed on, or it was given up.
    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// The server's answer has begun, so that the request is not sent again.
    pub(crate) fn on_head(&mut self) {
        self.pump.forget();
    }

    /// All of the request, for it to be made once more meanwhile; `None` where it is not over, or was not kept.
    pub(crate) fn copy(&self) -> Option<Source> {
        self.pump.copy()
    }

    /// The request from its beginning; `None` where that was not kept.
    pub(crate) fn again(self) -> Option<Source> {
        self.pump.again()
    }
}

/// Takes a request in whole, so that it can be sent more than once.
pub(crate) async fn collect(
    mut stream: RecvStream,
    limit: u32,
    budget: &Budget,
) -> Result<Bytes, GivenUp> {
    let mut seat = budget.seat();
    let mut meter = Meter::new(limit);
    let mut whole = BytesMut::new();
    loop {
        let data = poll_fn(|cx| match seat.is_given_up(cx) {
            true => Poll::Ready(Err(GivenUp::Unread)),
            false => stream.poll_data(cx).map(Ok),
        });
        let Some(data) = data.await? else {
            return Ok(whole.freeze());
        };
        let data = data.map_err(|_| GivenUp::Cancelled)?;
        seat.more(data.len());
        meter.feed(&data).map_err(GivenUp::TooLarge)?;
        whole.extend_from_slice(&data);
        stream.release_capacity(data.len());
        // One message is what it has; a second would not be measured by itself.
        let bytes = u32::try_from(whole.len()).unwrap_or(u32::MAX);
        if bytes.saturating_sub(PREFIX) > limit {
            return Err(GivenUp::TooLarge(bytes));
        }
    }
}
