//! The answer of a server on its way to the client: passed on byte for byte, and ended with real trailers whatever
//! happens to the server.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Response, StatusCode, response::Parts};
use tonic::{Code, Status};

use crate::{
    budget::Budget,
    call::{Call, is_cancel},
    client::Client,
    deadline::Deadline,
    explain, fields,
    pump::{End, Pump},
    record::{self, By},
    upload::Upload,
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
    /// Passes it on to its end.
    pub(crate) async fn pass(self, client: Client, deadline: Deadline, budget: Budget) {
        let said = Said {
            status: self.head.status,
            code: code_of(&self.head.headers),
        };
        let head = Response::from_parts(self.head, ());
        let Some(mut rest) = self.rest else {
            record::on_end(said.last(), By::Worker);
            client.head(head, true);
            return;
        };
        let Some(to) = client.head(head, false) else {
            return;
        };
        let mut pump = Pump::answer(rest.stream, to, budget);
        let (call, upload) = (&mut rest.call, &mut rest.upload);
        let end = deadline.bound(poll_fn(|cx| exchange(cx, upload, &mut pump, call)));
        let mut by = By::Gateway;
        let trailers = match end.await {
            Err(late) => {
                call.on_code(DEADLINE_EXCEEDED);
                of(call.got(late).into())
            }
            Ok(Ok(End::Over | End::Ended)) => match ending(&mut pump, call, said, deadline).await {
                Ok(trailers) => {
                    by = By::Worker;
                    trailers
                }
                Err(status) => of(status),
            },
            Ok(Ok(End::Broken(error))) => of(Box::pin(call.broke(error, deadline)).await),
            Ok(Ok(End::Unread | End::TooLarge(_))) => {
                of(call.got(explain::unread("the client")).into())
            }
            // The client is gone.
            Ok(Ok(End::Refused)) => return,
            Ok(Err(status)) => of(status),
        };
        let code = code_of(&trailers).unwrap_or_else(|| said.last());
        record::on_end(code, by);
        let _ = match trailers.is_empty() {
            true => pump.to.send_data(Bytes::new(), true),
            false => pump.to.send_trailers(trailers),
        };
    }
}

/// Passes messages on both ways, until the answer's are over.
fn exchange(
    cx: &mut Context<'_>,
    upload: &mut Option<Upload>,
    pump: &mut Pump,
    call: &mut Call,
) -> Poll<Result<End, Status>> {
    if let Err(status) = call.poll_upload(cx, upload) {
        // One that goes breaks off both ways, and it is chance which of them is looked at first.
        let is_gone = pump.to.poll_reset(cx).is_ready();
        return Poll::Ready(if is_gone {
            Ok(End::Refused)
        } else {
            Err(status)
        });
    }
    pump.poll(cx, || call.on_message()).map(Ok)
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

/// The trailers that a server ended its answer with, completed where it told no code at all.
async fn ending(
    pump: &mut Pump,
    call: &mut Call,
    said: Said,
    deadline: Deadline,
) -> Result<HeaderMap, Status> {
    let received = match deadline
        .bound(poll_fn(|cx| pump.from.poll_trailers(cx)))
        .await
    {
        Err(late) => {
            call.on_code(DEADLINE_EXCEEDED);
            return Err(call.got(late).into());
        }
        Ok(Err(error)) => return Err(Box::pin(call.broke(error, deadline)).await),
        Ok(Ok(received)) => received,
    };
    let mut received = received.unwrap_or_default();
    let code = code_of(&received).or(said.code);
    if code == Some(CANCELLED) && deadline.explains_cancel() {
        call.on_code(DEADLINE_EXCEEDED);
        return Err(call.got(deadline.passed()).into());
    }
    if code.is_none() {
        add_status(&mut received, said.status);
    }
    call.on_code(code.unwrap_or_else(|| said.last()));
    fields::keep_apart(&mut received);
    Ok(received)
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
    /// The server's stream broke; says why, once that is known.
    pub(crate) async fn broke(&mut self, error: h2::Error, deadline: Deadline) -> Status {
        if is_cancel(&error) && deadline.explains_cancel() {
            self.on_code(DEADLINE_EXCEEDED);
            return self.got(deadline.passed()).into();
        }
        self.broken(error).await.into()
    }
}

/// The code in headers or trailers; one that is not a number is none of gRPC's.
pub(crate) fn code_of(headers: &HeaderMap) -> Option<u32> {
    let value: &HeaderValue = headers.get(GRPC_STATUS)?;
    Some(
        value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(Code::Unknown as u32),
    )
}

fn of(status: Status) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        headers.insert(GRPC_STATUS, HeaderValue::from(Code::Unknown as u32));
    }
    headers
}
