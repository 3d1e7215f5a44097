//! The lines of a history.

use std::str::FromStr as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tether_types::{InstanceName, NodeName, OwnerName, PoolName, WorkerId};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, as a tick of the machine that wrote it.
    pub at: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened, or was decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// A process began to write; the lines after this one are its own.
    Opened {
        /// Which service, and where there are several of it which one.
        service: String,
        /// The machine's boot id.
        boot: String,
    },
    /// A grantor granted or extended a lease: it will not give it to anyone else while that much is left.
    Granted {
        /// Which: `node/n1`, `session/checkout@host-1`. See [`lease_of_node`] and [`lease_of_owner`].
        lease: String,
        /// The holder's fencing token.
        epoch: u64,
        /// Nanoseconds to its end, as the grantor counts.
        left: u64,
    },
    /// A grantor may give the lease to somebody else from here on.
    Freed {
        /// Which.
        lease: String,
        /// Whose.
        epoch: u64,
        /// On what ground.
        why: Freed,
    },
    /// A holder acts on a lease while that much is left, and no longer.
    Held {
        /// Which.
        lease: String,
        /// Its fencing token.
        epoch: u64,
        /// Nanoseconds to its end, as the holder counts.
        left: u64,
    },
    /// A holder has stopped acting on a lease.
    Stopped {
        /// Which.
        lease: String,
        /// Its fencing token.
        epoch: u64,
    },
    /// An arbiter decided where an incarnation goes.
    Placed {
        /// Which.
        worker: Worker,
        /// Where to.
        node: String,
    },
    /// An agent passed permission on to the shims of its workers.
    Permitted {
        /// Whose.
        scope: Scope,
        /// Nanoseconds for which calls may be served.
        enabled: u64,
        /// Nanoseconds for which workers may live; absent for as long as their node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alive: Option<u64>,
    },
    /// A worker runs.
    Started {
        /// Which.
        worker: Worker,
        /// Where.
        node: String,
        /// How long before the end of its permission it is asked to end.
        #[serde(default)]
        grace_ms: u64,
    },
    /// Nothing of a worker is left.
    Died {
        /// Which.
        worker: Worker,
        /// When the kernel said so; absent where nobody was there to see it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        died: Option<u64>,
        /// Why.
        cause: String,
    },
    /// An arbiter recorded a death.
    Buried {
        /// Whose.
        worker: Worker,
        /// Why.
        cause: String,
    },
    /// Somebody was let through a gate that asks for a fencing token.
    Admitted {
        /// Where.
        gate: String,
        /// What is guarded.
        resource: String,
        /// The token.
        fence: u64,
    },
    /// Somebody was refused at such a gate.
    Refused {
        /// Where.
        gate: String,
        /// What is guarded.
        resource: String,
        /// The token.
        fence: u64,
    },
}

/// How the lease of a registration is called in histories.
pub fn lease_of_registration(pool: &PoolName, name: &InstanceName) -> String {
    format!("registration/{pool}/{name}")
}

/// How a node's lease is called in histories.
pub fn lease_of_node(node: &NodeName) -> String {
    format!("node/{node}")
}

/// How the lease of an owner's session is.
pub fn lease_of_owner(owner: &OwnerName) -> String {
    format!("session/{owner}")
}

/// On what ground a lease is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freed {
    /// It ran out.
    Expired,
    /// Its holder gave it back.
    Returned,
    /// Its holder is proven dead, or a witness says so.
    Proof,
    /// A later life of the same holder took it over, and the earlier one is fenced off.
    TakenOver,
}

/// Whose permission it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// That of all workers of a node.
    Node(String),
    /// That of one pool's workers on a node.
    Pool {
        /// The node.
        node: String,
        /// The pool.
        pool: String,
    },
}

/// A worker, written as everywhere: `pool/slot.incarnation`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker(pub WorkerId);

impl Worker {
    /// Its place, whichever lives there.
    pub(crate) fn place(&self) -> (String, u32) {
        (self.0.pool.to_string(), self.0.slot)
    }
}

impl Serialize for Worker {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Worker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        WorkerId::from_str(&text)
            .map(Self)
            .map_err(de::Error::custom)
    }
}
