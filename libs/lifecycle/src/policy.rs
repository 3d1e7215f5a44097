//! What a mode stands for, field by field, and what follows from a loss.

use std::time::Duration;

use crate::{Loss, Verdict, words::words};

words! {
    /// How an agent obtains a process.
    Launcher, "launcher" {
        /// The agent starts it.
        Exec = "exec",
        /// systemd starts it as a unit.
        Systemd = "systemd",
        /// supervisord starts it as a program.
        Supervisord = "supervisord",
        /// runit starts it as a service.
        Runit = "runit",
        /// It is already running, and the agent only knows its address.
        Connect = "connect",
    }
}

words! {
    /// What becomes of workers that lost their owner.
    OnOwnerLoss, "answer to the loss of an owner" {
        /// They are killed at once.
        Kill = "kill",
        /// They go on for `heartbeat_timeout` and end if the owner has not come back by then.
        RunForTimeout = "run_for_timeout",
        /// They go on, for as long as their agent has its lease.
        Continue = "continue",
    }
}

words! {
    /// What becomes of workers that lost their agent.
    OnAgentLoss, "answer to the loss of an agent" {
        /// They die with it.
        Kill = "kill",
        /// They go on until the node's lease and the grace after it run out, for the next agent to adopt.
        HoldUntilLease = "hold_until_lease",
    }
}

words! {
    /// How far apart owner, arbiter and workers may be.
    Reach, "reach" {
        /// All on one machine: nothing can come between them.
        OneMachine = "one_machine",
        /// On several machines: the network may part them.
        ManyMachines = "many_machines",
    }
}

/// Who dies when, for the workers of one pool.
///
/// Made by [`crate::Mode::policy`], which refuses contradictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LifecyclePolicy {
    /// How the agent obtains the processes.
    pub launcher: Launcher,
    /// How far apart the parties may be; belongs to the mode and is not overridden.
    pub reach: Reach,
    /// The owner's process is proven dead.
    pub on_owner_exit: OnOwnerLoss,
    /// The owner's lease ran out without proof of its death.
    pub on_owner_silent: OnOwnerLoss,
    /// The owner closed its session in an orderly way.
    pub on_owner_goodbye: OnOwnerLoss,
    /// The agent is gone, by whatever cause.
    pub on_agent_loss: OnAgentLoss,
    /// How often an owner renews its lease.
    pub heartbeat_interval: Duration,
    /// For how long an owner's lease is granted, and how long its workers wait for it.
    pub heartbeat_timeout: Duration,
    /// How long workers live on after their node's lease is over, disabled: they get no calls and none is
    /// started, and they are enabled again if the node is back in time. Zero ends them with the lease.
    pub partition_grace: Duration,
    /// How long a worker that does a job lives after its node was last heard, fenced. Zero gives jobs no
    /// lease of their own.
    pub job_ttl: Duration,
}

impl LifecyclePolicy {
    /// What follows from `loss`.
    pub const fn on(&self, loss: Loss) -> Verdict {
        match loss {
            Loss::OwnerExited => self.without_owner(self.on_owner_exit),
            Loss::OwnerSilent => self.without_owner(self.on_owner_silent),
            Loss::OwnerLeft => self.without_owner(self.on_owner_goodbye),
            Loss::WorkerExited => match self.launcher {
                Launcher::Exec | Launcher::Systemd | Launcher::Supervisord | Launcher::Runit => {
                    Verdict::Restart
                }
                // Whoever started it starts it again; it is only taken off the endpoints.
                Launcher::Connect => Verdict::NotApplicable,
            },
            Loss::AgentGone => match self.on_agent_loss {
                OnAgentLoss::Kill => Verdict::KillNow,
                OnAgentLoss::HoldUntilLease => self.held(),
            },
            Loss::Partitioned => match self.reach {
                Reach::OneMachine => Verdict::NotApplicable,
                Reach::ManyMachines => self.held(),
            },
        }
    }

    const fn held(&self) -> Verdict {
        Verdict::HoldUntilLease {
            grace: self.partition_grace,
        }
    }

    const fn without_owner(&self, answer: OnOwnerLoss) -> Verdict {
        match answer {
            OnOwnerLoss::Kill => Verdict::KillNow,
            OnOwnerLoss::RunForTimeout => Verdict::RunFor(self.heartbeat_timeout),
            OnOwnerLoss::Continue => Verdict::Continue,
        }
    }
}
