//! What a pool changes of its mode's preset, and which changes contradict each other.

use std::time::Duration;

use crate::{Launcher, LifecyclePolicy, Mode, OnAgentLoss, OnOwnerLoss, words::words};

/// A shorter one ends before a heartbeat over a busy machine is answered.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// Longer than any job waits for its owner, or for the network.
const TIMEOUT_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

words! {
    /// One word for what an owner's unexpected end means, whether proven or only suspected.
    BeamCrashPolicy, "beam crash policy" {
        /// Workers go on.
        Continue = "continue",
        /// Workers end unless the owner is back within `heartbeat_timeout`.
        Terminate = "terminate",
    }
}

/// A policy, or a mode, that is refused: which field, why, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}; {fix}")]
pub struct Refusal {
    /// The setting to change, as it is written in a pool's `[policy]`; `mode` for the mode itself.
    pub field: &'static str,
    /// What is wrong, in consequences.
    pub problem: String,
    /// What to do.
    pub fix: String,
}

impl Refusal {
    pub(crate) fn new(
        field: &'static str,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            field,
            problem: problem.into(),
            fix: fix.into(),
        }
    }
}

/// The fields a pool sets itself; an absent one keeps its mode's preset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PolicyOverrides {
    /// See [`LifecyclePolicy::launcher`].
    pub launcher: Option<Launcher>,
    /// See [`LifecyclePolicy::on_owner_exit`].
    pub on_owner_exit: Option<OnOwnerLoss>,
    /// See [`LifecyclePolicy::on_owner_silent`].
    pub on_owner_silent: Option<OnOwnerLoss>,
    /// See [`LifecyclePolicy::on_owner_goodbye`].
    pub on_owner_goodbye: Option<OnOwnerLoss>,
    /// See [`LifecyclePolicy::on_agent_loss`].
    pub on_agent_loss: Option<OnAgentLoss>,
    /// See [`LifecyclePolicy::heartbeat_interval`].
    pub heartbeat_interval: Option<Duration>,
    /// See [`LifecyclePolicy::heartbeat_timeout`].
    pub heartbeat_timeout: Option<Duration>,
    /// See [`LifecyclePolicy::partition_grace`].
    pub partition_grace: Option<Duration>,
    /// See [`LifecyclePolicy::job_ttl`].
    pub job_ttl: Option<Duration>,
    /// Sets `on_owner_exit` and `on_owner_silent` together.
    pub beam_crash_policy: Option<BeamCrashPolicy>,
    /// Whether workers are bound to their owner's unit (systemd's `BindsTo`): they go when it
    /// goes, by a crash or in good order. Only in mode `supervised`.
    pub bound: Option<bool>,
}

impl Mode {
    /// This mode's preset with `overrides` applied: the one way to a policy a pool may run under.
    ///
    /// # Errors
    /// Refuses what contradicts the mode or itself.
    pub fn policy(self, overrides: &PolicyOverrides) -> Result<LifecyclePolicy, Refusal> {
        overrides.agree_with(self)?;
        let policy = overrides.apply(self.preset());
        policy.agrees_with_itself()?;
        Ok(policy)
    }
}

impl PolicyOverrides {
    /// Refuses what the mode does not allow, and two settings that say the same thing.
    fn agree_with(&self, mode: Mode) -> Result<(), Refusal> {
        if let (Some(_), Some(_), _) | (Some(_), _, Some(_)) = (
            self.beam_crash_policy,
            self.on_owner_exit,
            self.on_owner_silent,
        ) {
            return Err(Refusal::new(
                "beam_crash_policy",
                "it sets `on_owner_exit` and `on_owner_silent`, of which one is set as well",
                "keep either the short form or the fields",
            ));
        }
        match mode {
            Mode::Coupled => self.agree_with_coupled()?,
            Mode::Supervised | Mode::Independent | Mode::Distributed => {}
        }
        let twice = self.on_owner_exit.or(self.on_owner_goodbye).is_some()
            || self.beam_crash_policy.is_some();
        match (self.bound, mode) {
            (None | Some(false), _) => Ok(()),
            (Some(true), Mode::Supervised) if twice => Err(Refusal::new(
                "bound",
                "it ties workers to the end of their owner, which another setting decides as well",
                "keep `bound`, or set `on_owner_exit` and `on_owner_goodbye` alone",
            )),
            (Some(true), Mode::Supervised) => Ok(()),
            (Some(true), Mode::Coupled | Mode::Independent | Mode::Distributed) => {
                Err(Refusal::new(
                    "bound",
                    format!("mode `{mode}` has no unit that could be bound to the owner's"),
                    "remove it, or use mode `supervised`",
                ))
            }
        }
    }

    /// A coupled worker that survives its owner is not coupled (M1). A goodbye counts: the owner
    /// says it on its way out, and nobody watches its process after that.
    fn agree_with_coupled(&self) -> Result<(), Refusal> {
        let surviving = |answer: Option<OnOwnerLoss>| match answer {
            None | Some(OnOwnerLoss::Kill) => false,
            Some(OnOwnerLoss::RunForTimeout | OnOwnerLoss::Continue) => true,
        };
        let field = if surviving(self.on_owner_exit) {
            "on_owner_exit"
        } else if surviving(self.on_owner_goodbye) {
            "on_owner_goodbye"
        } else if self.beam_crash_policy.is_some() {
            "beam_crash_policy"
        } else {
            return Ok(());
        };
        Err(Refusal::new(
            field,
            "in mode `coupled` workers end with their owner's process",
            "workers that outlive it are mode `independent`: set `mode = \"independent\"`, or remove this",
        ))
    }

    fn apply(&self, mut policy: LifecyclePolicy) -> LifecyclePolicy {
        if let Some(crash) = self.beam_crash_policy {
            let answer = match crash {
                BeamCrashPolicy::Continue => OnOwnerLoss::Continue,
                BeamCrashPolicy::Terminate => OnOwnerLoss::RunForTimeout,
            };
            policy.on_owner_exit = answer;
            policy.on_owner_silent = answer;
        }
        if self.bound == Some(true) {
            policy.on_owner_exit = OnOwnerLoss::Kill;
            policy.on_owner_goodbye = OnOwnerLoss::Kill;
        }
        LifecyclePolicy {
            launcher: self.launcher.unwrap_or(policy.launcher),
            reach: policy.reach,
            on_owner_exit: self.on_owner_exit.unwrap_or(policy.on_owner_exit),
            on_owner_silent: self.on_owner_silent.unwrap_or(policy.on_owner_silent),
            on_owner_goodbye: self.on_owner_goodbye.unwrap_or(policy.on_owner_goodbye),
            on_agent_loss: self.on_agent_loss.unwrap_or(policy.on_agent_loss),
            heartbeat_interval: self.heartbeat_interval.unwrap_or(policy.heartbeat_interval),
            heartbeat_timeout: self.heartbeat_timeout.unwrap_or(policy.heartbeat_timeout),
            partition_grace: self.partition_grace.unwrap_or(policy.partition_grace),
            job_ttl: self.job_ttl.unwrap_or(policy.job_ttl),
        }
    }
}

impl LifecyclePolicy {
    /// What workers may do while they are cut off: each longer than the one before, none for ever (M2).
    fn cut_off_in_order(&self) -> Result<(), Refusal> {
        let (grace, job) = (self.partition_grace, self.job_ttl);
        for (field, span, usual) in [("partition_grace", grace, "40s"), ("job_ttl", job, "24h")] {
            if span > TIMEOUT_MAX {
                return Err(Refusal::new(
                    field,
                    format!(
                        "{span:?} is more than {TIMEOUT_MAX:?}, so the place of a worker whose node is gone would stay empty for good"
                    ),
                    format!(
                        "set it to `{usual}`, and tell the arbiter of dead nodes with `tether node dead`"
                    ),
                ));
            }
        }
        if !job.is_zero() && job < grace {
            return Err(Refusal::new(
                "job_ttl",
                format!(
                    "{job:?} is less than `partition_grace` ({grace:?}), so a worker with a job would be given less than one without"
                ),
                "set it to `24h`, or to `0s` to give jobs no lease of their own",
            ));
        }
        Ok(())
    }

    fn agrees_with_itself(&self) -> Result<(), Refusal> {
        let (interval, timeout) = (self.heartbeat_interval, self.heartbeat_timeout);
        if interval.is_zero() {
            return Err(Refusal::new(
                "heartbeat_interval",
                "zero leaves no time between two heartbeats",
                "set it to `10s`",
            ));
        }
        if timeout < TIMEOUT_MIN || timeout > TIMEOUT_MAX {
            return Err(Refusal::new(
                "heartbeat_timeout",
                format!(
                    "{timeout:?} is outside {TIMEOUT_MIN:?} to {TIMEOUT_MAX:?}, so it either ends before a heartbeat is answered or keeps workers nobody will come back for"
                ),
                "set it to `60s`",
            ));
        }
        if timeout < interval.saturating_mul(2) {
            return Err(Refusal::new(
                "heartbeat_timeout",
                format!(
                    "{timeout:?} is less than twice `heartbeat_interval` ({interval:?}), so one lost heartbeat would end the owner's lease"
                ),
                format!(
                    "lower `heartbeat_interval` to {:?} or less, or raise this",
                    timeout / 2
                ),
            ));
        }
        self.cut_off_in_order()?;
        let kills = [
            self.on_owner_exit,
            self.on_owner_silent,
            self.on_owner_goodbye,
        ]
        .contains(&OnOwnerLoss::Kill)
            || self.on_agent_loss == OnAgentLoss::Kill;
        if self.launcher == Launcher::Connect && kills {
            return Err(Refusal::new(
                "launcher",
                "a worker that was already running when the agent connected to it cannot be killed by the agent, as this policy promises",
                "use launcher `exec`, or mode `independent`, which lets workers go on",
            ));
        }
        Ok(())
    }
}
