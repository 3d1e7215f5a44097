//! What every service needs and none should write twice: configuration, listening, serving,
//! connecting, stopping, telemetry and metrics.
//!
//! Nothing here knows what a worker or a lease is. A service's `main` reads in this order:
//!
//! ```text
//! config::load -> telemetry::start -> listen::bind -> stop::on_signals -> serve::Server::serve -> finish
//! ```

pub mod admin;
pub mod arbiters;
pub mod channel;
pub mod config;
pub mod inherited;
pub mod listen;
pub mod manager;
pub mod metrics;
pub mod network;
pub mod parent;
pub mod process;
mod runtime;
pub mod serve;
pub mod stop;
pub mod telemetry;
pub mod tls;

pub use runtime::{RuntimeDirError, runtime_dir};
