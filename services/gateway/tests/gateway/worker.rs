//! A gRPC worker in a runtime of its own, so that it can be killed with everything it has open.

use std::{
    convert::Infallible,
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    metadata::{MetadataMap, MetadataValue},
    server::{
        ClientStreamingService, Grpc, NamedService, ServerStreamingService, StreamingService,
        UnaryService,
    },
    transport::Server,
};

use crate::client::{RawCodec, soon};

/// Bytes a worker takes of a stream it does not read.
const WINDOW: u32 = 65_535;

/// What a worker has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Calls that reached a method.
    pub(crate) calls: watch::Sender<u64>,
    /// Calls that hung until they were cancelled.
    pub(crate) cancelled: watch::Sender<u64>,
    /// Bytes handed to gRPC for sending.
    pub(crate) sent: AtomicU64,
    /// What becomes of `Work`.
    pub(crate) mood: Mutex<Mood>,
    /// Whether one that is held may answer.
    pub(crate) may: watch::Sender<bool>,
}

/// What a worker does with `Work`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Mood {
    /// Answers with the same message.
    #[default]
    Well,
    /// Begins with it, and never ends.
    Stuck,
    /// Answers once it may.
    Held,
    /// Says that it cannot serve now, and when to ask again.
    Unavailable(Option<&'static str>),
}

impl Seen {
    fn called(&self) {
        self.calls.send_modify(|count| *count += 1);
    }
}

/// Waits until a count has reached `least`.
pub(crate) async fn reached(count: &watch::Sender<u64>, least: u64) {
    let mut count = count.subscribe();
    let reached = soon("a count", count.wait_for(|count| *count >= least)).await;
    reached.expect("the worker is there");
}

pub(crate) struct Worker {
    pub(crate) address: String,
    pub(crate) seen: Arc<Seen>,
    runtime: Option<Runtime>,
}

impl Worker {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    pub(crate) async fn start_at(address: &str) -> Self {
        Self::start_with(address, None).await
    }

    /// One that takes so many calls at once over one connection.
    pub(crate) async fn narrow(streams: u32) -> Self {
        Self::start_with("127.0.0.1:0", Some(streams)).await
    }

    async fn start_with(address: &str, streams: Option<u32>) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("the port is free");
        listener.set_nonblocking(true).expect("it is a socket");
        let address = listener.local_addr().expect("it is bound").to_string();
        let seen = Arc::new(Seen::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("the runtime starts");
        let service = Echo(Arc::clone(&seen));
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("the runtime has IO");
            let incoming = TcpListenerStream::new(listener);
            Server::builder()
                // Small, so that a worker that does not read soon takes no more.
                .initial_stream_window_size(WINDOW)
                .max_concurrent_streams(streams)
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
        });
        Self {
            address,
            seen,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn is(&self, mood: Mood) {
        *self.seen.mood.lock().expect("nobody panicked") = mood;
    }

    pub(crate) fn calls(&self) -> u64 {
        *self.seen.calls.borrow()
    }

    /// Ends it with every connection, as SIGKILL would.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The service: the method's name says what it does.
#[derive(Clone)]
struct Echo(Arc<Seen>);

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(RawCodec)
                .max_decoding_message_size(usize::MAX)
                .max_encoding_message_size(usize::MAX);
            let method = request
                .uri()
                .path()
                .rsplit('/')
                .next()
                .unwrap_or("")
                .to_owned();
            Ok(match method.as_str() {
                "Unary" => grpc.unary(Unary(echo.0), request).await,
                "Work" => grpc.unary(Work(echo.0), request).await,
                "Hang" => grpc.unary(Hang(echo.0), request).await,
                "ServerStream" => grpc.server_streaming(ServerStream(echo.0), request).await,
                "OneThenHang" => grpc.server_streaming(OneThenHang(echo.0), request).await,
                "ClientStream" => grpc.client_streaming(ClientStream(echo.0), request).await,
                "Deaf" => grpc.client_streaming(Deaf(echo.0), request).await,
                "Bidi" => grpc.streaming(Bidi(echo.0), request).await,
                _ => Status::unimplemented(method).into_http(),
            })
        })
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type BoxStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Counts a call that is given up, when it is dropped.
struct Hanging(Arc<Seen>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.cancelled.send_modify(|count| *count += 1);
    }
}

/// Answers with the same message and, in headers and trailers, with what came as metadata.
/// Metadata `x-fail` asks for a failure with that code.
struct Unary(Arc<Seen>);

impl UnaryService<Bytes> for Unary {
    type Response = Bytes;
    type Future = BoxFuture<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        self.0.called();
        let metadata = mirrored(request.metadata());
        let code = request
            .metadata()
            .get("x-fail")
            .map(|code| code.as_bytes().to_vec());
        Box::pin(async move {
            if let Some(code) = code {
                let code = Code::from_bytes(&code);
                let mut trailers = metadata;
                trailers.insert_bin("x-why-bin", MetadataValue::from_bytes(&[0, 159, 146, 150]));
                return Err(Status::with_metadata(code, "asked to fail", trailers));
            }
            let mut response = Response::new(request.into_inner());
            *response.metadata_mut() = metadata;
            Ok(response)
        })
    }
}

/// The request's `x-` metadata, and the deadline as `x-timeout`.
fn mirrored(request: &MetadataMap) -> MetadataMap {
    let mut mirrored = request.clone();
    let headers = mirrored.clone().into_headers();
    if let Some(timeout) = headers
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok())
    {
        mirrored.insert("x-timeout", timeout.parse().expect("it came as metadata"));
    }
    let kept = mirrored.into_headers();
    let kept = kept
        .iter()
        .filter(|(key, _)| key.as_str().starts_with("x-"));
    MetadataMap::from_headers(
        kept.map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    )
}

/// Does as the worker's mood is. Metadata in the answer tells how often the call was made before.
struct Work(Arc<Seen>);

impl UnaryService<Bytes> for Work {
    type Response = Bytes;
    type Future = BoxFuture<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        self.0.called();
        let mood = *self.0.mood.lock().expect("nobody panicked");
        let hanging = Hanging(Arc::clone(&self.0));
        Box::pin(async move {
            match mood {
                Mood::Well => {}
                Mood::Held => {
                    let mut may = hanging.0.may.subscribe();
                    may.wait_for(|may| *may).await.expect("it is kept");
                }
                Mood::Stuck => {
                    let _hanging = hanging;
                    return pending().await;
                }
                Mood::Unavailable(pushback) => {
                    let mut said = Status::unavailable("not now");
                    if let Some(pushback) = pushback {
                        let value = pushback.parse().expect("it is a metadata value");
                        said.metadata_mut().insert("grpc-retry-pushback-ms", value);
                    }
                    return Err(said);
                }
            }
            let before = request
                .metadata()
                .get("grpc-previous-rpc-attempts")
                .cloned();
            let mut response = Response::new(request.into_inner());
            if let Some(before) = before {
                response.metadata_mut().insert("x-attempts-before", before);
            }
            Ok(response)
        })
    }
}

struct Hang(Arc<Seen>);

impl UnaryService<Bytes> for Hang {
    type Response = Bytes;
    type Future = BoxFuture<Result<Response<Bytes>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        self.0.called();
        let hanging = Hanging(Arc::clone(&self.0));
        Box::pin(async move {
            let _hanging = hanging;
            pending().await
        })
    }
}

/// Answers `count size` with that many messages of that many bytes.
struct ServerStream(Arc<Seen>);

impl ServerStreamingService<Bytes> for ServerStream {
    type Response = Bytes;
    type ResponseStream = BoxStream;
    type Future = BoxFuture<Result<Response<BoxStream>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        self.0.called();
        let text = String::from_utf8_lossy(request.get_ref()).into_owned();
        let numbers: Vec<usize> = text
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        let seen = Arc::clone(&self.0);
        Box::pin(async move {
            let [count, size] = numbers[..] else {
                return Err(Status::invalid_argument("expected `count size`"));
            };
            let messages = stream::iter(0..count).map(move |at| {
                seen.sent.fetch_add(size as u64, Ordering::SeqCst);
                Ok(Bytes::from(vec![u8::try_from(at % 251).unwrap_or(0); size]))
            });
            Ok(Response::new(messages.boxed()))
        })
    }
}

/// Sends one message and then nothing.
struct OneThenHang(Arc<Seen>);

impl ServerStreamingService<Bytes> for OneThenHang {
    type Response = Bytes;
    type ResponseStream = BoxStream;
    type Future = BoxFuture<Result<Response<BoxStream>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        self.0.called();
        let hanging = Hanging(Arc::clone(&self.0));
        Box::pin(async move {
            let first = stream::iter([Ok(request.into_inner())]);
            let rest = stream::once(async move {
                let _hanging = hanging;
                pending().await
            });
            Ok(Response::new(first.chain(rest).boxed()))
        })
    }
}

/// Answers with the number of messages and of bytes.
struct ClientStream(Arc<Seen>);

impl ClientStreamingService<Bytes> for ClientStream {
    type Response = Bytes;
    type Future = BoxFuture<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        self.0.called();
        Box::pin(async move {
            let mut messages = request.into_inner();
            let (mut count, mut bytes) = (0, 0);
            while let Some(message) = messages.message().await? {
                count += 1;
                bytes += message.len();
            }
            Ok(Response::new(format!("{count} {bytes}").into()))
        })
    }
}

/// Never reads a message.
struct Deaf(Arc<Seen>);

impl ClientStreamingService<Bytes> for Deaf {
    type Response = Bytes;
    type Future = BoxFuture<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        self.0.called();
        let hanging = Hanging(Arc::clone(&self.0));
        Box::pin(async move {
            let _unread = (request, hanging);
            pending().await
        })
    }
}

/// Answers each message with itself, as soon as it is there.
struct Bidi(Arc<Seen>);

impl StreamingService<Bytes> for Bidi {
    type Response = Bytes;
    type ResponseStream = BoxStream;
    type Future = BoxFuture<Result<Response<BoxStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        self.0.called();
        let hanging = Hanging(Arc::clone(&self.0));
        Box::pin(async move {
            let messages = request.into_inner().map(move |message| {
                let _hanging = &hanging;
                message
            });
            Ok(Response::new(messages.boxed()))
        })
    }
}

/// When a plain worker cancels an `Impatient` or `Polite` call.
pub(crate) const IMPATIENCE: Duration = Duration::from_millis(200);

/// What a plain HTTP/2 server saw of a request's body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    Began,
    Complete,
    Reset(Option<h2::Reason>),
}

/// A worker without a gRPC library, because some show a cancelled request as a complete one. It
/// reads the bodies of `Upload` calls and never answers them, nor `Work` ones, refuses `Unary` ones, cancels `Impatient` calls with a
/// reset and `Polite` ones with a status.
pub(crate) async fn plain(listener: TcpListener, seen: mpsc::Sender<Upload>) {
    // Each lane of the gateway has a connection of its own.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("the gateway connects");
        connections.spawn(plainly(stream, seen.clone()));
    }
}

async fn plainly(stream: TcpStream, seen: mpsc::Sender<Upload>) {
    let mut connection = h2::server::handshake(stream)
        .await
        .expect("it speaks HTTP/2");
    let mut left = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if request.uri().path().ends_with("/Work") {
            left.push((request, respond));
            continue;
        }
        let (resets, says) = (
            request.uri().path().ends_with("/Impatient"),
            request.uri().path().ends_with("/Polite"),
        );
        if resets || says {
            tokio::spawn(async move {
                tokio::time::sleep(IMPATIENCE).await;
                match resets {
                    true => respond.send_reset(h2::Reason::CANCEL),
                    false => {
                        let cancelled = Status::cancelled("too late").into_http::<()>();
                        respond
                            .send_response(cancelled, true)
                            .expect("the gateway waits");
                    }
                }
            });
            continue;
        }
        if request.uri().path().ends_with("/Unary") {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            continue;
        }
        if !request.uri().path().ends_with("/Upload") {
            let unknown = Status::unimplemented("only `Upload`").into_http::<()>();
            respond
                .send_response(unknown, true)
                .expect("the gateway waits");
            continue;
        }
        let seen = seen.clone();
        tokio::spawn(async move {
            let mut body = request.into_body();
            let first = body.data().await.is_some_and(|data| data.is_ok());
            assert!(first, "the call has a message");
            seen.send(Upload::Began).await.expect("the test waits");
            let end = match body.data().await {
                None => Upload::Complete,
                Some(Ok(_)) => Upload::Began,
                Some(Err(error)) => Upload::Reset(error.reason()),
            };
            let complete = end == Upload::Complete;
            seen.send(end).await.expect("the test waits");
            if complete {
                let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                seen.send(Upload::Reset(reset.ok()))
                    .await
                    .expect("the test waits");
            }
        });
    }
}
