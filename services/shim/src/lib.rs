//! The small process around one worker, and the zygote that starts it.
//!
//! The shim starts the worker, is the parent of everything the worker leaves behind, holds the
//! deadline of its permission, and ends the whole tree when that permission ends: whether or not
//! an agent is there to ask for it. It has one thread, waits in one place, and a worker never
//! outlives it. What it decides is in [`plan`]; everything else does what it is told.
//!
//! All shims of a zygote run in its memory, each in a room of its own ([`tether_sys::Rooms`]). So this crate
//! is without the standard library, which keeps state: nothing here is in a `static`, and an error is what
//! a call came back with.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod cgroup;
mod death;
mod files;
mod forkserver;
pub mod init;
mod launch;
mod link;
mod namespace;
mod output;
mod owner;
mod plan;
mod probe;
mod proc;
mod seat;
pub mod setup;
mod shim;
mod stdio;
mod terms;
mod tree;
mod turn;
pub mod zygote;

pub use files::complain;
