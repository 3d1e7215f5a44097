//! Machine-readable reasons of failed calls, carried in `google.rpc.ErrorInfo`.

/// Why a call failed; clients branch on this, never on the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No worker of the pool is ready.
    NoWorkerReady,
    /// The worker died while it served the call.
    WorkerDied,
    /// The worker reset the call, and lives.
    CallReset,
    /// The worker's circuit breaker is open.
    BreakerOpen,
    /// The workers of the pool serve as many calls as they can, and so many wait that this one may not, or it has
    /// waited for long enough.
    Overloaded,
    /// The worker that served a call's key before is gone, and with it what it knew of the key.
    SessionWorkerGone,
    /// The owner's lease has run out.
    LeaseExpired,
    /// A later epoch of the same owner exists.
    LeaseFenced,
    /// The pool, worker or service is finishing its work and takes no more.
    Draining,
    /// The lifecycle mode does not allow this, or its needs are not met.
    ModeForbids,
    /// A value in a request or a configuration is refused.
    ConfigInvalid,
    /// A worker could not be started.
    SpawnFailed,
    /// No pool of that name.
    UnknownPool,
    /// No template of that name.
    UnknownTemplate,
    /// No worker of that name.
    UnknownWorker,
    /// No session of that owner and epoch.
    UnknownSession,
    /// No job of that key.
    UnknownJob,
    /// The pool belongs to another owner.
    NotOwner,
    /// Another agent holds the lease of a node of this name.
    NodeTaken,
    /// Another registration holds the lease of this name or of this address.
    RegistrationTaken,
    /// No registration of that name and epoch.
    UnknownRegistration,
    /// The arbiter that was asked does not lead, and decides nothing.
    NotLeader,
    /// The arbiter cannot be reached.
    ArbiterUnreachable,
    /// The discovery service cannot be reached and nothing is known of the pool.
    DiscoveryUnreachable,
    /// The agent that runs the worker cannot be reached.
    AgentUnreachable,
    /// The store refused or lost a write.
    StoreFailed,
    /// A request's metadata is malformed or missing.
    MetadataInvalid,
    /// A message is larger than the limit.
    MessageTooLarge,
    /// The call's deadline passed.
    DeadlineExceeded,
}

impl Reason {
    /// Every reason, in the order the reference lists them.
    pub const ALL: &'static [Self] = &[
        Self::NoWorkerReady,
        Self::WorkerDied,
        Self::CallReset,
        Self::BreakerOpen,
        Self::Overloaded,
        Self::SessionWorkerGone,
        Self::LeaseExpired,
        Self::LeaseFenced,
        Self::Draining,
        Self::ModeForbids,
        Self::ConfigInvalid,
        Self::SpawnFailed,
        Self::UnknownPool,
        Self::UnknownTemplate,
        Self::UnknownWorker,
        Self::UnknownSession,
        Self::UnknownJob,
        Self::NotOwner,
        Self::NodeTaken,
        Self::RegistrationTaken,
        Self::UnknownRegistration,
        Self::NotLeader,
        Self::ArbiterUnreachable,
        Self::DiscoveryUnreachable,
        Self::AgentUnreachable,
        Self::StoreFailed,
        Self::MetadataInvalid,
        Self::MessageTooLarge,
        Self::DeadlineExceeded,
    ];

    /// The word on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NoWorkerReady => "NO_WORKER_READY",
            Self::WorkerDied => "WORKER_DIED",
            Self::CallReset => "CALL_RESET",
            Self::BreakerOpen => "BREAKER_OPEN",
            Self::Overloaded => "OVERLOADED",
            Self::SessionWorkerGone => "SESSION_WORKER_GONE",
            Self::LeaseExpired => "LEASE_EXPIRED",
            Self::LeaseFenced => "LEASE_FENCED",
            Self::Draining => "DRAINING",
            Self::ModeForbids => "MODE_FORBIDS",
            Self::ConfigInvalid => "CONFIG_INVALID",
            Self::SpawnFailed => "SPAWN_FAILED",
            Self::UnknownPool => "UNKNOWN_POOL",
            Self::UnknownTemplate => "UNKNOWN_TEMPLATE",
            Self::UnknownWorker => "UNKNOWN_WORKER",
            Self::UnknownSession => "UNKNOWN_SESSION",
            Self::UnknownJob => "UNKNOWN_JOB",
            Self::NotOwner => "NOT_OWNER",
            Self::NodeTaken => "NODE_TAKEN",
            Self::RegistrationTaken => "REGISTRATION_TAKEN",
            Self::UnknownRegistration => "UNKNOWN_REGISTRATION",
            Self::NotLeader => "NOT_LEADER",
            Self::ArbiterUnreachable => "ARBITER_UNREACHABLE",
            Self::DiscoveryUnreachable => "DISCOVERY_UNREACHABLE",
            Self::AgentUnreachable => "AGENT_UNREACHABLE",
            Self::StoreFailed => "STORE_FAILED",
            Self::MetadataInvalid => "METADATA_INVALID",
            Self::MessageTooLarge => "MESSAGE_TOO_LARGE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
        }
    }

    /// The reason with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.word() == word)
    }
}
