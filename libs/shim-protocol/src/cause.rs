//! Why a worker died, as one byte and who asked for it.

use core::fmt;

use crate::wire::{Error, Reader, Writer};

/// Who ordered a worker's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Orderer {
    /// Somebody at the command line or through the API, or a SIGTERM to the shim itself.
    Operator,
    /// The pool was made smaller, drained or deleted.
    Scale,
    /// The owner closed its session in an orderly way.
    Owner,
    /// The agent was asked to stop.
    Agent,
}

impl Orderer {
    /// Every orderer, in the order of their codes.
    pub const ALL: &'static [Self] = &[Self::Operator, Self::Scale, Self::Owner, Self::Agent];

    /// The byte on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Operator => 1,
            Self::Scale => 2,
            Self::Owner => 3,
            Self::Agent => 4,
        }
    }
}

/// The one cause of a worker's death; exit code and signal stand beside it in [`crate::Dead`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its main process ended by itself.
    Exited,
    /// A signal that Tether did not send ended its main process.
    Signaled,
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// The node's deadline passed without a renewal.
    LeaseExpired,
    /// Its owner's process ended, or the owner's deadline passed.
    OwnerGone,
    /// The agent went away and the worker was tied to it.
    AgentGone,
    /// Somebody asked for it.
    Ordered(Orderer),
    /// The agent gave up waiting for it to become ready.
    NeverReady,
    /// It was ready once, and then did not answer, or did not report in time.
    Unhealthy,
    /// It reached its age, its calls or its memory, and another one takes its place.
    Recycled,
    /// It could not be started.
    SpawnFailed,
    /// Nothing could be found out about its end.
    Unknown,
}

impl Cause {
    /// The byte on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Exited => 1,
            Self::Signaled => 2,
            Self::OutOfMemory => 3,
            Self::LeaseExpired => 4,
            Self::OwnerGone => 5,
            Self::AgentGone => 6,
            Self::Ordered(_) => 7,
            Self::NeverReady => 8,
            Self::SpawnFailed => 9,
            Self::Unknown => 10,
            Self::Unhealthy => 11,
            Self::Recycled => 12,
        }
    }

    /// Two bytes: the code, then the orderer or 0.
    pub(crate) fn write(self, to: &mut Writer) {
        to.u8(self.code());
        to.u8(if let Self::Ordered(orderer) = self {
            orderer.code()
        } else {
            0
        });
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        let code = from.u8()?;
        let orderer = from.u8()?;
        let plain = match code {
            1 => Self::Exited,
            2 => Self::Signaled,
            3 => Self::OutOfMemory,
            4 => Self::LeaseExpired,
            5 => Self::OwnerGone,
            6 => Self::AgentGone,
            7 => {
                let found = Orderer::ALL
                    .iter()
                    .copied()
                    .find(|known| known.code() == orderer);
                return found
                    .map(Self::Ordered)
                    .ok_or(Error::Value { field: "orderer" });
            }
            8 => Self::NeverReady,
            9 => Self::SpawnFailed,
            10 => Self::Unknown,
            11 => Self::Unhealthy,
            12 => Self::Recycled,
            _ => return Err(Error::Value { field: "cause" }),
        };
        if orderer == 0 {
            Ok(plain)
        } else {
            Err(Error::Value { field: "orderer" })
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exited => "exited",
            Self::Signaled => "signaled",
            Self::OutOfMemory => "out of memory",
            Self::LeaseExpired => "lease expired",
            Self::OwnerGone => "owner gone",
            Self::AgentGone => "agent gone",
            Self::Ordered(Orderer::Operator) => "ordered by operator",
            Self::Ordered(Orderer::Scale) => "ordered by scale",
            Self::Ordered(Orderer::Owner) => "ordered by owner",
            Self::Ordered(Orderer::Agent) => "ordered by agent",
            Self::NeverReady => "never ready",
            Self::SpawnFailed => "spawn failed",
            Self::Unhealthy => "unhealthy",
            Self::Recycled => "recycled",
            Self::Unknown => "unknown",
        })
    }
}
