//! From messages to our types and back. A message from outside is checked here, once.

use tether_types::{
    Death, DeathCause, Incarnation, InvalidName, Measures, Orderer, PoolName, ProcessIdentity,
    Reason, WorkerId,
};

use crate::{Failure, common};

/// A message that does not mean anything.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// A field that must be there is not.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// A name in it is not one.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::new(Reason::ConfigInvalid, malformed.to_string())
    }
}

impl From<Malformed> for tonic::Status {
    fn from(malformed: Malformed) -> Self {
        Failure::from(malformed).into()
    }
}

impl From<&WorkerId> for common::WorkerRef {
    fn from(id: &WorkerId) -> Self {
        Self {
            pool: id.pool.to_string(),
            slot: id.slot,
            incarnation: id.incarnation.0,
        }
    }
}

impl TryFrom<&common::WorkerRef> for WorkerId {
    type Error = Malformed;

    fn try_from(worker: &common::WorkerRef) -> Result<Self, Malformed> {
        Ok(Self {
            pool: PoolName::new(&worker.pool)?,
            slot: worker.slot,
            incarnation: Incarnation(worker.incarnation),
        })
    }
}

impl common::WorkerRef {
    /// Reads an optional message field that must be there.
    ///
    /// # Errors
    /// Says that it is missing, or which name in it is not one.
    pub fn required(field: Option<&Self>) -> Result<WorkerId, Malformed> {
        field.ok_or(Malformed::Missing("worker"))?.try_into()
    }
}

impl From<&ProcessIdentity> for common::ProcessIdentity {
    fn from(process: &ProcessIdentity) -> Self {
        Self {
            pid: process.pid,
            start_ticks: process.start_ticks,
            boot_id: process.boot_id.clone(),
            pid_namespace: process.pid_namespace,
        }
    }
}

impl From<&common::ProcessIdentity> for ProcessIdentity {
    fn from(process: &common::ProcessIdentity) -> Self {
        Self {
            pid: process.pid,
            start_ticks: process.start_ticks,
            boot_id: process.boot_id.clone(),
            pid_namespace: process.pid_namespace,
        }
    }
}

impl From<DeathCause> for common::DeathCause {
    fn from(cause: DeathCause) -> Self {
        match cause {
            DeathCause::Exited(_) => Self::Exited,
            DeathCause::Signaled(_) => Self::Signaled,
            DeathCause::OutOfMemory => Self::OutOfMemory,
            DeathCause::LeaseExpired => Self::LeaseExpired,
            DeathCause::OwnerGone => Self::OwnerGone,
            DeathCause::AgentGone => Self::AgentGone,
            DeathCause::Ordered(Orderer::Operator) => Self::OrderedByOperator,
            DeathCause::Ordered(Orderer::Scale) => Self::OrderedByScale,
            DeathCause::Ordered(Orderer::Owner) => Self::OrderedByOwner,
            DeathCause::Ordered(Orderer::Agent) => Self::OrderedByAgent,
            DeathCause::NeverReady => Self::NeverReady,
            DeathCause::Unhealthy => Self::Unhealthy,
            DeathCause::Recycled => Self::Recycled,
            DeathCause::SpawnFailed => Self::SpawnFailed,
            DeathCause::Unknown => Self::Unknown,
        }
    }
}

impl common::DeathCause {
    /// The cause this stands for, with the numbers that belong to it.
    pub fn to_cause(self, exit_code: Option<i32>, signal: Option<i32>) -> DeathCause {
        match self {
            Self::Exited => DeathCause::Exited(exit_code.unwrap_or_default()),
            Self::Signaled => DeathCause::Signaled(signal.unwrap_or_default()),
            Self::OutOfMemory => DeathCause::OutOfMemory,
            Self::LeaseExpired => DeathCause::LeaseExpired,
            Self::OwnerGone => DeathCause::OwnerGone,
            Self::AgentGone => DeathCause::AgentGone,
            Self::OrderedByOperator => DeathCause::Ordered(Orderer::Operator),
            Self::OrderedByScale => DeathCause::Ordered(Orderer::Scale),
            Self::OrderedByOwner => DeathCause::Ordered(Orderer::Owner),
            Self::OrderedByAgent => DeathCause::Ordered(Orderer::Agent),
            Self::NeverReady => DeathCause::NeverReady,
            Self::Unhealthy => DeathCause::Unhealthy,
            Self::Recycled => DeathCause::Recycled,
            Self::SpawnFailed => DeathCause::SpawnFailed,
            Self::Unspecified | Self::Unknown => DeathCause::Unknown,
        }
    }
}

impl From<&Death> for common::Death {
    fn from(death: &Death) -> Self {
        Self {
            cause: common::DeathCause::from(death.cause).into(),
            exit_code: death.exit_code,
            signal: death.signal,
            detail: death.detail.clone(),
            stderr_tail: death.stderr_tail.clone(),
            measures: death.measures.as_ref().map(Into::into),
            // For the arbiter to say.
            epoch: 0,
        }
    }
}

impl From<&common::Death> for Death {
    fn from(death: &common::Death) -> Self {
        Self {
            cause: death.cause().to_cause(death.exit_code, death.signal),
            exit_code: death.exit_code,
            signal: death.signal,
            detail: death.detail.clone(),
            stderr_tail: death.stderr_tail.clone(),
            measures: death.measures.as_ref().map(Into::into),
        }
    }
}

impl From<&Measures> for common::Measures {
    fn from(measures: &Measures) -> Self {
        Self {
            core_dumped: measures.core_dumped,
            max_rss_kib: measures.max_rss_kib,
            peak_memory_bytes: measures.peak_memory_bytes,
            cpu_ms: measures.cpu_ms,
            reaped: measures.reaped,
            gone_unix_ms: measures.gone_unix_ms,
            proof: measures.proof.clone(),
        }
    }
}

impl From<&common::Measures> for Measures {
    fn from(measures: &common::Measures) -> Self {
        Self {
            core_dumped: measures.core_dumped,
            max_rss_kib: measures.max_rss_kib,
            peak_memory_bytes: measures.peak_memory_bytes,
            cpu_ms: measures.cpu_ms,
            reaped: measures.reaped,
            gone_unix_ms: measures.gone_unix_ms,
            proof: measures.proof.clone(),
        }
    }
}
