//! Why something ended: codes of HTTP/2, and who said so.

use std::{fmt, io};

/// A code of an error (RFC 9113, 7).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(pub u32);

impl Reason {
    /// No error: an orderly end.
    pub const NO_ERROR: Self = Self(0);
    /// The protocol was not kept.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// The fault of whoever says so.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// More was sent than the other side had room for.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// Settings were not acknowledged.
    pub const SETTINGS_TIMEOUT: Self = Self(4);
    /// The stream had ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame has a size that it cannot have.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// Not begun with, so that it can be sent again.
    pub const REFUSED_STREAM: Self = Self(7);
    /// Not needed any more.
    pub const CANCEL: Self = Self(8);
    /// A header block could not be read.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The other side asks for too much work.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
    /// The transport is not safe enough.
    pub const INADEQUATE_SECURITY: Self = Self(12);

    fn word(self) -> &'static str {
        match self {
            Self::NO_ERROR => "not a result of an error",
            Self::PROTOCOL_ERROR => "the protocol was not kept",
            Self::INTERNAL_ERROR => "an internal error",
            Self::FLOW_CONTROL_ERROR => "more was sent than there was room for",
            Self::SETTINGS_TIMEOUT => "settings were not acknowledged",
            Self::STREAM_CLOSED => "the stream had ended",
            Self::FRAME_SIZE_ERROR => "a frame of a wrong size",
            Self::REFUSED_STREAM => "refused before it was begun with",
            Self::CANCEL => "not needed any more",
            Self::COMPRESSION_ERROR => "headers could not be read",
            Self::ENHANCE_YOUR_CALM => "too much was asked for",
            Self::INADEQUATE_SECURITY => "the transport is not safe enough",
            _ => "for a reason of its own",
        }
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0, self.word())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Why a stream or a connection ended before its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The stream was reset.
    #[error("stream reset{}: {reason}", by(*remote))]
    Reset {
        /// Why.
        reason: Reason,
        /// Whether the other side did so.
        remote: bool,
    },
    /// The connection takes no more streams, or not this one.
    #[error("connection given up{}: {reason}", by(*remote))]
    GoAway {
        /// Why.
        reason: Reason,
        /// Whether the other side did so.
        remote: bool,
    },
    /// The connection is gone.
    #[error("connection lost: {1}")]
    Io(io::ErrorKind, String),
    /// The other side does not take so much metadata; nothing was sent.
    #[error("{size} bytes of metadata, of which the other side takes {limit}")]
    TooLarge {
        /// How much there is, as RFC 9113 counts it (6.5.2).
        size: usize,
        /// How much it takes.
        limit: usize,
    },
    /// What was asked for does not fit the state of the stream.
    #[error("{0}")]
    Misused(&'static str),
}

fn by(remote: bool) -> &'static str {
    if remote { " by the other side" } else { "" }
}

impl Error {
    /// Whether this stream was reset, and nothing else.
    pub fn is_reset(&self) -> bool {
        matches!(self, Self::Reset { .. })
    }

    /// Whether the connection was given up.
    pub fn is_go_away(&self) -> bool {
        matches!(self, Self::GoAway { .. })
    }

    /// Whether the other side said so.
    pub fn is_remote(&self) -> bool {
        matches!(
            self,
            Self::Reset { remote: true, .. } | Self::GoAway { remote: true, .. }
        )
    }

    /// The code, where there is one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Reset { reason, .. } | Self::GoAway { reason, .. } => Some(*reason),
            Self::Io(..) | Self::TooLarge { .. } | Self::Misused(_) => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error.kind(), error.to_string())
    }
}
