//! What a BEAM and its port program (`tether port`) say to each other, and the decisions that are made on it; without
//! the pipe between them, and without the network behind it.
//!
//! ```text
//! bytes -> frames -> terms -> what is asked      asked.rs, with fields.rs
//!          frames <- terms <- what is answered   by whoever has something to say
//! ```
//!
//! The BEAM is trusted to mean well, not to be right: whatever comes out of its pipe is bounded in size, depth and
//! number before anything is made of it (`decode.rs`), and what means nothing is refused with words. The BEAM decodes
//! with `[:safe]`, so that only [`ATOMS`] go to it as atoms, and all other words as binaries.

mod asked;
mod atoms;
mod decode;
mod encode;
mod fields;
mod frames;
mod pulse;
mod tags;
mod term;

pub use asked::{Asked, Call, Hello, Id, Refused, Tls, VERSION};
pub use atoms::ATOMS;
pub use decode::{DEPTH_MAX, DecodeError, TERMS_MAX, decode, id_of};
pub use encode::frame;
pub use fields::{Fields, FromTerm, Meaningless, Worker};
pub use frames::{FRAME_MAX, Frames, TooLarge};
pub use pulse::Pulse;
pub use term::{NIL, Term};

/// How many messages of one stream the BEAM may have given that have not gone on.
pub const UNSENT_MAX: usize = 32;
