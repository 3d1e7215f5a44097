//! The client's side on tonic: makes a call, and tells how it ended.

use std::{future::pending, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::BoxFuture, stream};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tether_kit::tls::Connector;
use tether_types::Address;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    client::Grpc,
    codec::CompressionEncoding,
    metadata::{KeyAndValueRef, MetadataKey, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{
    case::{Case, Kind, Message},
    patiently,
    pattern::{crc, hex, pattern, unhex},
    record::{Pairs, Record},
};
use crate::client::{RawCodec, soon};

pub(super) const SERVICE: &str = "/conform.v1.Contract/";
const CANCELLED: i32 = 1;
/// How much later than whoever else keeps a deadline the client does.
const PATIENCE: Duration = Duration::from_millis(300);

pub(super) struct Client {
    channel: Channel,
    way: String,
}

impl Client {
    pub(super) async fn connect(address: &str, way: &str, tls: Option<Connector>) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .expect("it is a URI")
            .http2_max_header_list_size(1 << 17);
        let channel = match tls {
            None => soon("connecting", endpoint.connect()).await,
            Some(tls) => soon("connecting", secure(endpoint, address, tls)).await,
        };
        Self {
            channel: channel.expect("it listens"),
            way: way.to_owned(),
        }
    }

    pub(super) async fn play(&self, case: &Case) -> Record {
        let id = format!("{} {}", self.way, case.name);
        let mut metadata = metadata(&case.metadata);
        if case.fate {
            metadata.insert("do-id", id.parse().expect("it is a value"));
        }
        let mut seen = Seen::default();
        let played = async {
            let calling = self.call(case, metadata, &mut seen);
            let given_up = async {
                match case.cancel_after {
                    Some(0) => {
                        let sent = case.messages.len().to_string();
                        self.fate(&id, Some(&sent)).await;
                    }
                    _ => pending().await,
                }
            };
            // tonic itself keeps a deadline only until the head of the answer is there.
            let late = async {
                match case.timeout_ms {
                    Some(timeout) => {
                        tokio::time::sleep(PATIENCE + Duration::from_millis(timeout)).await
                    }
                    None => pending().await,
                }
            };
            tokio::select! {
                ended = calling => ended,
                () = given_up => Err(Status::cancelled("")),
                () = late => Err(Status::deadline_exceeded("")),
            }
        };
        let ended = patiently(&id, played).await;
        let (code, details, trailing) = match ended {
            Ok(trailers) => (0, String::new(), trailers),
            Err(status) => (
                i32::from(status.code()),
                status.message().to_owned(),
                with_details(&status),
            ),
        };
        Record {
            name: case.name.clone(),
            code,
            details,
            initial: pairs(&seen.initial),
            messages: seen.messages,
            trailing: pairs(&trailing),
            // tonic leaves an upload open when it lets go of the answer.
            fate: match case.fate && !(case.open && case.kind == Kind::Bidi) {
                true => Some(self.fate(&id, None).await),
                false => None,
            },
        }
    }

    async fn fate(&self, id: &str, seen: Option<&str>) -> String {
        let mut asked = vec![("tether-pool", "digits"), ("do-of", id)];
        asked.extend(seen.map(|seen| ("do-seen", seen)));
        let asked: Vec<_> = asked
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut request = Request::new(Bytes::new());
        *request.metadata_mut() = metadata(&asked);
        let mut grpc = self.grpc(false).await;
        let answer = soon(id, grpc.unary(request, path("Fate"), RawCodec)).await;
        let answer = answer.expect("fates are told").into_inner();
        String::from_utf8(answer.to_vec()).expect("it is a text")
    }

    async fn grpc(&self, gzip: bool) -> Grpc<Channel> {
        let mut grpc = Grpc::new(self.channel.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
            .accept_compressed(CompressionEncoding::Gzip);
        if gzip {
            grpc = grpc.send_compressed(CompressionEncoding::Gzip);
        }
        grpc.ready().await.expect("the channel is open");
        grpc
    }

    /// Answers with the trailers of a call that went well.
    async fn call(
        &self,
        case: &Case,
        metadata: MetadataMap,
        seen: &mut Seen,
    ) -> Result<MetadataMap, Status> {
        let mut grpc = self.grpc(case.gzip).await;
        let path = path(case.method);
        let (turns, requests) = requests(case);
        match case.kind {
            Kind::Unary => {
                let message = bytes(&case.messages[0]);
                let request = request(message, metadata, case.timeout_ms);
                seen.one(grpc.unary(request, path, RawCodec).await?);
                Ok(MetadataMap::new())
            }
            Kind::ClientStream => {
                let request = request(requests, metadata, case.timeout_ms);
                seen.one(grpc.client_streaming(request, path, RawCodec).await?);
                Ok(MetadataMap::new())
            }
            Kind::ServerStream => {
                let message = bytes(&case.messages[0]);
                let request = request(message, metadata, case.timeout_ms);
                let answer = grpc.server_streaming(request, path, RawCodec).await?;
                seen.all(answer, case.cancel_after, &turns).await
            }
            Kind::Bidi => {
                let request = request(requests, metadata, case.timeout_ms);
                let answer = grpc.streaming(request, path, RawCodec).await?;
                seen.all(answer, case.cancel_after, &turns).await
            }
        }
    }
}

/// A channel with TLS.
pub(crate) async fn secure(
    endpoint: Endpoint,
    address: &str,
    tls: Connector,
) -> Result<Channel, tonic::transport::Error> {
    let address: Address = address.parse().expect("it is an address");
    let tls = Arc::new(tls);
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let (tls, address) = (Arc::clone(&tls), address.clone());
        async move {
            let stream = tether_kit::channel::dial(&address).await?;
            let stream = tls.connect(stream, &address).await?;
            std::io::Result::Ok(TokioIo::new(stream))
        }
    });
    endpoint.connect_with_connector(connector).await
}

/// What has arrived of an answer.
#[derive(Default)]
struct Seen {
    initial: MetadataMap,
    messages: Vec<(usize, u32)>,
}

impl Seen {
    fn message(&mut self, message: &Bytes) {
        self.messages.push((message.len(), crc(message)));
    }

    fn one(&mut self, answer: Response<Bytes>) {
        self.initial = answer.metadata().clone();
        self.message(answer.get_ref());
    }

    async fn all(
        &mut self,
        answer: Response<Streaming<Bytes>>,
        cancel_after: Option<usize>,
        turns: &mpsc::UnboundedSender<()>,
    ) -> Result<MetadataMap, Status> {
        self.initial = answer.metadata().clone();
        let mut answers = answer.into_inner();
        while let Some(message) = answers.message().await? {
            self.message(&message);
            let _ = turns.send(());
            if Some(self.messages.len()) == cancel_after {
                return Err(Status::new(CANCELLED.into(), ""));
            }
        }
        Ok(answers.trailers().await?.unwrap_or_default())
    }
}

/// The messages of a case. Each takes a turn, where the case is played in lockstep.
fn requests(
    case: &Case,
) -> (
    mpsc::UnboundedSender<()>,
    impl Stream<Item = Bytes> + Send + 'static,
) {
    let (turns, waiting) = mpsc::unbounded_channel();
    let messages: Vec<Bytes> = case.messages.iter().map(bytes).collect();
    let turn = UnboundedReceiverStream::new(waiting);
    let turn = match case.lockstep {
        true => stream::once(async {}).chain(turn).boxed(),
        false => stream::repeat(()).boxed(),
    };
    let end: BoxFuture<'static, ()> = match case.open {
        true => Box::pin(pending()),
        false => Box::pin(async {}),
    };
    let end = stream::once(end).filter_map(async |()| None);
    let messages = stream::iter(messages)
        .zip(turn)
        .map(|(message, ())| message);
    (turns, messages.chain(end))
}

pub(super) fn bytes(message: &Message) -> Bytes {
    match message {
        Message::Size(size) => pattern(*size),
        Message::Hex(hex) => unhex(hex).into(),
    }
}

fn request<T>(message: T, metadata: MetadataMap, timeout_ms: Option<u64>) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = metadata;
    if let Some(timeout) = timeout_ms {
        request.set_timeout(Duration::from_millis(timeout));
    }
    request
}

fn path(method: &str) -> PathAndQuery {
    let path = match method.starts_with('/') {
        true => method.to_owned(),
        false => format!("{SERVICE}{method}"),
    };
    path.parse().expect("it is a path")
}

/// Metadata from keys and values, those of binary keys in hexadecimal.
fn metadata(pairs: &[(String, String)]) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (key, value) in pairs {
        if key.ends_with("-bin") {
            let key = MetadataKey::from_bytes(key.as_bytes()).expect("it is a key");
            metadata.append_bin(key, MetadataValue::from_bytes(&unhex(value)));
        } else {
            let key: MetadataKey<_> = key.parse().expect("it is a key");
            metadata.append(key, value.parse().expect("it is a value"));
        }
    }
    metadata
}

/// The other way round.
pub(super) fn pairs(metadata: &MetadataMap) -> Pairs {
    let mut pairs: Pairs = metadata
        .iter()
        .map(|item| match item {
            KeyAndValueRef::Ascii(key, value) => {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (key.to_string(), value)
            }
            KeyAndValueRef::Binary(key, value) => {
                let decoded = value.to_bytes();
                let value = decoded.map_or_else(|_| "not base64".to_owned(), |value| hex(&value));
                (key.to_string(), value)
            }
        })
        .collect();
    pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
    pairs
}

/// A status's metadata; tonic keeps its details apart.
fn with_details(status: &Status) -> MetadataMap {
    let mut metadata = status.metadata().clone();
    if !status.details().is_empty() {
        let details = MetadataValue::from_bytes(status.details());
        metadata.insert_bin("grpc-status-details-bin", details);
    }
    metadata
}
