//! How surely a worker's processes end: five levels, from what the kernel was seen to allow here.

use std::fmt;

use serde::{Deserialize, Serialize};
use tether_shim_protocol::zygote::Means;

/// A level of guarantee. The first is the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Guarantee {
    /// A PID namespace and a cgroup v2 for each worker.
    G1,
    /// A PID namespace for each worker.
    G2,
    /// A cgroup v2 for each worker.
    G3,
    /// Neither, in a container whose first process is ours.
    G4,
    /// Neither.
    G5,
}

impl Guarantee {
    /// Every level, strongest first.
    pub const ALL: &'static [Self] = &[Self::G1, Self::G2, Self::G3, Self::G4, Self::G5];

    /// What holds a worker's processes together on this level.
    pub const fn means(self) -> &'static str {
        match self {
            Self::G1 => "a PID namespace and a cgroup for each worker",
            Self::G2 => "a PID namespace for each worker",
            Self::G3 => "a cgroup for each worker",
            Self::G4 => "the container: its first process inherits and ends what a worker leaves",
            Self::G5 => "the shim, which inherits what its worker leaves, and the zygote after it",
        }
    }

    /// What it does not cover.
    pub const fn not_covered(self) -> &'static str {
        match self {
            Self::G1 => {
                "a process in uninterruptible sleep, which nothing can end; it is reported and keeps its place"
            }
            Self::G2 => {
                "as G1; and without a cgroup nothing counts the memory of a worker's tree or tells an out-of-memory kill"
            }
            Self::G3 => {
                "as G1; and when shim, zygote and agent are killed at once, what the worker daemonised, or ran with \
                 a set-uid program, lives until the next agent starts on this node"
            }
            Self::G4 => {
                "as G2; and what a killed shim leaves behind lives for the moment the first process takes to end it"
            }
            Self::G5 => {
                "as G2; and when shim, zygote and agent are killed at once, what the worker daemonised, or ran with \
                 a set-uid program, lives until the next agent starts on this node, which knows it by its environment"
            }
        }
    }

    /// The level that these means make.
    pub(crate) fn of(means: Means, first_in_container: bool) -> Self {
        match (means.namespace, means.cgroup) {
            (true, true) => Self::G1,
            (true, false) => Self::G2,
            (false, true) => Self::G3,
            (false, false) if first_in_container => Self::G4,
            (false, false) => Self::G5,
        }
    }

    /// Whether it is at least as strong as another.
    pub(crate) fn satisfies(self, wanted: Self) -> bool {
        self <= wanted
    }
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// How to get what is missing for a level, given what there is.
pub(crate) fn advice(means: Means, no_namespaces: bool, no_cgroups: bool) -> String {
    let mut missing = Vec::new();
    if !means.namespace {
        missing.push(if no_namespaces {
            "`agent.no_namespaces` is set: remove it"
        } else {
            "no PID namespace can be made: run the agent as root or with CAP_SYS_ADMIN, or allow unprivileged user \
             namespaces"
        });
    }
    if !means.cgroup {
        missing.push(if no_cgroups {
            "`agent.no_cgroups` is set: remove it"
        } else {
            "no cgroup v2 can be made below the agent's own: mount cgroup2 and run the agent as root, or delegate its \
             cgroup to it (Delegate=yes in a systemd unit)"
        });
    }
    missing.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_what_was_seen_to_work_and_a_stronger_one_satisfies() {
        let means = |namespace, cgroup| Means {
            namespace,
            cgroup,
            ..Means::default()
        };

        let levels = [
            Guarantee::of(means(true, true), false),
            Guarantee::of(means(true, false), true),
            Guarantee::of(means(false, true), true),
            Guarantee::of(means(false, false), true),
            Guarantee::of(means(false, false), false),
        ];

        assert_eq!(levels, *Guarantee::ALL);
        assert!(Guarantee::G1.satisfies(Guarantee::G3));
        assert!(!Guarantee::G3.satisfies(Guarantee::G2));
    }

    #[test]
    fn what_is_missing_is_told_with_how_to_get_it() {
        let nothing = Means::default();

        assert!(advice(nothing, true, false).starts_with("`agent.no_namespaces` is set"));
        assert!(advice(nothing, false, false).contains("Delegate=yes"));
    }
}
