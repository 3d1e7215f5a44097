//! What an agent and the shim around one worker say to each other.
//!
//! Both ends speak frames over a stream socket: a little-endian `u32` length, then a body whose
//! first byte names the message. The encoding is written by hand and the crate depends on
//! nothing, because the shim is a static program that wants to stay under a mebibyte resident.
//!
//! ```text
//! agent -> shim   Launch  Renew  Look  Ties  Stop  Signal  Acknowledge
//! shim -> agent   Hello  Started  SpawnFailed  Halted  Ending  Dead
//! ```
//!
//! The shim says `Hello` first on every connection, with its protocol version and, as the first of the
//! descriptors beside it, the lease page that it reads; an agent speaks to shims of [`BY_MESSAGE_ONLY`], which have
//! none, of the versions since, and of no other. `Ending` comes before the first signal, and `Dead` is
//! said (and lies in the file [`DEATH_FILE`]) until an agent says `Acknowledge`.
//!
//! # Invariants
//!
//! - **W1** What is encoded is decoded to the same message, however the bytes are cut on the way.
//! - **W2** No bytes make the decoder panic, and it holds no more than one frame and one push.
//! - **W3** A frame decodes only when all of it is understood: nothing short, nothing left over.

#![no_std]

extern crate alloc;

mod cause;
mod codec;
mod message;
mod wire;
pub mod zygote;

pub use cause::{Cause, Orderer};
pub use codec::{Decoder, decode, encode};
pub use message::{
    Credentials, Dead, Hello, Identity, Input, Launch, Limit, Logs, Message, OnLinkLoss,
    OnOwnerExit, Phase, Proof, Seat, SpawnFailure, Stage, Terms, Walls,
};
pub use wire::Error;

/// The version of this protocol; it changes with any change of a message.
pub const PROTOCOL: u16 = 5;

/// The version before there was a lease page: its shims live on through an upgrade, and hear of each new end.
pub const BY_MESSAGE_ONLY: u16 = 3;

/// Tells a worker in its environment where it reads its permission: the number of a descriptor that is the lease
/// page, its slot there, and the slot's generation, with colons between them. Absent where it has none.
pub const LEASE_VARIABLE: &str = "TETHER_LEASE";

/// The longest body of a frame, in bytes.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// A deadline that never comes.
pub const NO_DEADLINE: u64 = u64::MAX;

/// The longest end of standard error that [`Dead`] carries, in bytes.
pub const STDERR_TAIL_BYTES: usize = 4096;

/// The socket on which a later agent reaches the shim, in the worker's runtime directory.
pub const SOCKET_FILE: &str = "shim.sock";

/// The encoded [`Dead`] frame of a worker whose death nobody has acknowledged yet.
pub const DEATH_FILE: &str = "death";

/// The worker's standard output; the part before the last rotation has `.1` appended.
pub const STDOUT_FILE: &str = "stdout.log";

/// The worker's standard error; the part before the last rotation has `.1` appended.
pub const STDERR_FILE: &str = "stderr.log";
