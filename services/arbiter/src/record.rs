//! What the arbiter writes into the store about its own affairs.

use tether_proto::{
    common::{Death, ProcessIdentity},
    pool::PoolSpec,
    registry::Condition,
};

/// A pool, as it must be known after a restart.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PoolRecord {
    /// Resolved.
    #[prost(message, optional, tag = "1")]
    pub(crate) spec: Option<PoolSpec>,
    #[prost(string, tag = "2")]
    pub(crate) owner: String,
    #[prost(string, tag = "3")]
    pub(crate) mode_why: String,
    #[prost(bool, tag = "4")]
    pub(crate) draining: bool,
    /// How its owner was lost, where it was: the answer differs.
    #[prost(string, tag = "5")]
    pub(crate) loss: String,
    /// Why it is being ended, where it is: its last worker may outlive the arbiter.
    #[prost(message, optional, tag = "6")]
    pub(crate) ending: Option<Death>,
    /// What it becomes after its end.
    #[prost(message, optional, boxed, tag = "7")]
    pub(crate) next: Option<Box<PoolRecord>>,
    /// The longest its workers may have been told to outlive their node's lease, and with a job its last beat.
    #[prost(uint64, tag = "8")]
    pub(crate) longest_grace_ms: u64,
    #[prost(uint64, tag = "9")]
    pub(crate) longest_job_ttl_ms: u64,
    /// Incarnations up to this one are of an earlier template.
    #[prost(uint64, tag = "10")]
    pub(crate) fresh_after: u64,
    /// Places beyond the size, whose workers stand in for others that are being replaced.
    #[prost(uint32, repeated, tag = "11")]
    pub(crate) extra: Vec<u32>,
}

/// A session; its epoch is the revision of the commit that wrote it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OwnerRecord {
    #[prost(message, optional, tag = "1")]
    pub(crate) process: Option<ProcessIdentity>,
    #[prost(uint64, tag = "2")]
    pub(crate) ttl_ms: u64,
}

/// A node that may have workers.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeRecord {
    /// Which runtime directory its agent stands on.
    #[prost(string, tag = "1")]
    pub(crate) instance: String,
}

/// A node that takes no workers, as somebody said.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct CordonRecord {
    /// Whether those it has are to leave it.
    #[prost(bool, tag = "1")]
    pub(crate) drained: bool,
}

/// Who leads; the reign's number is the revision of the commit that wrote it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LeaderRecord {
    /// Which process, and which of its attempts.
    #[prost(string, tag = "1")]
    pub(crate) candidate: String,
    #[prost(uint64, tag = "2")]
    pub(crate) attempt: u64,
    /// Where it is reached; empty where it cannot tell.
    #[prost(string, tag = "3")]
    pub(crate) address: String,
}

/// A place that a worker with a job may hold for long, whatever becomes of its node.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HoldRecord {
    #[prost(string, tag = "1")]
    pub(crate) node: String,
    #[prost(uint64, tag = "2")]
    pub(crate) incarnation: u64,
}

/// A worker that is registered. Its ttl is the only one there was, so that whoever takes it up waits long enough.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RegistrationRecord {
    #[prost(string, tag = "1")]
    pub(crate) life: String,
    #[prost(uint32, tag = "2")]
    pub(crate) slot: u32,
    #[prost(uint64, tag = "3")]
    pub(crate) incarnation: u64,
    #[prost(string, tag = "4")]
    pub(crate) address: String,
    #[prost(string, tag = "5")]
    pub(crate) protocol: String,
    #[prost(uint64, tag = "6")]
    pub(crate) ttl_ms: u64,
    #[prost(message, optional, tag = "7")]
    pub(crate) condition: Option<Condition>,
}

/// How far incarnations have been given out.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct IncarnationRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) up_to: u64,
}
