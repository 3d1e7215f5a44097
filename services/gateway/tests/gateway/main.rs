//! The gateway as its clients, workers and discovery see it: real sockets, real gRPC on both sides.

mod client;
mod conformance;
mod discovery;
mod house;
mod leader;
mod worker;

mod affinity;
mod calls;
mod control;
mod counts;
mod deaths;
mod ending;
mod fates;
mod handover;
mod limits;
mod memory;
mod orders;
mod overload;
mod owners;
mod picking;
mod queue;
mod retries;
mod speed;
mod tls;
