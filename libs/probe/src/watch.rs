//! grpc.health.v1 Watch: told of every change, without asking again.

use futures::{Stream, StreamExt as _, stream};
use tether_types::Address;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// It serves.
    Serving,
    /// It says that it does not, and how.
    NotServing(String),
    /// It says nothing, and why.
    Silent(String),
}

/// Watches a service; the server where the name is empty. Ends when the server does, or cannot be reached.
pub fn watch(address: &Address, service: &str) -> impl Stream<Item = Watched> + Send + use<> {
    let mut client = HealthClient::new(tether_kit::channel::connect(address));
    let service = service.to_owned();
    let silent = |status: tonic::Status| {
        Watched::Silent(format!("{:?}, {}", status.code(), status.message()))
    };
    let told = async move {
        match client.watch(HealthCheckRequest { service }).await {
            Ok(answers) => {
                let answers = answers.into_inner().map(move |answer| match answer {
                    Ok(answer) => match answer.status() {
                        ServingStatus::Serving => Watched::Serving,
                        status => Watched::NotServing(format!("it says {}", status.as_str_name())),
                    },
                    Err(status) => silent(status),
                });
                answers.left_stream()
            }
            Err(status) => stream::iter([silent(status)]).right_stream(),
        }
    };
    stream::once(told).flatten()
}
