//! The bytes of checkpoints in an object store: a directory, or whatever speaks S3.
//!
//! ```text
//! POOL / hash of the key / FENCE-SEQ-hash of the bytes
//! ```
//!
//! # Invariants
//!
//! - **C1** No attempt at a job writes to a name that another one writes to, as the fence is part of it.
//! - **C2** Under a name are the bytes whose hash it has, whole, or nothing: saving them again changes nothing.
//! - **C3** Pruning after a checkpoint leaves that one, the ones before it that are to be kept, and all of later
//!   attempts.
//!
//! Which checkpoint counts is not said here but by the arbiter, which records it once it is saved.

mod config;
mod error;
mod name;
mod objects;

pub use config::{Config, Wrong};
pub use error::Error;
pub use name::{JobDir, Name, Sha256};
pub use objects::{Objects, Upload};
