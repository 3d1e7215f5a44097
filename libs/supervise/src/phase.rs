//! What is said of a slot, and what it asks for.

use std::time::Duration;

use tether_clock::Tick;
use tether_types::{DeathCause, Incarnation};

#[cfg(doc)]
use crate::Slot;
use crate::Worn;

/// What the slot asks to be done. Every order is given once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a process, and report [`Slot::on_spawned`] or [`Slot::on_spawn_failed`].
    Spawn {
        /// Which start this is.
        incarnation: Incarnation,
    },
    /// Tell the shim to stop the process, and report [`Slot::on_exit`] when all of it is gone.
    Stop {
        /// Time between SIGTERM and SIGKILL.
        grace: Duration,
        /// The cause to record.
        why: DeathCause,
    },
    /// Report that the slot stays empty until somebody changes something.
    GiveUp {
        /// Why.
        why: GaveUp,
    },
    /// Call [`Slot::recycle`] as soon as the worker can be spared.
    Worn {
        /// Why.
        why: Worn,
    },
}

/// Why a slot was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GaveUp {
    /// It cannot be started, and another try would end the same: command not found, no permission.
    CannotStart,
    /// As many restarts in a row as are allowed, and not one worker became ready: a problem of
    /// configuration, to be looked for in its output.
    NeverReady,
    /// More restarts within the window than allowed: workers become ready, and then fail.
    TooOften,
}

/// Where a slot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No process; the next is due.
    Backoff {
        /// When.
        until: Tick,
    },
    /// A spawn was ordered and not yet reported.
    Spawning,
    /// A process runs and is not ready.
    Starting {
        /// When it has to be.
        ready_by: Tick,
    },
    /// A process runs and serves.
    Ready {
        /// Since when.
        since: Tick,
    },
    /// A process runs and is to take no new work, as it is about to be replaced.
    Draining {
        /// When it is stopped.
        until: Tick,
    },
    /// A process was told to stop.
    Stopping {
        /// The cause to record for its end.
        why: DeathCause,
    },
    /// No process, and none will follow.
    CrashLoop {
        /// Why.
        why: GaveUp,
    },
    /// No process, as was asked for.
    Stopped,
}

/// A slot at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Where it is in its life.
    pub phase: Phase,
    /// The live incarnation.
    pub incarnation: Option<Incarnation>,
    /// How often a worker was started again.
    pub restarts: u64,
}
