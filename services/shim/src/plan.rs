//! When a worker must end and how: pure decisions, told the time and never reading it.
//!
//! ```text
//!                    deadline - grace      deadline - reserve   deadline
//!  ---- running ------------|---- terminating -----|--- killing ---|
//!                        SIGTERM                SIGKILL         gone by here
//! ```
//!
//! The reserve is the part of the grace that is kept for dying and being reaped, so that a worker
//! which ignores SIGTERM is still gone when its permission ends, not a moment after.
//!
//! Later ends are stored on the lease page without a word, so the shim looks there whenever a quarter of what it
//! knows of is over ([`Plan::look`]): a renewal that is in time is seen in time, also by the guard, and who is frozen
//! for a while has most of it left.
//!
//! # Invariants
//!
//! - **D1** Without an order or a loss, nothing happens before `deadline - grace`.
//! - **D2** By the deadline, killing has begun.
//! - **D3** What began to end never runs on, and its kill only ever moves nearer.
//! - **D4** The first cause stands.
//! - **D5** `next` is exactly when `check` has something to say: no wake-up is missed or wasted.

use core::mem;
use core::time::Duration;

use tether_clock::Tick;
use tether_shim_protocol::Cause;

/// The most of a grace that is kept for dying: about what the kernel takes to tear down 2 GiB.
const RESERVE_MAX: Duration = Duration::from_millis(250);

/// The pauses between killing rounds double from here.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// When the shim gives up on processes that do not die of SIGKILL and reports them instead.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// How long after a deadline the guard ends a shim that did not act on it: long enough for one that was
/// about to, and far within what the grantor of a lease waits beyond its end.
const GUARD_SLACK: Duration = Duration::from_millis(20);

/// Between two looks at the lease page there is at least this long.
const LOOK_MIN: Duration = Duration::from_millis(50);

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Wait,
    /// Send SIGTERM to the tree.
    Terminate,
    /// Do one round of killing.
    Kill,
    /// Report what is left as survivors.
    GiveUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Terminating {
        kill_at: Tick,
    },
    Killing {
        round_at: Tick,
        pause: Duration,
        give_up_at: Tick,
    },
    Over,
}

/// One worker's permission, and how far its end has come.
#[derive(Debug)]
pub(crate) struct Plan {
    node: Tick,
    owner: Tick,
    grace: Duration,
    state: State,
    cause: Option<Cause>,
}

impl Plan {
    /// A running worker with these deadlines.
    pub(crate) fn new(node: Tick, owner: Tick, grace: Duration) -> Self {
        Self {
            node,
            owner,
            grace,
            state: State::Running,
            cause: None,
        }
    }

    /// Why it ends, once it does.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// Whether all that can be done has been done.
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// How long an orderly stop may take where nobody says otherwise.
    pub(crate) fn grace(&self) -> Duration {
        self.grace
    }

    fn deadline(&self) -> Tick {
        self.node.min(self.owner)
    }

    fn lease_term(&self) -> Tick {
        before(self.deadline(), self.grace)
    }

    fn lease_kill(&self) -> Tick {
        before(self.deadline(), (self.grace / 4).min(RESERVE_MAX))
    }

    /// The deadlines were replaced. During an ordered stop they still count, so that a slow
    /// farewell under a living lease is not cut short; a kill already set does not move (D3).
    /// Tells whether they are others than before.
    pub(crate) fn on_renewal(&mut self, node: Tick, owner: Tick) -> bool {
        let before = (
            mem::replace(&mut self.node, node),
            mem::replace(&mut self.owner, owner),
        );
        before != (node, owner)
    }

    /// Somebody ordered the end, with `grace` between SIGTERM and SIGKILL.
    pub(crate) fn on_stop(&mut self, cause: Cause, grace: Duration, now: Tick) -> Step {
        match self.state {
            State::Running if !grace.is_zero() => {
                self.cause = Some(cause);
                self.state = State::Terminating {
                    kill_at: now + grace,
                };
                Step::Terminate
            }
            State::Terminating { kill_at } if !grace.is_zero() => {
                self.state = State::Terminating {
                    kill_at: kill_at.min(now + grace),
                };
                Step::Wait
            }
            State::Running | State::Terminating { .. } => self.kill(cause, now),
            State::Killing { .. } | State::Over => Step::Wait,
        }
    }

    /// Something the worker may not outlive is gone: kill without grace.
    pub(crate) fn on_loss(&mut self, cause: Cause, now: Tick) -> Step {
        match self.state {
            State::Running | State::Terminating { .. } => self.kill(cause, now),
            State::Killing { .. } | State::Over => Step::Wait,
        }
    }

    /// The main process ended. What it leaves behind is killed, except during a stop: a shell
    /// that dies of SIGTERM must not take the rest of its child's grace with it.
    pub(crate) fn on_exit(&mut self, cause: Cause, now: Tick) -> Step {
        match self.state {
            State::Running => self.kill(cause, now),
            State::Terminating { .. } | State::Killing { .. } | State::Over => Step::Wait,
        }
    }

    /// Nothing of the worker is left.
    pub(crate) fn on_gone(&mut self) {
        self.state = State::Over;
    }

    /// Only time passed.
    pub(crate) fn check(&mut self, now: Tick) -> Step {
        let expired = if self.node <= self.owner {
            Cause::LeaseExpired
        } else {
            Cause::OwnerGone
        };
        match self.state {
            State::Running if now >= self.lease_kill() => self.kill(expired, now),
            State::Running if now >= self.lease_term() => {
                self.cause = Some(expired);
                self.state = State::Terminating {
                    kill_at: self.lease_kill(),
                };
                Step::Terminate
            }
            State::Terminating { kill_at } if now >= kill_at.min(self.lease_kill()) => {
                self.kill(expired, now)
            }
            State::Killing { give_up_at, .. } if now >= give_up_at => {
                self.state = State::Over;
                Step::GiveUp
            }
            State::Killing {
                round_at,
                pause,
                give_up_at,
            } if now >= round_at => {
                let pause = (pause * 2).min(PAUSE_MAX);
                self.state = State::Killing {
                    round_at: now + pause,
                    pause,
                    give_up_at,
                };
                Step::Kill
            }
            State::Running | State::Terminating { .. } | State::Killing { .. } | State::Over => {
                Step::Wait
            }
        }
    }

    /// When to call `check` at the latest; [`Tick::NEVER`] is never.
    pub(crate) fn next(&self) -> Tick {
        match self.state {
            State::Running => self.lease_term().min(self.lease_kill()),
            State::Terminating { kill_at } => kill_at.min(self.lease_kill()),
            State::Killing {
                round_at,
                give_up_at,
                ..
            } => round_at.min(give_up_at),
            State::Over => Tick::NEVER,
        }
    }

    /// When to look for a later end, after a look at `now`; [`Tick::NEVER`] is never.
    pub(crate) fn look(&self, now: Tick) -> Tick {
        let deadline = self.deadline();
        match self.state {
            State::Running | State::Terminating { .. } if deadline != Tick::NEVER => {
                now + (deadline.since(now) / 4).max(LOOK_MIN)
            }
            State::Running | State::Terminating { .. } | State::Killing { .. } | State::Over => {
                Tick::NEVER
            }
        }
    }

    /// When a shim that has not begun to kill by itself is to be killed.
    pub(crate) fn guard(&self) -> Tick {
        match self.state {
            State::Running | State::Terminating { .. } => self.deadline() + GUARD_SLACK,
            // Beyond the deadline, as it may take several rounds; never for good, as it may be stopped in one.
            State::Killing { give_up_at, .. } => give_up_at + GUARD_SLACK,
            State::Over => Tick::NEVER,
        }
    }

    fn kill(&mut self, cause: Cause, now: Tick) -> Step {
        self.cause.get_or_insert(cause);
        let (pause, give_up_at) = (PAUSE_MIN, now + GIVE_UP_AFTER);
        self.state = State::Killing {
            round_at: now + pause,
            pause,
            give_up_at,
        };
        Step::Kill
    }
}

/// `by` before `deadline`; a deadline that never comes has no time before it.
fn before(deadline: Tick, by: Duration) -> Tick {
    if deadline == Tick::NEVER {
        Tick::NEVER
    } else {
        deadline.saturating_sub(by)
    }
}

#[cfg(test)]
mod tests;
