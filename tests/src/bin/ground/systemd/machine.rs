//! A machine on which Tether is installed as the page on systemd says.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use tether_tests::{
    eventually_within,
    ground::{Ground, Nspawn, Refused},
};

use super::files;

/// Longest time for anything to be seen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends everything of Tether's, and forgets it. Sockets come first, and in a line of their own, as systemctl has an order of
/// its own within one: a caller would start their services again meanwhile, and with them the slice.
const CLEAR: &str = "
systemctl stop 'tether*.socket'
systemctl stop 'beam@*.service' etcd.service 'tether*.service'
systemctl stop tether-workers.slice
systemctl reset-failed
rm -rf /etc/systemd/system/tether*.d /var/lib/tether /run/tether/* /opt/go
systemctl daemon-reload
";

/// What a cleared machine has left: processes, sockets, and cgroups.
const LEFT: &str = "
ps -eo args= | grep -E '^(tether-|/usr/bin/tether|/usr/bin/python3)' || true
find /run -path '/run/tether/*.sock' -not -path '*/workers/*'
unified=/sys/fs/cgroup/unified
[ -d $unified ] || unified=/sys/fs/cgroup
find $unified -name 'tether-*'
";

pub(super) struct Deployed {
    pub(super) machine: Nspawn,
    packages: tempfile::TempDir,
}

impl Deployed {
    /// Boots one, and runs these commands in it.
    pub(super) async fn boot(install: &str) -> Result<Self, Refused> {
        let mut ground = Ground::new().await?;
        files::put(&mut ground);
        let packages = tempfile::tempdir();
        let packages = packages.map_err(|error| Refused(format!("no room: {error}")))?;
        ground.bind(packages.path(), "/packages");
        let machine = ground.boot().await?;
        // A container has a boot id of its own, laid over /proc, where services that have a /proc of their own do not see it.
        let line = format!("umount /proc/sys/kernel/random/boot_id || true\n{install}");
        let installed = machine.sh(&line).await;
        installed.map_err(|error| Refused(format!("`{install}`: {error:#}")))?;
        Ok(Self { machine, packages })
    }

    /// What the machine sees as /packages.
    pub(super) fn packages(&self) -> &Path {
        self.packages.path()
    }

    /// Runs a line of shell that is to succeed.
    pub(super) async fn sh(&self, line: &str) -> anyhow::Result<String> {
        self.machine.sh(line).await
    }

    /// Runs the page's commands below a heading.
    pub(super) async fn follow(&self, heading: &str) -> anyhow::Result<String> {
        match self.sh(&files::commands(heading)).await {
            Err(error) => Err(error.context(self.journal().await)),
            done => done,
        }
    }

    pub(super) async fn is_active(&self, unit: &str) -> anyhow::Result<bool> {
        Ok(self.machine.show(unit, "ActiveState").await? == "active")
    }

    /// Waits for a unit to be active, or not.
    pub(super) async fn becomes(&self, unit: &str, state: &str) -> anyhow::Result<()> {
        self.until(&format!("{unit} is {state}"), async || {
            let seen = self.machine.show(unit, "ActiveState").await.ok()?;
            (seen == state).then_some(())
        })
        .await
    }

    /// Looks until there is something to see.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        look: impl AsyncFnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        match eventually_within(PATIENCE, look).await {
            Some((seen, _)) => Ok(seen),
            None => {
                let journal = self.journal().await;
                anyhow::bail!("not within {PATIENCE:?}: {what}; the journal says\n{journal}")
            }
        }
    }

    async fn journal(&self) -> String {
        let line = "journalctl --no-pager --output=cat --lines=25 --unit='tether*' --unit='beam@*'";
        self.machine.sh(line).await.unwrap_or_default()
    }

    /// Starts an application that runs this pool, and waits for its worker, whose process it tells.
    pub(super) async fn run_pool(&self, pool: &str) -> anyhow::Result<u64> {
        self.sh(&format!("systemctl start beam@{pool}.service"))
            .await?;
        self.worker().await
    }

    /// The process of the worker, once it is ready.
    pub(super) async fn worker(&self) -> anyhow::Result<u64> {
        self.until("the worker is ready", async || {
            let said = self.sh("tether --output json ps").await.ok()?;
            let workers: serde_json::Value = serde_json::from_str(&said).ok()?;
            let worker = workers
                .as_array()?
                .iter()
                .find(|one| one["phase"] == "ready")?;
            worker["pid"].as_u64()
        })
        .await
    }

    /// Waits until a process is gone.
    pub(super) async fn gone(&self, pid: u64) -> anyhow::Result<()> {
        self.until(&format!("process {pid} is gone"), async || {
            (!self.runs(pid).await).then_some(())
        })
        .await
    }

    pub(super) async fn runs(&self, pid: u64) -> bool {
        self.sh(&format!("test -d /proc/{pid}")).await.is_ok()
    }

    /// Makes a call through the gateway.
    pub(super) async fn call(&self) -> anyhow::Result<()> {
        let answer = self.sh("python3 /opt/caller.py").await?;
        anyhow::ensure!(answer == "here", "the answer is `{answer}`");
        Ok(())
    }

    /// The main process of a unit.
    pub(super) async fn main_process(&self, unit: &str) -> anyhow::Result<u64> {
        let pid = self.machine.show(unit, "MainPID").await?;
        pid.parse().context("no main process")
    }

    /// Puts what is between two tests away, and sees that nothing is left.
    pub(super) async fn clear(&self) -> anyhow::Result<()> {
        self.sh(CLEAR).await?;
        let left = self.left().await?;
        anyhow::ensure!(left.is_empty(), "left behind: {left}");
        Ok(())
    }

    /// What is left of processes, sockets and cgroups, once that does not become less any more.
    pub(super) async fn left(&self) -> anyhow::Result<String> {
        let none = eventually_within(PATIENCE, async || {
            let left = self.sh(LEFT).await.ok()?;
            left.is_empty().then_some(left)
        });
        match none.await {
            Some((none, _)) => Ok(none),
            None => self.sh(LEFT).await,
        }
    }

    /// Sees that the worker is the same process still, and is called.
    pub(super) async fn is_still(&self, pid: u64) -> anyhow::Result<String> {
        let after = self.worker().await?;
        anyhow::ensure!(after == pid, "process {after} after {pid}");
        self.call().await?;
        Ok(format!("the same process, {pid}, and calls"))
    }
}
