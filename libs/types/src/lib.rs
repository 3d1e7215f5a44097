//! The words every part of Tether shares: names, ids, epochs and causes of death.
//!
//! Nothing here does IO, reads a clock or knows the wire format. A value of one of these types is
//! valid by construction: a [`PoolName`] that exists can be put into a path, a key or a log line.

mod address;
mod callable;
mod death;
mod digest;
mod ids;
mod name;
mod reason;
pub mod stable;

pub use address::{Address, InvalidAddress};
pub use callable::{NotCallable, TEXT_MAX, WEIGHT_MAX, is_plain};
pub use death::{Death, DeathCause, Measures, Orderer};
pub use digest::Digest;
pub use ids::{Epoch, Incarnation, ProcessIdentity, Slot, WorkerId};
pub use name::{InstanceName, InvalidName, NodeName, OwnerName, PoolName, TemplateName};
pub use reason::Reason;
