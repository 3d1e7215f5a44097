//! What Envoy and gRPC clients are told of pools, in Envoy's own protocol (xDS). Pure.
//!
//! A [`Catalog`] is made from what any watcher of discovery is told, and describes each pool by four resources of one
//! name. A stream ([`Sotw`] or [`Delta`]) knows what its client wants and which version of what it was told; asked for
//! what comes [`next`](Stream::next), it compares that with the catalog.
//!
//! ```text
//! WatchEndpointsResponse --> Catalog { pool -> Listener, RouteConfiguration, Cluster, ClusterLoadAssignment }
//!                               |
//! requests --> Stream { wanted, told } --next--> a response, or nothing
//! ```
//!
//! # Invariants
//!
//! - **X1** What a stream was told adds up to what its client wants of the catalog, in both forms of the protocol.
//! - **X2** Nothing is told twice: a response comes only where something has changed for that stream, and what a client
//!   refuses is not told again before it changes. What was gone and is back is told anew, whether or not its end could be.
//! - **X3** There is no queue. One response of a kind is under way at a time, and what changes until it is answered is
//!   told at once in the next.
//! - **X4** A cluster is told before its endpoints, and a cluster that is new to a client is followed by its endpoints.
//! - **X5** A version says what a resource is, and nothing of who tells it: replicas of discovery, and one that was
//!   restarted, give equal resources equal versions.
//! - **X6** What a stream keeps is bounded by the names its client wants and the pools there are.

mod assignment;
mod catalog;
mod delta;
mod describe;
mod flow;
mod kind;
#[cfg(test)]
mod properties;
mod resource;
mod sotw;
mod stream;
mod wanted;

/// Messages and services, generated from `proto/`.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/xds.rs"));
}

pub use catalog::{Balance, Catalog};
pub use delta::Delta;
pub use kind::Kind;
pub use sotw::Sotw;
pub use stream::{Heard, Part, Stream};
pub use wanted::{NAMES_MAX, TooManyNames};

/// The schemas of [`wire`], encoded as a `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
