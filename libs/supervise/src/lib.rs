//! One slot's life: when a worker is started, given up, stopped and started again.
//!
//! A [`Slot`] is told what happened to its process and answers with at most one [`Action`]. It
//! starts nothing itself, and it does not escalate a stop: the shim that runs the worker gets one
//! stop order with its grace and sees to SIGTERM, SIGKILL and the rest of the process tree.
//!
//! ```text
//!              Spawn            on_spawned             on_ready
//!  Backoff ------------> Spawning --------> Starting ----------> Ready
//!   ^   ^                   |                  |                   |
//!   |   |   on_spawn_failed |                  | start timeout     |
//!   |   +-------------------+                  v                   |
//!   |                       |               Stopping               |
//!   |                       |                  | on_exit           | on_exit
//!   +-----------------------|------------------+-------------------+
//!                           v                  v
//!                       CrashLoop           Stopped      (from anywhere: stop)
//! ```
//!
//! # Invariants
//!
//! - **S1** A slot has at most one live incarnation: nothing is spawned before the end of the one
//!   before was reported.
//! - **S2** Within [`Intensity::window`] there are never more than [`Intensity::max_restarts`]
//!   restarts, nor are there more in a row without a worker that became ready. What replaces a
//!   recycled worker is none of them.
//! - **S3** After [`Slot::stop`] nothing is ever spawned.
//! - **S4** A process is told to stop once.
//! - **S5** A restart waits between `initial * (1 - jitter)` and `max * (1 + jitter)`, and without
//!   jitter no shorter than the restart before, until a worker has run well for a while.
//! - **S6** Incarnations strictly increase.
//! - **S7** A worker is recycled only on an order, from being ready, and is stopped no earlier than its
//!   grace after that; what replaces it does not wait. One that was never ready may be replaced at once.
//! - **S8** No second sees more starts than the limit of a [`Starts`].
//!
//! No clock is read and no dice are thrown here: every call is told the time, and jitter comes
//! from a seed.

mod phase;
mod plan;
mod recycle;
mod slot;
mod starts;

pub use phase::{Action, GaveUp, Phase, Snapshot};
pub use plan::{Delay, Intensity, InvalidPlan, Plan, RestartPolicy, StartTerms, StopTerms};
pub use recycle::{Recycle, Worn};
pub use slot::Slot;
pub use starts::Starts;
