//! grpc.health.v1 Watch: told of every change, without asking again.

use futures::{Stream, StreamExt as _, stream};
use tether_types::Address;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{How, Question, value_of};

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// It serves; and who it is, where a header was named and there.
    Serving(Option<String>),
    /// It says that it does not, and how.
    NotServing(String),
    /// It says nothing, and why.
    Silent(String),
}

/// Watches a service; the server where the name is empty. What is told ends when the server does, or cannot be reached.
/// One that hangs or is cut off just tells nothing: the question, over the same connection, finds that out.
pub fn watch(
    address: &Address,
    service: &str,
    header: Option<&str>,
) -> (Question, impl Stream<Item = Watched> + Send + use<>) {
    let mut client = HealthClient::new(tether_kit::channel::connect(address));
    let question = Question {
        address: address.clone(),
        how: How::Grpc {
            client: client.clone(),
            service: service.to_owned(),
        },
    };
    let (service, header) = (service.to_owned(), header.map(str::to_owned));
    let silent = |status: tonic::Status| {
        Watched::Silent(format!("{:?}, {}", status.code(), status.message()))
    };
    let told = async move {
        match client.watch(HealthCheckRequest { service }).await {
            Ok(answers) => {
                let who = value_of(answers.metadata().as_ref(), header.as_deref());
                let answers = answers.into_inner().map(move |answer| match answer {
                    Ok(answer) => match answer.status() {
                        ServingStatus::Serving => Watched::Serving(who.clone()),
                        status => Watched::NotServing(format!("it says {}", status.as_str_name())),
                    },
                    Err(status) => silent(status),
                });
                answers.left_stream()
            }
            Err(status) => stream::iter([silent(status)]).right_stream(),
        }
    };
    (question, stream::once(told).flatten())
}
