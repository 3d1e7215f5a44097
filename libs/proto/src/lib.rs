//! The wire: generated messages and services, their conversion to our types, and the mapping of
//! reasons to gRPC statuses.
//!
//! `tether-types` never knows this crate; cores are called with its types, never with a message.

#[allow(missing_docs, clippy::all, unreachable_pub)]
mod generated {
    pub mod common {
        pub mod v1 {
            tonic::include_proto!("tether.common.v1");
        }
    }
    pub mod session {
        pub mod v1 {
            tonic::include_proto!("tether.session.v1");
        }
    }
    pub mod pool {
        pub mod v1 {
            tonic::include_proto!("tether.pool.v1");
        }
    }
    pub mod worker {
        pub mod v1 {
            tonic::include_proto!("tether.worker.v1");
        }
    }
    pub mod node {
        pub mod v1 {
            tonic::include_proto!("tether.node.v1");
        }
    }
    pub mod discovery {
        pub mod v1 {
            tonic::include_proto!("tether.discovery.v1");
        }
    }
    pub mod job {
        pub mod v1 {
            tonic::include_proto!("tether.job.v1");
        }
    }
    pub mod checkpoint {
        pub mod v1 {
            tonic::include_proto!("tether.checkpoint.v1");
        }
    }
    pub mod gateway {
        pub mod v1 {
            tonic::include_proto!("tether.gateway.v1");
        }
    }
    pub mod registry {
        pub mod v1 {
            tonic::include_proto!("tether.registry.v1");
        }
    }
    pub mod fate {
        pub mod v1 {
            tonic::include_proto!("tether.fate.v1");
        }
    }
}

mod codec;
mod convert;
mod failure;
mod shard;

pub use codec::SmallCodec;
pub use convert::Malformed;
pub use failure::{Failure, NotLeader, UNKNOWN_NODE, reason_of};
pub use generated::{
    checkpoint::v1 as checkpoint, common::v1 as common, discovery::v1 as discovery,
    fate::v1 as fate, gateway::v1 as gateway, job::v1 as job, node::v1 as node, pool::v1 as pool,
    registry::v1 as registry, session::v1 as session, worker::v1 as worker,
};
pub use shard::{SHARD, admit_shard, expect_shard};

/// Every schema of ours, encoded as a `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
