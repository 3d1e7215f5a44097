//! Learns a worker's methods by server reflection.

use anyhow::{Context as _, anyhow, bail};
use prost::Message as _;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use prost_types::FileDescriptorProto;
use tether_client::Problem;
use tonic::{Code, Request, metadata::MetadataMap, transport::Channel};
use tonic_reflection::pb::{v1, v1alpha};

/// The method called `package.Service/Method`, asked of the worker that `metadata` names.
///
/// # Errors
/// When the worker has no reflection, or no such method.
pub(crate) async fn method(
    channel: Channel,
    metadata: &MetadataMap,
    name: &str,
) -> anyhow::Result<MethodDescriptor> {
    let (service, method) = name
        .trim_start_matches('/')
        .rsplit_once('/')
        .ok_or_else(|| anyhow!("`{name}` is not a method: write it as `package.Service/Method`"))?;
    let files = files(channel, metadata, service)
        .await
        .with_context(|| format!("cannot learn the methods of `{service}` by server reflection"))?;
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_protos(files)?;
    let service = pool
        .get_service_by_name(service)
        .ok_or_else(|| anyhow!("the worker describes no service `{service}`"))?;
    let found = service.methods().find(|known| known.name() == method);
    found.ok_or_else(|| {
        let known: Vec<_> = service
            .methods()
            .map(|method| method.name().to_owned())
            .collect();
        anyhow!(
            "`{}` has no method `{method}`, expected one of: {}",
            service.full_name(),
            known.join(", ")
        )
    })
}

/// Asks in one version of the protocol; grpcio's servers speak only the older of two that are alike.
macro_rules! ask {
    ($version:ident, $channel:expr, $metadata:expr, $symbol:expr) => {{
        use $version::{
            server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };

        let ask = $version::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileContainingSymbol($symbol.to_owned())),
        };
        let mut request = Request::new(tokio_stream::once(ask));
        request.metadata_mut().clone_from($metadata);
        let mut client = ServerReflectionClient::new($channel);
        match client.server_reflection_info(request).await {
            Err(status) => Err(status),
            Ok(answers) => answers.into_inner().message().await.map(|answer| {
                match answer.and_then(|answer| answer.message_response) {
                    Some(MessageResponse::FileDescriptorResponse(answer)) => {
                        Ok(answer.file_descriptor_proto)
                    }
                    Some(MessageResponse::ErrorResponse(error)) => Err(error.error_message),
                    _ => Err("the answer holds nothing".to_owned()),
                }
            }),
        }
    }};
}

/// The file that describes a service, and everything it needs.
async fn files(
    channel: Channel,
    metadata: &MetadataMap,
    service: &str,
) -> anyhow::Result<Vec<FileDescriptorProto>> {
    let mut answer = ask!(v1, channel.clone(), metadata, service);
    if matches!(&answer, Err(status) if status.code() == Code::Unimplemented) {
        answer = ask!(v1alpha, channel, metadata, service);
    }
    let files = match answer {
        Ok(told) => told.map_err(|text| anyhow!("{text}"))?,
        Err(status) if status.code() == Code::Unimplemented => {
            bail!("the worker offers no server reflection: add it (Python: grpcio-reflection)")
        }
        Err(status) => return Err(Problem::from(status).into()),
    };
    files
        .iter()
        .map(|bytes| Ok(FileDescriptorProto::decode(&**bytes)?))
        .collect()
}
