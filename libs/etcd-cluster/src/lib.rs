//! Real etcd clusters for tests, whose members are killed, stopped, cut off and brought back one by one.
//!
//! ```no_run
//! # async fn example() {
//! use tether_etcd_cluster::{Setup, Signal};
//!
//! let mut cluster = Setup::members(3).start().await;
//! let leader = cluster.leader().await;
//! cluster.member(leader).signal(Signal::STOP);
//! # }
//! ```
//!
//! A [`Seat`] says where a member lives: its address, its data, and what runs it. A test that puts members
//! into network namespaces or on disks that stall gives its own.
//!
//! Everything here panics when it cannot do what it is for: it is for tests alone.

mod certificates;
mod cluster;
mod loss;
mod member;
mod setup;
mod wire;

pub use certificates::Certificates;
pub use cluster::{Cluster, USER};
pub use loss::Loss;
pub use member::{Member, OLD, PROGRAM, REQUESTS, SENT, Seat};
pub use rustix::process::Signal;
pub use setup::Setup;
pub use wire::{Flow, Wire};
