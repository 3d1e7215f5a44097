//! The worker's side of the contract on tonic; `worker.py` is its twin on grpcio and says what the metadata asks for.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http::HeaderMap;
use http_body_util::BodyExt as _;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    codec::CompressionEncoding,
    metadata::MetadataMap,
    server::{
        ClientStreamingService, Grpc, NamedService, ServerStreamingService, StreamingService,
        UnaryService,
    },
    transport::Server,
};

use super::{pattern::pattern, tonic_client::pairs};
use crate::client::RawCodec;

pub(super) struct Worker {
    pub(super) address: String,
    _serving: AbortOnDropHandle<()>,
}

impl Worker {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("there is a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (health, healthy) = tonic_health::server::health_reporter();
        health
            .set_service_status("", tonic_health::ServingStatus::Serving)
            .await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1alpha()
            .expect("the schema is readable");
        let serving = Server::builder()
            .http2_max_header_list_size(1 << 17)
            .add_service(Contract::default())
            .add_service(healthy)
            .add_service(reflection)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move {
            let _health = health;
            let _ = serving.await;
        });
        Self {
            address,
            _serving: AbortOnDropHandle::new(serving),
        }
    }
}

/// What became of one call.
#[derive(Debug, Default)]
struct Fate {
    seen: usize,
    how: Option<String>,
}

/// What became of calls, by the name their client gave them.
type Fates = Arc<Mutex<HashMap<String, watch::Sender<Fate>>>>;

#[derive(Clone, Default)]
struct Contract {
    fates: Fates,
}

impl NamedService for Contract {
    const NAME: &'static str = "conform.v1.Contract";
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type BoxStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl tower::Service<http::Request<Body>> for Contract {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let contract = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(RawCodec)
                .max_decoding_message_size(usize::MAX)
                .max_encoding_message_size(usize::MAX)
                .accept_compressed(CompressionEncoding::Gzip);
            if request.headers().contains_key("do-gzip") {
                grpc = grpc.send_compressed(CompressionEncoding::Gzip);
            }
            let trailers = MetadataMap::from_headers(request.headers().clone());
            let trailers = trailing(&trailers).into_headers();
            let method = request.uri().path().rsplit('/').next().unwrap_or("");
            let answer = match method.to_owned().as_str() {
                name @ ("Echo" | "Size" | "Inspect" | "Hang" | "Fate") => {
                    grpc.unary(Unary(contract, name.to_owned()), request).await
                }
                name @ ("Sizes" | "OneThenHang") => {
                    let stream = Download(contract, name.to_owned());
                    grpc.server_streaming(stream, request).await
                }
                name @ ("Digest" | "Deaf") => {
                    let upload = Upload(contract, name.to_owned());
                    grpc.client_streaming(upload, request).await
                }
                name @ ("PingPong" | "Reverse" | "Early") => {
                    let bidi = Bidi(contract, name.to_owned());
                    grpc.streaming(bidi, request).await
                }
                name => Status::unimplemented(format!("there is no `{name}`")).into_http(),
            };
            Ok(answer.map(|body| {
                // tonic has no trailers for an answer that went well.
                Body::new(body.map_frame(move |frame| match frame.into_trailers() {
                    Ok(mut own) => {
                        own.extend(trailers.clone());
                        http_body::Frame::trailers(own)
                    }
                    Err(frame) => frame,
                }))
            }))
        })
    }
}

/// One call under way: what its metadata asks for, and its fate.
struct Call {
    metadata: MetadataMap,
    fate: Option<watch::Sender<Fate>>,
    done: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        let how = match self.done {
            true => "complete",
            false => "cancelled",
        };
        self.change(|fate| fate.how = Some(format!("{how} after {}", fate.seen)));
    }
}

impl Call {
    async fn begin(contract: &Contract, metadata: &MetadataMap) -> Self {
        let call = Self {
            metadata: metadata.clone(),
            fate: word(metadata, "do-id").map(|id| contract.fate(id)),
            done: false,
        };
        if let Some(wait) = call.number("do-wait") {
            tokio::time::sleep(Duration::from_millis(wait as u64)).await;
        }
        call
    }

    fn change(&self, edit: impl FnOnce(&mut Fate)) {
        if let Some(fate) = &self.fate {
            fate.send_modify(edit);
        }
    }

    fn saw(&self) {
        self.change(|fate| fate.seen += 1);
    }

    fn number(&self, key: &str) -> Option<usize> {
        word(&self.metadata, key)?.parse().ok()
    }

    fn answers(&self) -> Vec<Bytes> {
        let sizes = word(&self.metadata, "do-sizes").unwrap_or("");
        let sizes = sizes.split(' ').filter_map(|size| size.parse().ok());
        sizes.map(pattern).collect()
    }

    /// The failure that was asked for.
    fn failure(&mut self) -> Result<(), Status> {
        self.done = true;
        let Some(code) = self.number("do-code") else {
            return Ok(());
        };
        let words = self.metadata.get_bin("do-message-bin").map(|words| {
            let words = words.to_bytes().expect("it is base64");
            String::from_utf8(words.to_vec()).expect("it is a text")
        });
        let words = words
            .or_else(|| Some(word(&self.metadata, "do-message")?.to_owned()))
            .unwrap_or_default();
        let code = Code::from_i32(i32::try_from(code).unwrap_or(0));
        let details = self.metadata.get_bin("do-details-bin");
        let details = details.and_then(|details| details.to_bytes().ok());
        let mut status = match details {
            Some(details) => Status::with_details(code, words, details),
            None => Status::new(code, words),
        };
        *status.metadata_mut() = trailing(&self.metadata);
        Err(status)
    }

    fn respond<T>(&self, answer: T) -> Response<T> {
        let mut response = Response::new(answer);
        *response.metadata_mut() = starting(&self.metadata, "h-");
        response
    }

    /// These messages and the failure that was asked for, after all or as many as it says.
    fn stream(mut self, messages: impl Stream<Item = Bytes> + Send + 'static) -> BoxStream {
        let after = self.number("do-after").unwrap_or(usize::MAX);
        let mut rest = Box::pin(messages.take(after));
        let mut failed = false;
        let next = move |cx: &mut Context<'_>| {
            if failed {
                return Poll::Ready(None);
            }
            Poll::Ready(match std::task::ready!(rest.as_mut().poll_next(cx)) {
                Some(message) => Some(Ok(message)),
                None => {
                    failed = true;
                    self.failure().err().map(Err)
                }
            })
        };
        Box::pin(stream::poll_fn(next))
    }

    /// Messages as they come. A request that breaks off does not end: that it was cancelled shows otherwise.
    fn messages(&self, requests: Streaming<Bytes>) -> impl Stream<Item = Bytes> + Send + use<> {
        let fate = self.fate.clone();
        stream::unfold((requests, fate), async |(mut requests, fate)| {
            let message = match requests.message().await {
                Ok(message) => message?,
                Err(_) => pending().await,
            };
            if let Some(fate) = &fate {
                fate.send_modify(|fate| fate.seen += 1);
            }
            Some((message, (requests, fate)))
        })
    }
}

impl Contract {
    fn fate(&self, id: &str) -> watch::Sender<Fate> {
        let mut fates = self.fates.lock().expect("no call panicked");
        fates.entry(id.to_owned()).or_default().clone()
    }

    async fn tell(&self, call: &Call) -> Bytes {
        let fate = self.fate(word(&call.metadata, "do-of").expect("it says of which call"));
        let mut fate = fate.subscribe();
        let least = call.number("do-seen");
        let told = fate.wait_for(|fate| match least {
            Some(least) => fate.seen >= least,
            None => fate.how.is_some(),
        });
        let told = told.await.expect("the call is remembered");
        match least {
            Some(_) => Bytes::from("seen"),
            None => told.how.clone().unwrap_or_default().into(),
        }
    }
}

struct Unary(Contract, String);

impl UnaryService<Bytes> for Unary {
    type Response = Bytes;
    type Future = BoxFuture<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let Self(contract, method) = self;
        let (contract, method) = (contract.clone(), method.clone());
        Box::pin(async move {
            let mut call = Call::begin(&contract, request.metadata()).await;
            call.saw();
            let answer = match method.as_str() {
                "Size" => call.answers().remove(0),
                "Inspect" => inspect(request.metadata()),
                "Hang" => pending().await,
                "Fate" => contract.tell(&call).await,
                _ => request.into_inner(),
            };
            call.failure()?;
            Ok(call.respond(answer))
        })
    }
}

struct Download(Contract, String);

impl ServerStreamingService<Bytes> for Download {
    type Response = Bytes;
    type ResponseStream = BoxStream;
    type Future = BoxFuture<Result<Response<BoxStream>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let Self(contract, method) = self;
        let (contract, hangs) = (contract.clone(), method == "OneThenHang");
        Box::pin(async move {
            let call = Call::begin(&contract, request.metadata()).await;
            call.saw();
            let answer = call.respond(());
            let messages = match hangs {
                true => {
                    let first = stream::iter([request.into_inner()]);
                    call.stream(first.chain(stream::pending()))
                }
                false => {
                    let answers = stream::iter(call.answers());
                    call.stream(answers)
                }
            };
            Ok(answer.map(|()| messages))
        })
    }
}

struct Upload(Contract, String);

impl ClientStreamingService<Bytes> for Upload {
    type Response = Bytes;
    type Future = BoxFuture<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let Self(contract, method) = self;
        let (contract, deaf) = (contract.clone(), method == "Deaf");
        Box::pin(async move {
            let mut call = Call::begin(&contract, request.metadata()).await;
            if deaf {
                call.failure()?;
                return Ok(call.respond(Bytes::from("not read")));
            }
            let mut messages = request.into_inner();
            let (mut count, mut size, mut sum) = (0, 0, flate2::Crc::new());
            while let Some(message) = messages.message().await? {
                call.saw();
                (count, size) = (count + 1, size + message.len());
                sum.update(&message);
            }
            call.failure()?;
            Ok(call.respond(format!("{count} {size} {}", sum.sum()).into()))
        })
    }
}

struct Bidi(Contract, String);

impl StreamingService<Bytes> for Bidi {
    type Response = Bytes;
    type ResponseStream = BoxStream;
    type Future = BoxFuture<Result<Response<BoxStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let Self(contract, method) = self;
        let (contract, method) = (contract.clone(), method.clone());
        Box::pin(async move {
            let call = Call::begin(&contract, request.metadata()).await;
            let answer = call.respond(());
            let messages = call.messages(request.into_inner());
            let answers = match method.as_str() {
                "PingPong" => call.stream(messages),
                "Reverse" => {
                    let mut all: Vec<Bytes> = messages.collect().await;
                    all.reverse();
                    call.stream(stream::iter(all))
                }
                _ => {
                    let answers = stream::iter(call.answers());
                    call.stream(answers)
                }
            };
            Ok(answer.map(|()| answers))
        })
    }
}

fn word<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key)?.to_str().ok()
}

/// Metadata whose keys begin like this.
fn starting(metadata: &MetadataMap, prefix: &str) -> MetadataMap {
    let headers = metadata.clone().into_headers();
    let kept = headers
        .iter()
        .filter(|(key, _)| key.as_str().starts_with(prefix))
        .map(|(key, value)| (key.clone(), value.clone()));
    let mut like_these = HeaderMap::new();
    for (key, value) in kept {
        like_these.append(key, value);
    }
    MetadataMap::from_headers(like_these)
}

fn trailing(metadata: &MetadataMap) -> MetadataMap {
    let mut trailing = starting(metadata, "t-");
    let number = |key| word(metadata, key)?.parse::<usize>().ok();
    if let Some(size) = number("do-big") {
        trailing.insert("t-big", "x".repeat(size).parse().expect("it is a value"));
    }
    for at in 0..number("do-many").unwrap_or(0) {
        let key: tonic::metadata::AsciiMetadataKey =
            format!("t-many-{at}").parse().expect("it is a key");
        trailing.insert(key, at.into());
    }
    trailing
}

/// All metadata as it came; of a deadline only that there is one.
fn inspect(metadata: &MetadataMap) -> Bytes {
    let mut seen = pairs(metadata);
    let timed = metadata.contains_key("grpc-timeout");
    seen.retain(|(key, _)| key != "grpc-timeout");
    let deadline = if timed { "some" } else { "none" };
    seen.push(("(deadline)".to_owned(), deadline.to_owned()));
    let lines: Vec<String> = seen
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    lines.join("\n").into()
}
