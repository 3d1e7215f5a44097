//! The answer of a server on its way to the client: passed on byte for byte, and ended with real trailers whatever
//! happens to the server.

use std::{
    fmt,
    future::ready,
    pin::Pin,
    task::{self, Context, Poll},
};

use bytes::Bytes;
use futures::future::Either;
use http::{HeaderMap, HeaderValue, Response, StatusCode, response::Parts};
use tonic::{Code, Status};

use crate::{
    budget::Budget,
    call::{Call, is_cancel},
    client::Client,
    deadline::{Deadline, Timer},
    ending::Dismissal,
    explain, fields,
    pump::{End, Pump},
    record::{self, By},
    upload::Upload,
    wire::{Error, RecvStream},
};

/// gRPC's own name for the code in headers and trailers.
const GRPC_STATUS: &str = "grpc-status";

/// The code of CANCELLED.
pub(crate) const CANCELLED: u32 = 1;
/// The code of DEADLINE_EXCEEDED.
pub(crate) const DEADLINE_EXCEEDED: u32 = 4;

/// The head of an answer, and what is still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Parts,
    /// `None` where the head is all, with the status in it.
    pub(crate) rest: Option<Box<Rest>>,
}

/// What is still to come of a call whose answer has begun.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) call: Call,
    pub(crate) stream: RecvStream,
    /// `None` where the request has no messages.
    pub(crate) upload: Option<Upload>,
}

impl Answer {
    /// Tells the client its head; the rest is to be awaited, where there is any and the client is there.
    pub(crate) fn pass(
        self,
        client: Client,
        deadline: Deadline,
        budget: Budget,
        dismissal: Dismissal,
    ) -> Option<Passing> {
        let said = Said {
            status: self.head.status,
            code: code_of(&self.head.headers),
        };
        let head = Response::from_parts(self.head, ());
        if self.rest.is_none() {
            record::on_end(said.last(), By::Worker);
        }
        let to = client.head(head, self.rest.is_none())?;
        let rest = self.rest?;
        let Rest {
            call,
            stream,
            upload,
        } = *rest;
        Some(Passing {
            pump: Pump::answer(stream, to, budget),
            upload: upload.filter(|upload| !upload.is_done()).map(Box::new),
            call,
            said,
            limit: deadline.timer(),
            dismissal,
            is_over: false,
            explanation: None,
        })
    }
}

/// An answer under way, whose head was told. It may last for hours, so it is small.
#[derive(Debug)]
pub(crate) struct Passing {
    pump: Pump,
    /// There while the request is not over, which most are by now.
    upload: Option<Box<Upload>>,
    call: Call,
    said: Said,
    limit: Timer,
    dismissal: Dismissal,
    /// Whether there are no more messages.
    is_over: bool,
    explanation: Option<Explanation>,
}

/// Why an answer ended before its time, once that is known.
struct Explanation(Pin<Box<dyn Future<Output = Status> + Send>>);

impl fmt::Debug for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Explanation")
    }
}

impl Future for Passing {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.explanation.is_none() {
            let came = match this.poll_end(cx) {
                Poll::Ready(came) => came,
                Poll::Pending if this.dismissal.poll(cx).is_ready() => {
                    Err(explain::dismissed(&record::at()).into())
                }
                Poll::Pending => {
                    let late = task::ready!(this.limit.poll(cx));
                    this.call.on_code(DEADLINE_EXCEEDED);
                    Err(this.call.got(late).into())
                }
            };
            let mut by = By::Gateway;
            let trailers = match came {
                Ok(Came::Trailers(received)) => match this.complete(received) {
                    Ok(trailers) => {
                        by = By::Worker;
                        trailers
                    }
                    Err(status) => of(status),
                },
                // The client is gone.
                Ok(Came::End(End::Refused)) => return Poll::Ready(()),
                Ok(Came::End(End::Broken(error))) => {
                    let why = this.call.broke(error, this.limit.deadline());
                    let why = this.explanation.insert(Explanation(Box::pin(why)));
                    of(task::ready!(why.0.as_mut().poll(cx)))
                }
                Ok(Came::End(_)) => of(this.call.got(explain::unread("the client")).into()),
                Err(status) => of(status),
            };
            this.end(trailers, by);
            return Poll::Ready(());
        }
        if let Some(why) = &mut this.explanation {
            let status = task::ready!(why.0.as_mut().poll(cx));
            this.end(of(status), By::Gateway);
        }
        Poll::Ready(())
    }
}

/// How the messages of an answer end.
enum Came {
    /// As they should, with trailers or without.
    Trailers(HeaderMap),
    /// In another way.
    End(End),
}

impl Passing {
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Came, Status>> {
        if !self.is_over {
            match task::ready!(self.exchange(cx))? {
                End::Over | End::Ended => self.is_over = true,
                other => return Poll::Ready(Ok(Came::End(other))),
            }
        }
        self.pump.from.poll_trailers(cx).map(|came| {
            Ok(match came {
                Ok(trailers) => Came::Trailers(trailers.unwrap_or_default()),
                Err(error) => Came::End(End::Broken(error)),
            })
        })
    }

    /// Passes messages on both ways, until the answer's are over.
    fn exchange(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, Status>> {
        if let Err(status) = self.call.poll_upload(cx, self.upload.as_deref_mut()) {
            // One that goes breaks off both ways, and it is chance which of them is looked at first.
            let is_gone = self.pump.to.poll_reset(cx).is_ready();
            return Poll::Ready(match is_gone {
                true => Ok(End::Refused),
                false => Err(status),
            });
        }
        let Self { pump, call, .. } = self;
        pump.poll(cx, || call.on_message()).map(Ok)
    }

    /// Completes the trailers that a server ended its answer with, where it told no code at all.
    fn complete(&mut self, mut received: HeaderMap) -> Result<HeaderMap, Status> {
        let (said, deadline) = (self.said, self.limit.deadline());
        let code = code_of(&received).or(said.code);
        if code == Some(CANCELLED) && deadline.explains_cancel() {
            self.call.on_code(DEADLINE_EXCEEDED);
            return Err(self.call.got(deadline.passed()).into());
        }
        if code.is_none() {
            add_status(&mut received, said.status);
        }
        self.call.over(code.unwrap_or_else(|| said.last()));
        fields::keep_apart(&mut received);
        Ok(received)
    }

    fn end(&mut self, trailers: HeaderMap, by: By) {
        let code = code_of(&trailers).unwrap_or_else(|| self.said.last());
        record::on_end(code, by);
        let _ = match trailers.is_empty() {
            true => self.pump.to.send_data(Bytes::new(), true),
            false => self.pump.to.send_trailers(trailers),
        };
    }
}

/// What the head of an answer says of how it ends.
#[derive(Debug, Clone, Copy)]
struct Said {
    status: StatusCode,
    code: Option<u32>,
}

impl Said {
    /// The code of an answer that says no other later.
    fn last(self) -> u32 {
        self.code
            .unwrap_or_else(|| code_without(self.status) as u32)
    }
}

/// The code of an answer that ends without one, as gRPC derives it from HTTP's.
pub(crate) fn code_without(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// Completes the trailers of a server that has told no code.
fn add_status(trailers: &mut HeaderMap, status: StatusCode) {
    let text = format!("the server ended its answer, HTTP {status}, without a `grpc-status`");
    let _ = Status::new(code_without(status), text).add_header(trailers);
}

impl Call {
    /// The server's stream broke; the future says why, once that is known.
    pub(crate) fn broke(
        &mut self,
        error: Error,
        deadline: Deadline,
    ) -> impl Future<Output = Status> + Send + use<> {
        let late = is_cancel(&error) && deadline.explains_cancel();
        if late {
            self.on_code(DEADLINE_EXCEEDED);
        }
        let why = match late {
            true => Either::Left(ready(self.got(deadline.passed()))),
            false => Either::Right(self.broken(error)),
        };
        async move { why.await.into() }
    }
}

/// The code in headers or trailers; one that is not a number is none of gRPC's.
pub(crate) fn code_of(headers: &HeaderMap) -> Option<u32> {
    // There are few: to look is quicker than to hash.
    let (_, value) = headers
        .iter()
        .find(|(name, _)| name.as_str() == GRPC_STATUS)?;
    Some(
        value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(Code::Unknown as u32),
    )
}

pub(crate) fn of(status: Status) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        headers.insert(GRPC_STATUS, HeaderValue::from(Code::Unknown as u32));
    }
    headers
}
