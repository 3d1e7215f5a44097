//! An arbiter as agents, owners and others see it: real sockets, real gRPC.

mod house;
mod registry;
mod shard;
