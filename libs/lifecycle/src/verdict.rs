//! What can be lost, and what can follow from it.

use std::{fmt, time::Duration};

use crate::words::words;

words! {
    /// Something a worker, or the others, have to do without.
    Loss, "loss" {
        /// The owner's process is proven dead.
        OwnerExited = "owner_exited",
        /// The owner's lease ran out, and nobody can say whether it is dead, hung or cut off.
        OwnerSilent = "owner_silent",
        /// The owner closed its session in an orderly way.
        OwnerLeft = "owner_left",
        /// The worker itself ended.
        WorkerExited = "worker_exited",
        /// The agent that looks after the worker is gone.
        AgentGone = "agent_gone",
        /// The network parts the worker's node from the arbiter.
        Partitioned = "partitioned",
    }
}

/// What follows from a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The workers are killed at once.
    KillNow,
    /// The workers go on for this long, counted from the owner's last sign of life, and are ended
    /// if it has not come back by then. Silence that led to the loss is part of it, not on top.
    RunFor(Duration),
    /// The workers go on, for as long as their agent has its lease.
    Continue,
    /// The slot is filled again, as its restart policy says, by whoever launched the worker.
    Restart,
    /// The workers go on until their node's lease runs out, and then for `grace` without calls, unless the
    /// connection is back by then.
    HoldUntilLease {
        /// How long they live on disabled; zero ends them with the lease.
        grace: Duration,
    },
    /// This cannot happen under the policy, or is not Tether's to answer.
    NotApplicable,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillNow => f.pad("kill now"),
            Self::RunFor(span) => f.pad(&format!("run for {span:?}, then end")),
            Self::Continue => f.pad("continue"),
            Self::Restart => f.pad("restart"),
            Self::HoldUntilLease { grace } if grace.is_zero() => {
                f.pad("hold until the node's lease ends")
            }
            Self::HoldUntilLease { grace } => f.pad(&format!(
                "hold until the node's lease ends, then {grace:?} without calls"
            )),
            Self::NotApplicable => f.pad("does not apply"),
        }
    }
}
