//! A container of one node: its first process, which is the agent's zygote, the agent below that, and what
//! else is run in it from outside.

use std::{fs, process::Stdio, time::Duration};

use tether_tests::eventually_within;
use tokio::process::Command;

use crate::{
    lineage::Pinned,
    strangers::{Account, Strangers},
    world::WORKER,
};

/// Longest time for the first process to start the agent again: it waits longer after each death.
const AGAIN: Duration = Duration::from_secs(30);

/// Processes a second that recycle its pids.
const STORM: u32 = 100;

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    first: Pinned,
    strangers: Strangers,
}

impl Container {
    /// Takes this process for the first of a container, and has its pids recycled.
    pub(crate) fn new(first: Pinned) -> anyhow::Result<Self> {
        let strangers = Strangers::inside(&first, STORM)?;
        Ok(Self { first, strangers })
    }

    /// The container's first process.
    pub(crate) fn first(&self) -> &Pinned {
        &self.first
    }

    /// The agent, as soon as it runs; none where the container ended instead.
    pub(crate) async fn agent(&self) -> Option<Pinned> {
        let found = eventually_within(AGAIN, async || {
            if !self.first.lives() {
                return Some(None);
            }
            Pinned::child(self.first.pid, "tether-agent").map(Some)
        });
        found.await.and_then(|(agent, _)| agent)
    }

    /// A command that runs a program in here as a child of a process outside.
    pub(crate) fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(WORKER);
        command.arg("inside").stdin(Stdio::from(self.first.fd()?));
        Ok(command)
    }

    /// Has a stranger in here take the pid that a process has in here.
    pub(crate) fn take_over(&self, pid: u32) {
        self.strangers.recycler().take_over(pid);
    }

    /// What became of the strangers, once the container has ended.
    pub(crate) async fn end(self) -> anyhow::Result<Account> {
        self.strangers.end().await
    }
}

/// The pid that a process has in the container it lives in.
pub(crate) fn inner_pid(process: &Pinned) -> Option<u32> {
    process.look(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let pids = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        pids.split_whitespace().last()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use tether_tests::eventually;

    use super::*;
    use crate::lineage::descendants;

    #[tokio::test]
    async fn a_signal_to_a_stranger_in_a_container_is_counted_and_the_end_of_the_container_is_none()
    {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root may make a container");
            return;
        }
        let mut outside = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sleep", "600"])
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let parent = outside.id().unwrap();
        let first = eventually("the first process runs", async || {
            Pinned::child(parent, "sleep")
        });
        let container = Container::new(first.await.0).unwrap();
        let helper = container.strangers.pid();
        let on = async |inner: u32| {
            let found = eventually("a stranger has the pid", async || {
                let kin = descendants(helper);
                let mut pinned = kin.iter().filter_map(|kin| Pinned::new(kin.pid).ok());
                pinned.find(|stranger| inner_pid(stranger) == Some(inner))
            });
            found.await.0
        };

        container.take_over(30_001);
        let hit = on(30_001).await;
        assert!(hit.kill());
        eventually("it is gone", async || (!hit.lives()).then_some(())).await;
        container.take_over(30_002);
        let contained = on(30_002).await;
        assert!(container.first().kill());
        outside.wait().await.unwrap();

        assert!(!contained.lives());
        let account = container.end().await.unwrap();
        assert_eq!((account.on_pids_of_the_dead, account.signals), (2, 1));
        assert_eq!(account.hits, [format!("hit {} 9", hit.pid)]);
    }
}
