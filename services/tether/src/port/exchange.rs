//! One call to a gateway: sent once there is a connection, sent again only where nobody has begun with it.

use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use tether_port::{Call, Worker};
use tether_proto::Failure;
use tether_types::Reason;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::{
    body::{Body, Broken, Messages, Piece},
    calls::Progress,
    failure::{Failed, Outcome},
    link::{Link, Sent},
};

/// By how much a gateway may be late to say that a deadline passed: it can say more about it.
const LATE: Duration = Duration::from_millis(100);

/// Where a call goes, as a request has it.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    path: String,
    headers: HeaderMap,
    deadline: Option<Instant>,
}

/// The answer to a call, begun.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) head: HeaderMap,
    pub(crate) messages: Messages,
    /// What is still sent, for as long as somebody wants the answer.
    _sending: Option<AbortOnDropHandle<()>>,
}

/// How a call ended well.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) trailers: HeaderMap,
}

impl Head {
    /// Of a method, with nothing more said.
    pub(crate) fn new(path: &str, timeout: Option<Duration>) -> Self {
        Self {
            path: path.to_owned(),
            headers: HeaderMap::new(),
            deadline: timeout.map(|timeout| Instant::now() + timeout),
        }
    }

    /// Of a call to a worker.
    pub(crate) fn of(call: Call) -> Result<Self, Failed> {
        let mut head = Self::new(&call.method, call.timeout);
        if !call.method.starts_with('/') {
            let text = format!(
                "`{}` is no method: expected `/package.Service/Method`",
                call.method
            );
            return Err(malformed(text));
        }
        head.set("tether-pool", call.pool)?;
        let mode = match call.affinity.as_deref() {
            Some("hint") | None => None,
            Some(mode @ ("strict_queue" | "strict_fail_fast")) => Some(mode.to_owned()),
            Some(other) => {
                let text = format!(
                    "affinity `{other}` is none of `hint`, `strict_queue` and `strict_fail_fast`"
                );
                return Err(malformed(text));
            }
        };
        let said = [
            ("tether-affinity", call.session),
            ("tether-affinity-mode", mode),
            ("tether-worker", call.worker.as_ref().map(Worker::to_string)),
            ("tether-idempotency-key", call.idempotency_key),
            ("traceparent", call.traceparent),
        ];
        for (key, value) in said {
            if let Some(value) = value {
                head.set(key, value)?;
            }
        }
        for (key, value) in call.metadata {
            head.add(&key, &value)?;
        }
        Ok(head)
    }

    /// Says in whose name it is.
    pub(crate) fn set(
        &mut self,
        key: &'static str,
        value: impl Into<String>,
    ) -> Result<(), Failed> {
        let value = HeaderValue::try_from(value.into())
            .map_err(|_| malformed(format!("the value of `{key}` cannot be sent as metadata")))?;
        self.headers.insert(key, value);
        Ok(())
    }

    fn add(&mut self, key: &str, value: &Bytes) -> Result<(), Failed> {
        let name = HeaderName::from_bytes(key.as_bytes())
            .map_err(|_| malformed(format!("`{key}` is no name of metadata")))?;
        if name.as_str().starts_with("grpc-") || RESERVED.contains(&name) {
            return Err(malformed(format!("`{key}` is gRPC's own, and no metadata")));
        }
        let value = match key.ends_with("-bin") {
            true => {
                let encoded = tonic::metadata::BinaryMetadataValue::from_bytes(value);
                HeaderValue::from_bytes(encoded.as_encoded_bytes())
            }
            false => HeaderValue::from_bytes(value),
        };
        let value = value
            .map_err(|_| malformed(format!("the value of `{key}` cannot be sent as metadata")))?;
        self.headers.append(name, value);
        Ok(())
    }

    /// When it is to be over.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        let uri = http::Uri::builder()
            .scheme("http")
            .authority("localhost")
            .path_and_query(self.path.as_str())
            .build();
        *request.uri_mut() = uri.unwrap_or_default();
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            headers.insert("grpc-timeout", timeout(left));
        }
        request
    }
}

/// Metadata that would change what a request is.
const RESERVED: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::TE,
    header::HOST,
    header::CONTENT_LENGTH,
];

/// As gRPC writes it, of eight digits at most.
fn timeout(left: Duration) -> HeaderValue {
    let text = match left.as_micros() {
        micros @ 0..100_000_000 => format!("{micros}u"),
        micros @ 100_000_000..100_000_000_000 => format!("{}m", micros / 1_000),
        micros => format!("{}S", (micros / 1_000_000).min(99_999_999)),
    };
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("99999999S"))
}

fn malformed(text: String) -> Failed {
    Failed::here(
        Failure::new(Reason::MetadataInvalid, text),
        Outcome::NotSent,
    )
}

/// What is to be done by a deadline. A gateway may be a little late with it: it can say more.
pub(crate) async fn in_time<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, Failed>>,
    progress: &Progress,
) -> Result<T, Failed> {
    match deadline {
        None => work.await,
        Some(deadline) => tokio::time::timeout_at(deadline + LATE, work)
            .await
            .unwrap_or_else(|_| Err(Failed::deadline(progress.get()))),
    }
}

/// Sends one message, and waits for the answer to begin.
pub(crate) async fn send_whole(
    link: &Link,
    head: &Head,
    message: &Bytes,
    progress: &Progress,
) -> Result<Begun, Failed> {
    loop {
        let ready = link.ready().await;
        // With no more time than is left by now.
        let sent = ready.send(head.request(), Body::Whole(message.clone()), progress);
        match sent.await {
            Sent::Answered(answer, sending) => return begun(answer, sending, progress),
            Sent::Unsent(_) => {}
            Sent::Lost(error, outcome) => return Err(broken(&error, outcome)),
        }
    }
}

/// Sends messages as they come, and waits for the answer to begin.
pub(crate) async fn send_pieces(
    link: &Link,
    head: &Head,
    pieces: mpsc::Receiver<Piece>,
    progress: &Progress,
) -> Result<Begun, Failed> {
    let mut body = Body::Pieces(pieces);
    loop {
        let ready = link.ready().await;
        match ready.send(head.request(), body, progress).await {
            Sent::Answered(answer, sending) => return begun(answer, sending, progress),
            Sent::Unsent(Some(unsent)) => body = unsent,
            Sent::Unsent(None) => {
                let text = "the call did not get to a worker, and what of it was taken is not kept";
                return Err(Failed::broken(text.to_owned(), Outcome::NotSent));
            }
            Sent::Lost(error, outcome) => return Err(broken(&error, outcome)),
        }
    }
}

fn begun(
    answer: Response<RecvStream>,
    sending: Option<AbortOnDropHandle<()>>,
    progress: &Progress,
) -> Result<Begun, Failed> {
    progress.set(Outcome::Failed);
    let (parts, body) = answer.into_parts();
    if parts.status != http::StatusCode::OK {
        let text = format!("the gateway answered with HTTP status {}", parts.status);
        return Err(Failed::broken(text, Outcome::Failed));
    }
    // An answer that is nothing but trailers has them in its head.
    if parts.headers.contains_key("grpc-status") {
        over(&parts.headers)?;
    }
    Ok(Begun {
        head: parts.headers,
        messages: Messages::new(body),
        _sending: sending,
    })
}

fn over(trailers: &HeaderMap) -> Result<(), Failed> {
    match Status::from_header_map(trailers) {
        None => Err(Failed::internal("the answer ended without a status")),
        Some(status) if status.code() == tonic::Code::Ok => Ok(()),
        Some(status) => Err(Failed::answered(status)),
    }
}

fn broken(error: &h2::Error, outcome: Outcome) -> Failed {
    let text = format!("the connection to the gateway broke: {error}");
    Failed::broken(text, outcome)
}

impl Begun {
    /// The next message of the answer, none at its end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        self.messages.next().await.map_err(|failed| match failed {
            Broken::Way(error) => broken(&error, Outcome::Failed),
            Broken::Wrong(text) => Failed::too_large(&text),
        })
    }

    /// How it ended, once there is no further message.
    pub(crate) fn end(self) -> Result<Ended, Failed> {
        let trailers = match self.head.contains_key("grpc-status") {
            true => HeaderMap::new(),
            false => {
                let trailers = self.messages.trailers();
                over(&trailers)?;
                trailers
            }
        };
        Ok(Ended { trailers })
    }
}

/// One message, and the one that answers it.
pub(crate) async fn unary(
    link: &Link,
    head: &Head,
    message: &Bytes,
    progress: &Progress,
) -> Result<(HeaderMap, Bytes, HeaderMap), Failed> {
    let mut begun = send_whole(link, head, message, progress).await?;
    let answer = begun.next().await?;
    let nothing_more = begun.next().await?.is_none();
    let begun_head = begun.head.clone();
    let ended = begun.end()?;
    match answer {
        Some(answer) if nothing_more => Ok((begun_head, answer, ended.trailers)),
        Some(_) => Err(Failed::internal(
            "several messages answered a call that has one answer",
        )),
        None => Err(Failed::internal(
            "no message answered the call, which ended well",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_no_more_than_eight_digits() {
        let text = |left| timeout(left).to_str().unwrap().to_owned();

        assert_eq!(text(Duration::from_millis(250)), "250000u");
        assert_eq!(text(Duration::from_secs(100)), "100000m");
        assert_eq!(text(Duration::from_secs(3_600 * 24 * 365)), "31536000S");
        assert_eq!(text(Duration::MAX), "99999999S");
    }
}
