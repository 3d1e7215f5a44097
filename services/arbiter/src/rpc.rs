//! One file per service: convert in, let the ledger decide, convert out.

mod gateway;
mod job;
mod node;
mod pool;
mod registry;
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
pub(crate) use registry::Registrations;
pub(crate) use session::Sessions;
pub(crate) use worker::Workers;

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The longest word for a life of whoever calls, in bytes: it is kept for as long as that is known.
const LIFE_MAX: usize = 64;

/// Whether a word that tells one life of something from another can be one.
fn check_life(field: &'static str, life: &str) -> Result<(), Failure> {
    let bytes = life.len();
    if (1..=LIFE_MAX).contains(&bytes) {
        return Ok(());
    }
    let text = format!("`{field}` has {bytes} bytes, use 1 to {LIFE_MAX}");
    Err(Failure::new(Reason::ConfigInvalid, text))
}

fn owner(name: &str) -> Result<OwnerName, Failure> {
    OwnerName::new(name).map_err(|error| Failure::new(Reason::ConfigInvalid, error.to_string()))
}
