//! A gRPC client that sends and receives raw bytes, and an HTTP/2 client for what gRPC clients
//! would never send.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use h2::{SendStream, client::ResponseFuture};
use http::{HeaderMap, Request, Response, uri::PathAndQuery};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{MetadataKey, MetadataValue},
    transport::{Channel, Endpoint},
};

/// Nothing in these tests takes longer unless it hangs.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Waits for something that must happen soon.
pub(crate) async fn soon<F: Future>(what: &str, work: F) -> F::Output {
    match tokio::time::timeout(SOON, work).await {
        Ok(output) => output,
        Err(_) => panic!("{what} took longer than {SOON:?}"),
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Client {
    grpc: Grpc<Channel>,
}

pub(crate) type Metadata<'a> = &'a [(&'static str, &'a str)];

impl Client {
    pub(crate) async fn connect(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("it is a URI");
        let channel = soon("connecting", endpoint.connect())
            .await
            .expect("it listens");
        Self::over(channel)
    }

    pub(crate) fn over(channel: Channel) -> Self {
        let grpc = Grpc::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Self { grpc }
    }

    async fn ready(&self) -> Grpc<Channel> {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.expect("the channel is open");
        grpc
    }

    pub(crate) async fn unary(
        &self,
        method: &'static str,
        metadata: Metadata<'_>,
        message: impl Into<Bytes>,
    ) -> Result<tonic::Response<Bytes>, Status> {
        let request = request(metadata, message.into());
        let call = async {
            self.ready()
                .await
                .unary(request, path(method), RawCodec)
                .await
        };
        soon(method, call).await
    }

    /// The same over a connection that may not stand.
    pub(crate) async fn try_unary(
        &self,
        method: &'static str,
        metadata: Metadata<'_>,
        message: impl Into<Bytes>,
    ) -> Result<tonic::Response<Bytes>, Status> {
        let request = request(metadata, message.into());
        let call = async {
            let mut grpc = self.grpc.clone();
            let ready = grpc.ready().await;
            ready.map_err(|error| Status::unknown(error.to_string()))?;
            grpc.unary(request, path(method), RawCodec).await
        };
        soon(method, call).await
    }

    pub(crate) async fn server_stream(
        &self,
        method: &'static str,
        metadata: Metadata<'_>,
        message: impl Into<Bytes>,
    ) -> Result<Streaming<Bytes>, Status> {
        let request = request(metadata, message.into());
        let call = async {
            let mut grpc = self.ready().await;
            grpc.server_streaming(request, path(method), RawCodec).await
        };
        Ok(soon(method, call).await?.into_inner())
    }

    pub(crate) async fn client_stream<S>(
        &self,
        method: &'static str,
        metadata: Metadata<'_>,
        messages: S,
    ) -> Result<Bytes, Status>
    where
        S: futures::Stream<Item = Bytes> + Send + 'static,
    {
        let request = request(metadata, messages);
        let call = async {
            let mut grpc = self.ready().await;
            grpc.client_streaming(request, path(method), RawCodec).await
        };
        Ok(soon(method, call).await?.into_inner())
    }

    pub(crate) async fn bidi<S>(
        &self,
        method: &'static str,
        metadata: Metadata<'_>,
        messages: S,
    ) -> Result<Streaming<Bytes>, Status>
    where
        S: futures::Stream<Item = Bytes> + Send + 'static,
    {
        let request = request(metadata, messages);
        let call = async {
            let mut grpc = self.ready().await;
            grpc.streaming(request, path(method), RawCodec).await
        };
        Ok(soon(method, call).await?.into_inner())
    }
}

/// The next message of a stream that has one.
pub(crate) async fn next(stream: &mut Streaming<Bytes>) -> Result<Option<Bytes>, Status> {
    soon("the next message", stream.message()).await
}

fn path(method: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(method)
}

fn request<T>(metadata: Metadata<'_>, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    for (key, value) in metadata {
        if key.ends_with("-bin") {
            let key = MetadataKey::from_static(key);
            let value = MetadataValue::from_bytes(value.as_bytes());
            request.metadata_mut().insert_bin(key, value);
        } else {
            let value = value.parse().expect("it is a metadata value");
            request.metadata_mut().insert(*key, value);
        }
    }
    request
}

/// An answer as it stood on the wire.
pub(crate) struct RawAnswer {
    pub(crate) headers: HeaderMap,
    pub(crate) data: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl RawAnswer {
    pub(crate) fn status(&self) -> Status {
        let headers = self.trailers.as_ref().unwrap_or(&self.headers);
        Status::from_header_map(headers).expect("there is a status")
    }
}

/// Makes one call with exactly these headers, over its own connection.
pub(crate) async fn raw(address: &str, request: Request<()>, message: Bytes) -> RawAnswer {
    let call = async {
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (sender, connection) = h2::client::handshake(stream)
            .await
            .expect("it speaks HTTP/2");
        let driver = tokio::spawn(connection);
        let mut sender = sender.ready().await.expect("it takes a call");
        let (response, mut body) = sender.send_request(request, false).expect("it can be sent");
        // A call that is refused for its head may be answered, and over, before there is a message to send.
        let _ = body.send_data(message, true);
        let (head, mut body) = Response::into_parts(response.await.expect("it answers"));
        let mut data = Vec::new();
        while let Some(chunk) = body.data().await {
            data.extend_from_slice(&chunk.expect("the answer is whole"));
        }
        let trailers = body.trailers().await.expect("the answer is whole");
        driver.abort();
        RawAnswer {
            headers: head.headers,
            data,
            trailers,
        }
    };
    soon("a raw call", call).await
}

/// Opens a call to the pool `digits` on its own connection, which ends with the last part.
pub(crate) async fn open(
    address: &str,
    method: &str,
) -> (SendStream<Bytes>, ResponseFuture, AbortOnDropHandle<()>) {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let (sender, connection) = h2::client::handshake(stream)
        .await
        .expect("it speaks HTTP/2");
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    let mut sender = sender.ready().await.expect("it takes a call");
    let request = grpc_request(method, &[("tether-pool", "digits")]);
    let (response, body) = sender.send_request(request, false).expect("it can be sent");
    (body, response, AbortOnDropHandle::new(driver))
}

/// A gRPC request with these headers beside the usual ones.
pub(crate) fn grpc_request(method: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post(format!("http://gateway{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (key, value) in headers {
        request = request.header(*key, *value);
    }
    request.body(()).expect("it is a request")
}

/// A message with the five bytes that gRPC puts before it.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("it is short");
    [&[0][..], &length.to_be_bytes(), message].concat().into()
}
