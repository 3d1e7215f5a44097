//! The lease protocol against everything that can happen to it, at two heights.
//!
//! [`World`] plays schedules of ten minutes by the million: nodes that want a slot, arbiters that grant it
//! while they lead, kernel timers, fences and gateways. Networks cut one way or both, lose, repeat and delay;
//! machines pause and sleep; clocks are off; processes hang and start anew. [`model`] looks at *every* order of
//! events of a small world. In both it is the cores of `tether-lease` and `tether-clock` that run, not a description of them.
//!
//! A world is judged by one who knows the true time and who is really alive ([`Promise`]), and a run is
//! worth something only as far as it would have noticed: each [`Mutant`] is a mistake with a name, wired around the cores,
//! and has to be caught.

mod agenda;
mod arbiter;
mod chance;
mod fault;
mod gate;
mod lead;
mod machine;
pub mod model;
mod mutant;
mod node;
mod oracle;
pub mod run;
mod worker;
mod world;

pub use mutant::Mutant;
pub use oracle::{Promise, Violation};
pub use world::{Outcome, World};
