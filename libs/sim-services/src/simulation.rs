//! A world of services in one thread.

mod args;
mod census;
mod clocks;
mod hands;
mod links;
mod mutant;
mod network;
mod oracle;
mod processes;
mod schedule;
mod software;
mod tap;
mod world;

pub(crate) use args::main;
