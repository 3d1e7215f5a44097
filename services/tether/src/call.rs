//! `tether call`: calls any method of a worker with JSON, as its reflection describes it.

use std::io::Read as _;

use anyhow::{Context as _, anyhow};
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};
use tether_client::{Client, Problem};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
};

use crate::{cli, output::Output, reflection};

pub(crate) async fn call(client: &Client, args: cli::Call, out: &Output) -> anyhow::Result<()> {
    let metadata = metadata(&args)?;
    let method = reflection::method(client.channel(), &metadata, &args.method).await?;
    let messages = messages(&read(&args.data)?, &method.input())?;
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());

    let mut request = Request::new(tokio_stream::iter(messages));
    *request.metadata_mut() = metadata;
    request.set_timeout(args.timeout);
    let mut grpc = Grpc::new(client.channel());
    grpc.ready()
        .await
        .map_err(|error| anyhow!("cannot reach the gateway: {error}: is `tether up` running?"))?;
    let answers = grpc
        .streaming(
            request,
            PathAndQuery::try_from(path)?,
            JsonCodec(method.output()),
        )
        .await;
    let mut answers = answers.map_err(Problem::from)?.into_inner();
    while let Some(answer) = answers.message().await.map_err(Problem::from)? {
        let options = SerializeOptions::new()
            .skip_default_fields(false)
            .stringify_64_bit_integers(false);
        let mut json = Vec::new();
        let mut serializer = serde_json::Serializer::new(&mut json);
        answer.serialize_with_options(&mut serializer, &options)?;
        out.line(&String::from_utf8(json)?)?;
    }
    Ok(())
}

fn metadata(args: &cli::Call) -> anyhow::Result<MetadataMap> {
    let mut metadata = MetadataMap::new();
    metadata.insert(
        "tether-pool",
        args.pool
            .parse()
            .context("the pool's name cannot be sent")?,
    );
    if let Some(key) = &args.affinity {
        metadata.insert(
            "tether-affinity",
            key.parse().context("the affinity key cannot be sent")?,
        );
    }
    if let Some(worker) = &args.worker {
        let name = match worker.incarnation.0 {
            0 => format!("{}/{}", worker.pool, worker.slot),
            _ => worker.to_string(),
        };
        metadata.insert(
            "tether-worker",
            name.parse().context("the worker's name cannot be sent")?,
        );
    }
    Ok(metadata)
}

fn read(data: &str) -> anyhow::Result<String> {
    match data.strip_prefix('@') {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            Ok(text)
        }
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))
        }
        None => Ok(data.to_owned()),
    }
}

fn messages(text: &str, input: &MessageDescriptor) -> anyhow::Result<Vec<DynamicMessage>> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    values
        .map(|value| {
            let value = value.context("the request is not JSON")?;
            DynamicMessage::deserialize(input.clone(), value)
                .with_context(|| format!("the request is not a `{}`", input.full_name()))
        })
        .collect()
}

/// Messages of one type, known only at run time.
struct JsonCodec(MessageDescriptor);

impl Codec for JsonCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = ToWire;
    type Decoder = FromWire;

    fn encoder(&mut self) -> ToWire {
        ToWire
    }

    fn decoder(&mut self) -> FromWire {
        FromWire(self.0.clone())
    }
}

struct ToWire;

impl Encoder for ToWire {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message
            .encode(to)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

struct FromWire(MessageDescriptor);

impl Decoder for FromWire {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), from);
        message
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
