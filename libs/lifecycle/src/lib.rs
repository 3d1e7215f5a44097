//! Who dies when: lifecycle modes, the policy each stands for, and what follows from a loss.
//!
//! A [`Mode`] is a named preset of one [`LifecyclePolicy`]; [`PolicyOverrides`] change single
//! fields of it, and a policy answers each [`Loss`] with one [`Verdict`]:
//!
//! ```text
//! ModeChoice --detect--> Mode --policy(overrides)--> LifecyclePolicy --on(Loss)--> Verdict
//!                                                            |
//!                                                  check(policy, mode, facts)
//! ```
//!
//! Everything is data. Modes, losses, launchers and needs each live in one `ALL` list from which
//! the crash matrix of the documentation, the help texts and the error messages are made.
//!
//! A policy answers for the loss of an owner only while the worker's node has its lease. Whatever an
//! owner's loss allows, a worker that is cut off gets no calls once that lease is over, and ends when
//! `partition_grace` has passed after it, or with its job's own lease (`job_ttl`).
//!
//! # Invariants
//!
//! - **M1** A coupled worker never outlives the proven end of its owner, whatever is overridden.
//! - **M2** No policy gives a worker unlimited life when its owner is lost and its agent is gone.
//! - **M3** Every policy that exists has a verdict for every loss, and a refusal names the field
//!   and a way out.

mod detect;
mod mode;
mod needs;
mod overrides;
mod policy;
mod verdict;
mod words;

pub use detect::{Chosen, Scheduler, Surroundings, Systemd, detect};
pub use mode::{Mode, ModeChoice};
pub use needs::{Facts, Need, OwnerSight, check, needs};
pub use overrides::{BeamCrashPolicy, PolicyOverrides, Refusal};
pub use policy::{Launcher, LifecyclePolicy, OnAgentLoss, OnOwnerLoss, Reach};
pub use verdict::{Loss, Verdict};
pub use words::UnknownWord;
