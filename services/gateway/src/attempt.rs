//! One attempt at a call: sent to one server, until its answer begins.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::FutureExt as _;
use http::{Response, header, request::Parts};
use tether_breaker::Outcome;
use tether_proto::Failure;
use tonic::{Code, Status};

use crate::{
    answer::{self, Answer, CANCELLED, DEADLINE_EXCEEDED, Rest},
    budget::Budget,
    call::{self, Call},
    deadline::Deadline,
    explain::{self, Progress},
    fields,
    pump::{Pump, Source},
    slots::Sender,
    upload::Upload,
    wire::{Error, RecvStream, ResponseFuture},
};

/// A call that was sent, and whose answer has not begun.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) call: Call,
    response: ResponseFuture,
    /// `None` where the request has no messages.
    upload: Option<Upload>,
}

/// Why an attempt brought no answer.
#[derive(Debug)]
pub(crate) enum Failed {
    /// As the client is told.
    Said(Status),
    /// Its deadline passed.
    Late(Box<Late>),
    /// The server is not there any more, has reset the call, or would not have it.
    Ended(Box<Ended>),
    /// It answered that it cannot serve now, to a call that may be made again.
    Unavailable(Box<(Answer, Option<Source>)>),
}

#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) call: Call,
    pub(crate) error: Error,
    /// The request from its beginning, where it was kept.
    pub(crate) again: Option<Source>,
}

#[derive(Debug)]
pub(crate) struct Late {
    pub(crate) call: Call,
    pub(crate) failure: Failure,
}

impl Late {
    fn of(mut call: Call, failure: Failure) -> Failed {
        call.on_code(DEADLINE_EXCEEDED);
        Failed::Late(Box::new(Self { call, failure }))
    }

    /// As its client is told where there was no other attempt.
    pub(crate) fn told(self) -> Status {
        self.call.got(self.failure).into()
    }
}

impl Ended {
    /// Whether the server cannot have begun with the call and will not.
    pub(crate) fn is_untouched(&self) -> bool {
        let unsent = matches!(self.call.at(), Some((_, Progress::NeverSent)));
        unsent || call::is_turned_away(&self.error)
    }
}

/// What came of waiting for a server: the head of its answer, or that its stream broke; or that the request was given up.
type Polled = Result<Result<Response<RecvStream>, Error>, Status>;

impl Attempt {
    /// Sends a call.
    pub(crate) fn begin(
        mut sender: Sender,
        mut call: Call,
        head: &Parts,
        source: Source,
        budget: Budget,
    ) -> Result<Self, Failed> {
        let bodiless = source.is_over();
        let (response, stream) = match sender.wire.send_request(head, bodiless) {
            Ok(sent) => sent,
            // The others that share the connection have nothing to do with it, nor has the server.
            Err(Error::TooLarge { size, limit }) => {
                call.on_outcome(Outcome::Silent);
                return Err(Failed::Said(
                    explain::metadata_too_large(size, limit).into(),
                ));
            }
            Err(error) => {
                return Err(Failed::Ended(Box::new(Ended {
                    call,
                    error,
                    again: Some(source),
                })));
            }
        };
        call.on_sent(sender.slot);
        let limit = call.limit();
        let upload = (!bodiless).then(|| Upload::new(Pump::request(source, stream, limit, budget)));
        Ok(Self {
            call,
            response,
            upload,
        })
    }

    /// All of its request, for it to be made once more meanwhile.
    pub(crate) fn copy(&self) -> Option<Source> {
        match &self.upload {
            Some(upload) => upload.copy(),
            None => Some(Source::whole(Bytes::new())),
        }
    }

    /// Passes the request on, and looks for the answer.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        if let Err(given_up) = self.call.poll_upload(cx, self.upload.as_mut()) {
            return Poll::Ready(Err(given_up));
        }
        self.response.poll_unpin(cx).map(Ok)
    }

    /// Waits for the head of the answer to a call that is `repeatable` or is not.
    #[expect(
        clippy::manual_async_fn,
        reason = "it would have room for the attempt twice"
    )]
    pub(crate) fn answer(
        mut self,
        deadline: Deadline,
        repeatable: bool,
    ) -> impl Future<Output = Result<Answer, Failed>> {
        async move {
            match deadline.bound(poll_fn(|cx| self.poll(cx))).await {
                Ok(polled) => self.end(polled, deadline, repeatable),
                Err(late) => Err(self.late(late)),
            }
        }
    }

    /// The deadline passed.
    pub(crate) fn late(self, late: Failure) -> Failed {
        Late::of(self.call, late)
    }

    /// Makes an answer of its head, or says why there is none.
    pub(crate) fn end(
        self,
        polled: Polled,
        deadline: Deadline,
        repeatable: bool,
    ) -> Result<Answer, Failed> {
        let Self {
            mut call,
            mut upload,
            ..
        } = self;
        let again = |upload: Option<Upload>| match upload {
            Some(upload) => upload.again(),
            None => Some(Source::whole(Bytes::new())),
        };
        let response = match polled.map_err(Failed::Said)? {
            Ok(response) => response,
            Err(error) => {
                if call::is_cancel(&error) && deadline.explains_cancel() {
                    return Err(Late::of(call, deadline.passed()));
                }
                return Err(Failed::Ended(Box::new(Ended {
                    call,
                    error,
                    again: again(upload),
                })));
            }
        };
        call.on_head(response.headers());
        let (mut head, stream) = response.into_parts();
        fields::keep_apart(&mut head.headers);
        call.sign(&mut head.headers);
        if stream.is_end_stream() {
            // Headers alone, with the status in them.
            let without = || answer::code_without(head.status) as u32;
            let code = answer::code_of(&head.headers).unwrap_or_else(without);
            if code == CANCELLED && deadline.explains_cancel() {
                return Err(Late::of(call, deadline.passed()));
            }
            call.over(code);
            let answer = Answer { head, rest: None };
            return match repeatable && code == Code::Unavailable as u32 {
                true => Err(Failed::Unavailable(Box::new((answer, again(upload))))),
                false => Ok(answer),
            };
        }
        if let Some(upload) = &mut upload {
            upload.on_head();
        }
        // The answer may end earlier than the server planned.
        head.headers.remove(header::CONTENT_LENGTH);
        let rest = Some(Box::new(Rest {
            call,
            stream,
            upload,
        }));
        Ok(Answer { head, rest })
    }
}
