//! The worker's side of the contract on tonic; `worker.py` is its twin on grpcio and says what the metadata asks for.

mod call;

use std::{
    convert::Infallible,
    future::pending,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use tether_kit::{listen::Listener, tls::Acceptor};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::CompressionEncoding,
    metadata::MetadataMap,
    server::{
        ClientStreamingService, Grpc, NamedService, ServerStreamingService, StreamingService,
        UnaryService,
    },
    transport::Server,
};

use call::{BoxStream, Call, Fates, inspect, trailing};

use crate::client::RawCodec;

pub(crate) struct Worker {
    pub(crate) address: String,
    _serving: AbortOnDropHandle<()>,
}

impl Worker {
    pub(super) async fn start() -> Self {
        Self::start_at(Listener::Tcp(port().await)).await
    }

    /// One that speaks TLS.
    pub(super) async fn secure(acceptor: Acceptor) -> Self {
        Self::start_at(Listener::Tcp(port().await).with_tls(Arc::new(acceptor))).await
    }

    async fn start_at(listener: Listener) -> Self {
        let address = listener.local_address().expect("it is bound").to_string();
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
            .serve_with_incoming(listener.incoming(CancellationToken::new()));
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

async fn port() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await;
    listener.expect("there is a port")
}

/// The service: the method's name says what it does.
#[derive(Clone, Default)]
struct Contract(Fates);

impl NamedService for Contract {
    const NAME: &'static str = "conform.v1.Contract";
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tower::Service<http::Request<Body>> for Contract {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self(fates) = self.clone();
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
                    grpc.unary(Unary(fates, name.to_owned()), request).await
                }
                name @ ("Sizes" | "OneThenHang") => {
                    let stream = Download(fates, name.to_owned());
                    grpc.server_streaming(stream, request).await
                }
                name @ ("Digest" | "Deaf") => {
                    let upload = Upload(fates, name.to_owned());
                    grpc.client_streaming(upload, request).await
                }
                name @ ("PingPong" | "Reverse" | "Early") => {
                    let bidi = Bidi(fates, name.to_owned());
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

struct Unary(Fates, String);

impl UnaryService<Bytes> for Unary {
    type Response = Bytes;
    type Future = BoxFuture<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let Self(fates, method) = self;
        let (fates, method) = (fates.clone(), method.clone());
        Box::pin(async move {
            let mut call = Call::begin(&fates, request.metadata()).await;
            call.saw();
            let answer = match method.as_str() {
                "Size" => call.answers().remove(0),
                "Inspect" => inspect(request.metadata()),
                "Hang" => pending().await,
                "Fate" => fates.tell(&call).await,
                _ => request.into_inner(),
            };
            call.failure()?;
            Ok(call.respond(answer))
        })
    }
}

struct Download(Fates, String);

impl ServerStreamingService<Bytes> for Download {
    type Response = Bytes;
    type ResponseStream = BoxStream;
    type Future = BoxFuture<Result<Response<BoxStream>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let Self(fates, method) = self;
        let (fates, hangs) = (fates.clone(), method == "OneThenHang");
        Box::pin(async move {
            let call = Call::begin(&fates, request.metadata()).await;
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

struct Upload(Fates, String);

impl ClientStreamingService<Bytes> for Upload {
    type Response = Bytes;
    type Future = BoxFuture<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let Self(fates, method) = self;
        let (fates, deaf) = (fates.clone(), method == "Deaf");
        Box::pin(async move {
            let mut call = Call::begin(&fates, request.metadata()).await;
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

struct Bidi(Fates, String);

impl StreamingService<Bytes> for Bidi {
    type Response = Bytes;
    type ResponseStream = BoxStream;
    type Future = BoxFuture<Result<Response<BoxStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let Self(fates, method) = self;
        let (fates, method) = (fates.clone(), method.clone());
        Box::pin(async move {
            let call = Call::begin(&fates, request.metadata()).await;
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
