//! Why a worker died: one recorded cause for every death (promise P4).

use std::fmt;

/// Who ordered a worker's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Orderer {
    /// Somebody at the command line or through the API.
    Operator,
    /// The pool was made smaller, drained or deleted.
    Scale,
    /// The owner closed its session in an orderly way.
    Owner,
    /// The agent was asked to stop.
    Agent,
}

/// The one cause of a worker's death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeathCause {
    /// It ended by itself with this exit code.
    Exited(i32),
    /// A signal that Tether did not send ended it.
    Signaled(i32),
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// The node's lease ran out: the agent could not reach the arbiter in time.
    LeaseExpired,
    /// Its owner's process ended, or was silent for longer than the policy allows.
    OwnerGone,
    /// The agent went away and the policy ties the worker to it.
    AgentGone,
    /// Somebody asked for it.
    Ordered(Orderer),
    /// It did not become ready within its start timeout.
    NeverReady,
    /// It was ready once, and then did not answer, or did not report in time.
    Unhealthy,
    /// It was replaced because it reached its age, its calls or its memory.
    Recycled,
    /// It could not be started: command not found, no permission, no such directory.
    SpawnFailed,
    /// Nothing could be found out about its end.
    Unknown,
}

impl DeathCause {
    /// A stable word for tables, metrics and programs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Exited(_) => "EXITED",
            Self::Signaled(_) => "SIGNALED",
            Self::OutOfMemory => "OOM_KILLED",
            Self::LeaseExpired => "LEASE_EXPIRED",
            Self::OwnerGone => "OWNER_GONE",
            Self::AgentGone => "AGENT_GONE",
            Self::Ordered(Orderer::Operator) => "ORDERED_BY_OPERATOR",
            Self::Ordered(Orderer::Scale) => "ORDERED_BY_SCALE",
            Self::Ordered(Orderer::Owner) => "ORDERED_BY_OWNER",
            Self::Ordered(Orderer::Agent) => "ORDERED_BY_AGENT",
            Self::NeverReady => "NEVER_READY",
            Self::Unhealthy => "UNHEALTHY",
            Self::Recycled => "RECYCLED",
            Self::SpawnFailed => "SPAWN_FAILED",
            Self::Unknown => "UNKNOWN",
        }
    }
}

impl fmt::Display for DeathCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "EXITED with code {code}"),
            Self::Signaled(signal) => write!(f, "SIGNALED by signal {signal} from outside Tether"),
            other => f.write_str(other.word()),
        }
    }
}

/// What is recorded of one death.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// Why.
    pub cause: DeathCause,
    /// The main process's exit code, where it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended the main process, where one did.
    pub signal: Option<i32>,
    /// One sentence of evidence for people; empty where the cause says it all.
    pub detail: String,
    /// The last lines of the worker's standard error.
    pub stderr_tail: String,
    /// What was measured of its life; nothing where its shim left no record.
    pub measures: Option<Measures>,
}

/// What was measured of one worker's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measures {
    /// Whether the main process left a core dump.
    pub core_dumped: bool,
    /// Largest resident set of any of its processes, in KiB.
    pub max_rss_kib: u64,
    /// Largest memory of its whole tree in bytes, as its cgroup counted it; 0 where none did.
    pub peak_memory_bytes: u64,
    /// Processor time of all its processes, in milliseconds.
    pub cpu_ms: u64,
    /// Processes beyond the main one that were reaped once its end had begun.
    pub reaped: u32,
    /// When nothing was left of it, in milliseconds of Unix time.
    pub gone_unix_ms: u64,
    /// How that was known: `namespace`, `cgroup` or `tree`.
    pub proof: String,
}
