//! One file per service: convert in, let the ledger decide, convert out.

mod gateway;
mod job;
mod node;
mod pool;
mod session;
mod worker;

use std::pin::Pin;

use futures::Stream;
use tether_proto::Failure;
use tether_types::{OwnerName, Reason};
use tonic::Status;

pub(crate) use gateway::Gateways;
pub(crate) use job::Jobs;
pub(crate) use node::Nodes;
pub(crate) use pool::Pools;
pub(crate) use session::Sessions;
pub(crate) use worker::Workers;

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn owner(name: &str) -> Result<OwnerName, Failure> {
    OwnerName::new(name).map_err(|error| Failure::new(Reason::ConfigInvalid, error.to_string()))
}
