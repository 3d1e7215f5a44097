//! What a policy needs around it, and the refusal of a mode whose needs are not met.

use crate::{
    Launcher, LifecyclePolicy, Mode, OnOwnerLoss, Reach, Refusal, detect::SUPERVISED, words::words,
};

words! {
    /// Something a policy cannot keep its promises without.
    Need, "need" {
        /// An agent that offers the policy's launcher.
        Launcher = "launcher",
        /// An owner whose process an agent can watch, so that its end is seen and not guessed.
        OwnerInSight = "owner_in_sight",
        /// An arbiter that grants leases across machines.
        Arbiter = "arbiter",
        /// A discovery service that says where the workers are.
        Discovery = "discovery",
    }
}

/// Whether an agent can watch the owner's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerSight {
    /// It runs on an agent's machine and said which process it is.
    Observed,
    /// It did not say which process it is.
    NoIdentity,
    /// It runs on a machine, or in a PID namespace, without an agent.
    Elsewhere,
}

/// What a policy finds around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The launchers that agents offer, each once; empty while no agent is registered.
    pub launchers: Vec<Launcher>,
    /// Whether an agent can watch the owner's process.
    pub owner: OwnerSight,
    /// Whether an arbiter answers.
    pub arbiter: bool,
    /// Whether a discovery service answers.
    pub discovery: bool,
}

/// What `policy` needs, in the order of [`Need::ALL`].
pub fn needs(policy: &LifecyclePolicy) -> Vec<Need> {
    let needed = |need: &Need| match need {
        Need::Launcher => true,
        Need::OwnerInSight => policy.on_owner_exit == OnOwnerLoss::Kill,
        Need::Arbiter | Need::Discovery => policy.reach == Reach::ManyMachines,
    };
    Need::ALL.iter().copied().filter(needed).collect()
}

/// Refuses a policy whose needs are not met, with what is missing and how to get it.
///
/// # Errors
/// Names the first need that is not met.
pub fn check(policy: &LifecyclePolicy, mode: Mode, facts: &Facts) -> Result<(), Refusal> {
    needs(policy).into_iter().try_for_each(|need| match need {
        Need::Launcher => launcher(policy.launcher, mode, facts),
        Need::OwnerInSight => owner_in_sight(mode, facts.owner),
        Need::Arbiter => service(facts.arbiter, mode, "arbiter", "grants leases"),
        Need::Discovery => service(
            facts.discovery,
            mode,
            "discovery",
            "says where the workers are",
        ),
    })
}

fn launcher(wanted: Launcher, mode: Mode, facts: &Facts) -> Result<(), Refusal> {
    if facts.launchers.contains(&wanted) {
        return Ok(());
    }
    let offered: Vec<_> = facts
        .launchers
        .iter()
        .map(|launcher| launcher.name())
        .collect();
    let problem = format!("mode `{mode}` needs it, and no agent offers launcher `{wanted}`");
    Err(match offered.as_slice() {
        [] => Refusal::new(
            "launcher",
            format!("{problem}, as no agent is registered"),
            "start one with `tether up`, or on this node with `tether-agent`",
        ),
        [..] if wanted != Launcher::Exec && facts.launchers.contains(&Launcher::Exec) => {
            let fits =
                |other: &Launcher| SUPERVISED.contains(&wanted) && facts.launchers.contains(other);
            let other = SUPERVISED.into_iter().find(fits).unwrap_or(Launcher::Exec);
            let instead = match other {
                Launcher::Exec => "to let the agent do it",
                _ => "to let that one do it",
            };
            Refusal::new(
                "launcher",
                format!("{problem}, offered: {}", offered.join(", ")),
                format!(
                    "set `launcher = \"{other}\"` in the pool's [policy] {instead}, or start an agent where `{wanted}` can be used (`tether doctor` says what is missing there)"
                ),
            )
        }
        [first, ..] => Refusal::new(
            "launcher",
            format!("{problem}, offered: {}", offered.join(", ")),
            format!(
                "set `launcher = \"{first}\"` in the pool's [policy], or start an agent where `{wanted}` can be used"
            ),
        ),
    })
}

fn owner_in_sight(mode: Mode, sight: OwnerSight) -> Result<(), Refusal> {
    let because = match sight {
        OwnerSight::Observed => return Ok(()),
        OwnerSight::NoIdentity => "it gave no process identity",
        OwnerSight::Elsewhere => "it is on a machine, or in a PID namespace, without an agent",
    };
    Err(Refusal::new(
        "mode",
        format!(
            "`{mode}` with `on_owner_exit = \"kill\"` kills workers the moment their owner's process ends, and no agent can watch that process, because {because}"
        ),
        "set `mode = \"independent\"`, which ends workers when the owner's lease runs out, or run the owner beside an agent",
    ))
}

fn service(answers: bool, mode: Mode, name: &str, does: &str) -> Result<(), Refusal> {
    if answers {
        return Ok(());
    }
    Err(Refusal::new(
        "mode",
        format!(
            "`{mode}` spans machines and needs the {name} service, which {does}, but none answers"
        ),
        format!(
            "start `tether-{name}` and name its address in the configuration, or run everything here with `tether up`"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_there() -> Facts {
        Facts {
            launchers: Launcher::ALL.to_vec(),
            owner: OwnerSight::Observed,
            arbiter: true,
            discovery: true,
        }
    }

    #[test]
    fn every_mode_is_accepted_where_everything_is_there() {
        for &mode in Mode::ALL {
            assert_eq!(check(&mode.preset(), mode, &all_there()), Ok(()));
        }
    }

    #[test]
    fn a_mode_whose_needs_are_not_met_says_what_is_missing_and_how_to_get_it() {
        let only_exec = Facts {
            launchers: vec![Launcher::Exec],
            ..all_there()
        };
        let no_agent = Facts {
            launchers: vec![],
            ..all_there()
        };
        let anonymous = Facts {
            owner: OwnerSight::NoIdentity,
            ..all_there()
        };
        let with_runit = Facts {
            launchers: vec![Launcher::Exec, Launcher::Runit],
            ..all_there()
        };
        let remote = Facts {
            owner: OwnerSight::Elsewhere,
            ..all_there()
        };
        let no_arbiter = Facts {
            arbiter: false,
            ..all_there()
        };
        let no_discovery = Facts {
            discovery: false,
            ..all_there()
        };
        let refused = [
            (
                Mode::Supervised,
                only_exec,
                "no agent offers launcher `systemd`, offered: exec; set `launcher = \"exec\"` in the pool's [policy]",
            ),
            (
                Mode::Supervised,
                with_runit,
                "offered: exec, runit; set `launcher = \"runit\"` in the pool's [policy] to let that one do it",
            ),
            (Mode::Coupled, no_agent, "no agent is registered; start one"),
            (
                Mode::Coupled,
                anonymous,
                "no process identity; set `mode = \"independent\"`",
            ),
            (
                Mode::Coupled,
                remote,
                "on a machine, or in a PID namespace, without an agent; set",
            ),
            (Mode::Independent, no_arbiter, "needs the arbiter service"),
            (
                Mode::Distributed,
                no_discovery,
                "needs the discovery service",
            ),
        ];

        for (mode, facts, told) in refused {
            let refusal = check(&mode.preset(), mode, &facts).unwrap_err().to_string();
            assert!(refusal.contains(told), "{refusal}");
        }
    }
}
