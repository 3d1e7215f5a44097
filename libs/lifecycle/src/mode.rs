//! The four modes: named presets of one policy.

use std::{fmt, str::FromStr, time::Duration};

use crate::{
    LifecyclePolicy, UnknownWord,
    policy::{Launcher, OnAgentLoss, OnOwnerLoss, Reach},
    words::words,
};

/// Long enough for a switch to be replaced or a store to elect a leader; with a node's lease of 20 s a
/// worker that is cut off ends after a minute, as one does whose owner is silent.
const PARTITION_GRACE: Duration = Duration::from_secs(40);

/// A job may be days old, and a network that is down overnight must not cost it.
const JOB_TTL: Duration = Duration::from_secs(24 * 3600);

words! {
    /// A named preset of a [`LifecyclePolicy`].
    Mode, "lifecycle mode" {
        /// Development and short work: workers live and die with their owner's process.
        Coupled = "coupled",
        /// One production server: a service supervisor keeps the workers, the owner comes and goes.
        Supervised = "supervised",
        /// Long jobs: workers outlive restarts of their owner for a while and are taken up again.
        Independent = "independent",
        /// Many nodes: workers live where a scheduler put them, owners find and re-find them.
        Distributed = "distributed",
    }
}

impl Mode {
    /// The policy this mode stands for.
    pub const fn preset(self) -> LifecyclePolicy {
        match self {
            Self::Coupled => LifecyclePolicy {
                launcher: Launcher::Exec,
                reach: Reach::OneMachine,
                on_owner_exit: OnOwnerLoss::Kill,
                on_owner_silent: OnOwnerLoss::Kill,
                on_owner_goodbye: OnOwnerLoss::Kill,
                on_agent_loss: OnAgentLoss::Kill,
                // A developer who stops the owner in a debugger sees the workers go within
                // seconds; a process that ends is seen at once and needs no heartbeat.
                heartbeat_interval: Duration::from_secs(2),
                heartbeat_timeout: Duration::from_secs(10),
                // One machine: nothing can come between its parties, so that a silent arbiter is a dead one.
                partition_grace: Duration::ZERO,
                job_ttl: Duration::ZERO,
            },
            Self::Supervised => LifecyclePolicy {
                launcher: Launcher::Systemd,
                reach: Reach::OneMachine,
                on_owner_exit: OnOwnerLoss::Continue,
                on_owner_silent: OnOwnerLoss::Continue,
                on_owner_goodbye: OnOwnerLoss::Continue,
                on_agent_loss: OnAgentLoss::HoldUntilLease,
                heartbeat_interval: Duration::from_secs(10),
                heartbeat_timeout: Duration::from_secs(60),
                partition_grace: Duration::ZERO,
                job_ttl: Duration::ZERO,
            },
            Self::Independent => LifecyclePolicy {
                launcher: Launcher::Exec,
                reach: Reach::ManyMachines,
                on_owner_exit: OnOwnerLoss::RunForTimeout,
                on_owner_silent: OnOwnerLoss::RunForTimeout,
                // A goodbye is no order to stop: the owner may restart for an upgrade, and the job
                // it left behind may be days old.
                on_owner_goodbye: OnOwnerLoss::RunForTimeout,
                on_agent_loss: OnAgentLoss::HoldUntilLease,
                heartbeat_interval: Duration::from_secs(10),
                heartbeat_timeout: Duration::from_secs(60),
                partition_grace: PARTITION_GRACE,
                job_ttl: JOB_TTL,
            },
            Self::Distributed => LifecyclePolicy {
                launcher: Launcher::Exec,
                reach: Reach::ManyMachines,
                on_owner_exit: OnOwnerLoss::Continue,
                on_owner_silent: OnOwnerLoss::Continue,
                on_owner_goodbye: OnOwnerLoss::RunForTimeout,
                on_agent_loss: OnAgentLoss::HoldUntilLease,
                heartbeat_interval: Duration::from_secs(10),
                heartbeat_timeout: Duration::from_secs(60),
                partition_grace: PARTITION_GRACE,
                job_ttl: JOB_TTL,
            },
        }
    }
}

/// What a pool's `mode` says: one of the modes, or to look around and choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModeChoice {
    /// Chosen by [`crate::detect`] from where the system finds itself.
    Auto,
    /// This one.
    Fixed(Mode),
}

impl ModeChoice {
    /// The word for [`ModeChoice::Auto`].
    const AUTO: &str = "auto";
}

impl fmt::Display for ModeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => Self::AUTO,
            Self::Fixed(mode) => mode.name(),
        })
    }
}

impl FromStr for ModeChoice {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        if word == Self::AUTO {
            return Ok(Self::Auto);
        }
        let known = || std::iter::once(Self::AUTO).chain(Mode::ALL.iter().map(|mode| mode.name()));
        word.parse()
            .map(Self::Fixed)
            .map_err(|unknown: UnknownWord| UnknownWord::new(unknown.kind, word, known()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_and_auto_read_back_as_they_are_written() {
        let all = Mode::ALL.iter().copied().map(ModeChoice::Fixed);

        for choice in all.chain([ModeChoice::Auto]) {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }

    #[test]
    fn an_unknown_mode_is_answered_with_every_word_that_would_do() {
        let error = "standalone\n".parse::<ModeChoice>().unwrap_err();

        assert_eq!(
            error.to_string(),
            "no lifecycle mode is called `standalone\\n`, expected one of: auto, coupled, supervised, independent, distributed"
        );
    }
}
