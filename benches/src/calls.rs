//! gRPC calls by hand: a server that costs little, and a client that looks at every answer.
//!
//! Both are thin on `h2` and in one thread, so that what is measured between them is what costs most.

pub(crate) mod client;
pub(crate) mod crowd;
pub(crate) mod upstream;
pub(crate) mod wire;
