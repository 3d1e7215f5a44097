//! What end-to-end tests and the demonstration share: a real `tether up`, real clients, real Python
//! workers, and a look into `/proc` that finds everything that was left behind.

mod cluster;
mod data;
pub mod evidence;
mod processes;
mod programs;
mod wait;

pub use cluster::{Cluster, Owner, Setup};
pub use data::{Digit, held_out};
pub use processes::{Process, Traces, kill, signal_all};
pub use programs::{Ran, Tether, example, program, python};
pub use wait::{DEADLINE, eventually, eventually_within};

/// The example worker's service.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod digits {
    tonic::include_proto!("digits.v1");
}

use digits::digits_service_client::DigitsServiceClient;
use tonic::{Request, Status, metadata::MetadataValue, service::Interceptor, transport::Channel};

/// Sends calls to one pool.
#[derive(Debug, Clone)]
pub struct ToPool {
    pool: String,
    affinity: Option<String>,
}

impl Interceptor for ToPool {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = |text: &str| {
            text.parse::<MetadataValue<_>>()
                .map_err(|error| Status::invalid_argument(error.to_string()))
        };
        request
            .metadata_mut()
            .insert("tether-pool", value(&self.pool)?);
        if let Some(key) = &self.affinity {
            request
                .metadata_mut()
                .insert("tether-affinity", value(key)?);
        }
        Ok(request)
    }
}

/// A client of the digits workers of one pool; with an affinity key its calls go to one of them.
pub fn digits_client(
    channel: Channel,
    pool: &str,
    affinity: Option<&str>,
) -> DigitsServiceClient<tonic::service::interceptor::InterceptedService<Channel, ToPool>> {
    let to = ToPool {
        pool: pool.to_owned(),
        affinity: affinity.map(ToOwned::to_owned),
    };
    DigitsServiceClient::with_interceptor(channel, to)
}
