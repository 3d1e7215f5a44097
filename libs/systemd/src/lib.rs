//! systemd over D-Bus: as much of it as workers take.
//!
//! A [`Systemd`] is one connection to the manager of the system, or of one user. It starts transient units and those
//! that an administrator has written, stops and kills them, says how one stands ([`Unit`]) and tells when that may be
//! otherwise ([`Watch`]). What a unit's end means is in [`Ending`], and decided without a bus.

mod ending;
mod error;
mod manager;
mod transient;
mod unit;

pub use ending::Ending;
pub use error::Error;
pub use manager::{Bus, Systemd, Watch};
pub use transient::{Bounds, Limits, Scope, Transient};
pub use unit::{Active, Unit};
