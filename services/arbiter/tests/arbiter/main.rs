//! An arbiter as agents, owners and others see it: real sockets, real gRPC.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

mod house;
mod registry;
mod shard;
