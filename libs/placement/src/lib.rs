//! Where workers go, and in which order they are replaced: what is wanted against what is there.
//!
//! Nothing is carried out here. [`choose`] names the node for one more worker, or says why there is none;
//! [`next_step`] names the next worker of a pool to replace where its template has changed or its node is
//! to be emptied. Both look at one picture and keep nothing, so asking again for the same picture gives the
//! same answer, and a planner that was restarted goes on where it stood.
//!
//! # Invariants
//!
//! - **P1** A worker goes only to a node that is open, has the labels and has as much free of every counted
//!   resource as the worker takes.
//! - **P2** No replacement takes a pool below its size less what may be unavailable.
//! - **P3** A pool never has more places than its size and its surge.
//! - **P4** While something is left to replace and every other worker is ready, there is a next step.
//! - **P5** No step ends a worker that is kept.

mod choose;
mod names;
mod rollout;

pub use choose::{Candidate, Counts, Known, Labels, Needs, NoNode, Preference, choose};
pub use names::{COUNT_MAX, Unusable, check_label, check_resource};
pub use rollout::{Budget, NoProgress, Place, Standing, Step, next_step};
