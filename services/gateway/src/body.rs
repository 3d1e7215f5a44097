//! The answer on its way to the client: passed on byte for byte, and ended with real trailers
//! whatever happens to the server.

use std::{
    future::ready,
    pin::Pin,
    task::{self, Context, Poll},
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderValue, StatusCode, response::Parts};
use http_body::Frame;
use tonic::{Code, Status};

use crate::{
    call::{Call, is_cancel},
    fields,
    forward::Deadline,
};

/// gRPC's own name for the code in headers and trailers.
const GRPC_STATUS: &str = "grpc-status";

/// The code of CANCELLED.
pub(crate) const CANCELLED: u32 = 1;
/// The code of DEADLINE_EXCEEDED.
pub(crate) const DEADLINE_EXCEEDED: u32 = 4;

/// An answer's body.
pub(crate) enum ResponseBody {
    /// Nothing: all is said in the headers.
    Empty,
    /// Text for a client that does not speak gRPC.
    Text(Bytes),
    /// From a service of the gateway itself.
    Own(tonic::body::Body),
    /// From a server.
    Forwarded(Box<Forwarded>),
}

pub(crate) struct Forwarded {
    /// What the head says, for an answer that ends without a word of gRPC's.
    head: (StatusCode, Option<u32>),
    stream: RecvStream,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    deadline: Deadline,
    stage: Stage,
}

/// How far an answer is.
enum Stage {
    /// Messages are being passed on.
    Messages(Call),
    /// The messages are over.
    Trailers(Call),
    /// The call broke, and it is being found out why.
    Broken(Pin<Box<dyn Future<Output = Status> + Send>>),
    Over,
}

impl Forwarded {
    pub(crate) fn new(head: &Parts, stream: RecvStream, call: Call, deadline: Deadline) -> Self {
        Self {
            head: (head.status, code_of(&head.headers)),
            stream,
            timer: deadline
                .at()
                .map(|at| Box::pin(tokio::time::sleep_until(at))),
            deadline,
            stage: Stage::Messages(call),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        loop {
            if self.is_late(cx) {
                return Poll::Ready(Some(trailers(self.deadline.passed().into())));
            }
            match &mut self.stage {
                Stage::Messages(call) => match task::ready!(self.stream.poll_data(cx)) {
                    Some(Ok(data)) => {
                        // Credited when passed on, so that the server sends no faster than the
                        // client reads.
                        let _ = self.stream.flow_control().release_capacity(data.len());
                        call.on_message();
                        return Poll::Ready(Some(Frame::data(data)));
                    }
                    Some(Err(error)) => self.stage = Stage::broken(call, error, self.deadline),
                    None => {
                        if let Stage::Messages(call) =
                            std::mem::replace(&mut self.stage, Stage::Over)
                        {
                            self.stage = Stage::Trailers(call);
                        }
                    }
                },
                Stage::Trailers(call) => match task::ready!(self.stream.poll_trailers(cx)) {
                    Ok(received) => {
                        let mut received = received.unwrap_or_default();
                        let (status, told) = self.head;
                        let code = code_of(&received).or(told);
                        if code == Some(CANCELLED) && self.deadline.explains_cancel() {
                            call.on_code(DEADLINE_EXCEEDED);
                            self.stage = Stage::Over;
                            return Poll::Ready(Some(trailers(self.deadline.passed().into())));
                        }
                        if code.is_none() {
                            add_status(&mut received, status);
                        }
                        call.on_code(code.unwrap_or_else(|| code_without(status) as u32));
                        self.stage = Stage::Over;
                        if received.is_empty() {
                            return Poll::Ready(None);
                        }
                        fields::keep_apart(&mut received);
                        return Poll::Ready(Some(Frame::trailers(received)));
                    }
                    Err(error) => self.stage = Stage::broken(call, error, self.deadline),
                },
                Stage::Broken(explanation) => {
                    let status = task::ready!(explanation.as_mut().poll(cx));
                    self.stage = Stage::Over;
                    return Poll::Ready(Some(trailers(status)));
                }
                Stage::Over => return Poll::Ready(None),
            }
        }
    }

    /// Ends the call when its deadline has passed.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(timer) = &mut self.timer else {
            return false;
        };
        let (Stage::Messages(call) | Stage::Trailers(call)) = &mut self.stage else {
            return false;
        };
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        call.on_code(DEADLINE_EXCEEDED);
        self.stage = Stage::Over;
        true
    }
}

impl Stage {
    fn broken(call: &mut Call, error: h2::Error, deadline: Deadline) -> Self {
        if is_cancel(&error) && deadline.explains_cancel() {
            call.on_code(DEADLINE_EXCEEDED);
            return Self::Broken(Box::pin(ready(deadline.passed().into())));
        }
        Self::Broken(Box::pin(call.broken(error)))
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Own(body) => Pin::new(body).poll_frame(cx),
            Self::Forwarded(forwarded) => forwarded.poll(cx).map(|frame| frame.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_empty(),
            Self::Own(body) => body.is_end_stream(),
            Self::Forwarded(forwarded) => matches!(forwarded.stage, Stage::Over),
        }
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

fn trailers(status: Status) -> Frame<Bytes> {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        headers.insert(GRPC_STATUS, HeaderValue::from(Code::Unknown as u32));
    }
    Frame::trailers(headers)
}
