//! What end-to-end tests and the demonstration share: a real `tether up`, real clients, real Python
//! workers, and a look into `/proc` that finds everything that was left behind.

mod beam;
mod bucket;
mod by_hand;
mod cable;
pub mod clerk;
mod cluster;
mod data;
pub mod evidence;
pub mod ground;
mod processes;
mod programs;
pub mod proxy;
mod site;
pub mod snakepit;
mod steady;
pub mod supervisor;
mod tidy;
mod wait;

pub use beam::Beam;
pub use bucket::Bucket;
pub use by_hand::{ByHand, Registrar};
pub use cable::Cable;
pub use cluster::{Cluster, Owner, Setup};
pub use data::{Digit, held_out};
pub use processes::{Process, Traces, is_of_gone_maker, kill, marked, mentioning, signal_all};
pub use programs::{Ran, Tether, example, program, python, until_ready};
pub use site::Site;
pub use steady::{Steady, Tally};
pub use tidy::{cgroups, tidy};
pub use wait::{DEADLINE, eventually, eventually_within};

/// The example worker's service.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod digits {
    tonic::include_proto!("digits.v1");
}

/// Snakepit's service, which its BEAM and its workers both serve.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod bridge {
    tonic::include_proto!("snakepit.bridge");
}

use digits::digits_service_client::DigitsServiceClient;
use tether_types::WorkerId;
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

/// Sends calls to one pool, or to one worker of it.
#[derive(Debug, Clone)]
pub struct ToPool {
    pool: String,
    worker: Option<String>,
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
        if let Some(worker) = &self.worker {
            request
                .metadata_mut()
                .insert("tether-worker", value(worker)?);
        }
        Ok(request)
    }
}

/// A client of the digits workers of one pool.
pub fn digits_client(
    channel: Channel,
    pool: &str,
) -> DigitsServiceClient<InterceptedService<Channel, ToPool>> {
    let to = ToPool {
        pool: pool.to_owned(),
        worker: None,
    };
    DigitsServiceClient::with_interceptor(channel, to)
}

/// A client of one digits worker.
pub fn worker_client(
    channel: Channel,
    worker: &WorkerId,
) -> DigitsServiceClient<InterceptedService<Channel, ToPool>> {
    let to = ToPool {
        pool: worker.pool.to_string(),
        worker: Some(worker.to_string()),
    };
    DigitsServiceClient::with_interceptor(channel, to)
}
