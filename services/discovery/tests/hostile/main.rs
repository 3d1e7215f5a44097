//! Sources that lie, flap, forget and name odd things: the service as a process of its own, asked as its users ask it,
//! with real files, a real etcd and a real name server behind it.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::time::Duration;

mod flapping;
mod losses;
mod names;
mod poison;
mod reuse;
mod service;
mod told;

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "the tests of the source itself use the rest")]
#[path = "../../../../libs/discovery-backends/tests/dns/named.rs"]
mod named;
#[path = "../../../../libs/discovery-backends/tests/dns/place.rs"]
mod place;

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
