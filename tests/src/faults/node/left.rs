//! What is there where nothing should be.

use std::fs;

use tether_tests::{cgroups, eventually_within};

use super::{Node, QUIET};
use crate::lineage::Pinned;

/// What an agent and its zygote hold while no worker is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) agent_fds: usize,
    pub(crate) zygote_fds: usize,
}

impl Node {
    /// What is held where nothing runs.
    pub(crate) fn holdings(&self) -> Holdings {
        let fds = |pid: Option<u32>| {
            let entries = pid.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")));
            entries.and_then(Result::ok).map_or(0, Iterator::count)
        };
        Holdings {
            agent_fds: fds(self.agent.as_ref().map(|agent| agent.pid)),
            zygote_fds: fds(self.zygote().map(|zygote| zygote.pid)),
        }
    }

    /// Waits until nothing is left of any worker, and the agent holds no more than `before`; else what it is.
    pub(crate) async fn quiet(&self, before: Option<&Holdings>) -> Result<(), String> {
        let mut left = Vec::new();
        let quiet = eventually_within(QUIET, async || {
            left = self.left(before);
            left.is_empty().then_some(())
        });
        match quiet.await {
            Some(_) => Ok(()),
            None => Err(left.join(", ")),
        }
    }

    /// What there is beyond an agent and its zygote.
    fn left(&self, before: Option<&Holdings>) -> Vec<String> {
        let mut left = Vec::new();
        if !self.agent.as_ref().is_some_and(Pinned::lives) {
            left.push("the agent is dead".to_owned());
            return left;
        }
        let (zygote, agent) = (
            self.zygote().map(|zygote| zygote.pid),
            self.agent.as_ref().map(|agent| agent.pid),
        );
        for kin in self.kin() {
            // A zygote that is being replaced is the agent's child too, until it is reaped.
            if Some(kin.pid) != zygote || Some(kin.parent) != agent {
                left.push(format!("process {} `{}`", kin.pid, kin.name));
            }
        }
        for (label, seen) in self.witness.of("") {
            if seen.gone.is_none() {
                left.push(format!("worker {label}"));
            }
        }
        for cgroup in cgroups(&self.seen("run")) {
            let below = fs::read_dir(&cgroup).into_iter().flatten().flatten();
            let below = below.filter(|entry| entry.path().is_dir());
            left.extend(below.map(|leaf| format!("cgroup {}", leaf.path().display())));
        }
        for entry in fs::read_dir(self.seen("run/workers"))
            .into_iter()
            .flatten()
            .flatten()
        {
            // What stays of the dead are their logs, and the socket that a killed one could not remove.
            for name in ["order", "order.new", "shim.sock"] {
                let path = entry.path().join(name);
                if path.exists() {
                    left.push(format!("file {}", path.display()));
                }
            }
        }
        if let Some(before) = before {
            let now = self.holdings();
            if now.agent_fds > before.agent_fds || now.zygote_fds > before.zygote_fds {
                left.push(format!("descriptors: {now:?} after {before:?}"));
            }
        }
        left
    }
}
