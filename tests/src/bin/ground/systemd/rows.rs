//! What is tried in the container, one after the other.

use std::pin::Pin;

use anyhow::Context as _;

use super::{machine::Deployed, watchdog};

type Played<'a> = Pin<Box<dyn Future<Output = anyhow::Result<String>> + 'a>>;

/// One claim.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) expected: &'static str,
    pub(super) play: for<'a> fn(&'a Deployed) -> Played<'a>,
}

/// In the order they are played.
pub(super) const ALL: &[Row] = &[
    Row {
        name: "units are as systemd wants them",
        expected: "no complaint",
        play: |deployed| Box::pin(verified(deployed)),
    },
    Row {
        name: "units take away what is not needed",
        expected: "at most 4.0 with an agent, 2.0 without; KillMode=mixed",
        play: |deployed| Box::pin(exposed(deployed)),
    },
    Row {
        name: "start comes back when calls are served",
        expected: "a node is up",
        play: |deployed| Box::pin(starts(deployed)),
    },
    Row {
        name: "a service that is refused its configuration is not started again",
        expected: "status 78, once",
        play: |deployed| Box::pin(refused(deployed)),
    },
    Row {
        name: "the first caller starts it",
        expected: "inactive, then active, and an answer",
        play: |deployed| Box::pin(activated(deployed)),
    },
    Row {
        name: "a worker outlives a restart of its agent",
        expected: "the same process, and calls",
        play: |deployed| Box::pin(restarted(deployed)),
    },
    Row {
        name: "a worker outlives kill -9 of its agent",
        expected: "the same process, and calls",
        play: |deployed| Box::pin(killed(deployed)),
    },
    Row {
        name: "a service that hangs is started again",
        expected: "watchdog, then the same worker",
        play: |deployed| Box::pin(hung(deployed)),
    },
    Row {
        name: "a coupled worker ends with its application",
        expected: "gone",
        play: |deployed| Box::pin(coupled(deployed)),
    },
    Row {
        name: "an independent worker outlives its application",
        expected: "the same process",
        play: |deployed| Box::pin(independent(deployed)),
    },
    Row {
        name: "Tether that is bound to an application ends with it",
        expected: "agent and worker gone",
        play: |deployed| Box::pin(bound(deployed)),
    },
    Row {
        name: "a stop ends what runs in the unit, and not what is beside it",
        expected: "an empty unit, a worker that lives",
        play: |deployed| Box::pin(stopped(deployed)),
    },
];

/// With an agent, and without.
const SERVICES: [(&str, f64); 5] = [
    ("tether.service", 4.0),
    ("tether-agent.service", 4.0),
    ("tether-gateway.service", 2.0),
    ("tether-arbiter.service", 2.0),
    ("tether-discovery.service", 2.0),
];

/// Prints the processes that are in the unit, which may be gone.
const IN_UNIT: &str = "
unified=/sys/fs/cgroup/unified
[ -d $unified ] || unified=/sys/fs/cgroup
cat $unified/system.slice/tether.service/cgroup.procs 2>/dev/null || true
";

async fn verified(deployed: &Deployed) -> anyhow::Result<String> {
    let line = "cd /usr/lib/systemd/system; systemd-analyze verify --man=no tether*.service tether*.socket tether*.slice 2>&1";
    let said = deployed.sh(line).await?;
    anyhow::ensure!(said.is_empty(), "{said}");
    Ok("no complaint".to_owned())
}

async fn exposed(deployed: &Deployed) -> anyhow::Result<String> {
    let mut seen = Vec::new();
    // Whoever calls can have programs run as root.
    let line = "cat /usr/lib/systemd/system/tether*.socket /etc/tether/tether.toml | grep -E '^[^#].*:[0-9]' || true";
    let open = deployed.sh(line).await?;
    anyhow::ensure!(open.is_empty(), "open to every local user: {open}");
    for (unit, most) in SERVICES {
        let line = format!("systemctl show --value --property=KillMode {unit}");
        let mode = deployed.sh(&line).await?;
        // Only the main process is asked to end; what is left of the unit after that is killed.
        anyhow::ensure!(mode.trim() == "mixed", "{unit} has KillMode={mode}");
        let line = format!(
            "systemd-analyze security --offline=true --no-pager {unit} 2>&1 | grep 'exposure level'"
        );
        let said = deployed.sh(&line).await?;
        let score = said
            .split(": ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let score: f64 = score.with_context(|| said.clone())?.parse()?;
        anyhow::ensure!(score <= most, "{unit} has {score}");
        seen.push(format!("{unit} {score}"));
    }
    Ok(seen.join(", "))
}

async fn starts(deployed: &Deployed) -> anyhow::Result<String> {
    deployed.follow("One machine").await?;
    let node = "a node is up";
    deployed
        .until(node, async || {
            let said = deployed.sh("tether nodes").await.ok()?;
            said.contains(" up ").then_some(())
        })
        .await?;
    let status = deployed
        .machine
        .show("tether.service", "StatusText")
        .await?;
    anyhow::ensure!(status == "Serves", "it says `{status}`");
    Ok(node.to_owned())
}

async fn refused(deployed: &Deployed) -> anyhow::Result<String> {
    let unit = "tether-arbiter.service";
    let started = deployed.sh(&format!("systemctl start {unit}")).await;
    anyhow::ensure!(started.is_err(), "it starts without a store");
    let show = async |property| deployed.machine.show(unit, property).await;
    let (status, restarts) = (show("ExecMainStatus").await?, show("NRestarts").await?);
    let state = show("ActiveState").await?;
    let seen = format!("status {status}, {restarts} restarts, {state}");
    anyhow::ensure!(seen == "status 78, 0 restarts, failed", "{seen}");
    Ok("status 78, once".to_owned())
}

async fn activated(deployed: &Deployed) -> anyhow::Result<String> {
    deployed.follow("Started by the first caller").await?;
    let before = deployed
        .machine
        .show("tether.service", "ActiveState")
        .await?;
    anyhow::ensure!(before == "inactive", "it is {before} before anybody calls");
    // Somebody who connects and waits: the connection is the kernel's until the service takes it.
    deployed.run_pool("independent").await?;
    deployed.call().await?;
    anyhow::ensure!(
        deployed.is_active("tether.service").await?,
        "it is not active"
    );
    deployed
        .sh("systemctl stop tether.service && test -S /run/tether/gateway.sock")
        .await?;
    Ok("inactive, then active, and an answer".to_owned())
}

async fn restarted(deployed: &Deployed) -> anyhow::Result<String> {
    deployed.sh("systemctl start tether.service").await?;
    let pid = deployed.run_pool("independent").await?;
    let agent = deployed.main_process("tether.service").await?;
    deployed.sh("systemctl restart tether.service").await?;
    anyhow::ensure!(
        deployed.main_process("tether.service").await? != agent,
        "it did not restart"
    );
    deployed.is_still(pid).await
}

async fn killed(deployed: &Deployed) -> anyhow::Result<String> {
    deployed.sh("systemctl start tether.service").await?;
    let pid = deployed.run_pool("independent").await?;
    deployed.kill_main("tether.service").await?;
    deployed.is_still(pid).await
}

async fn hung(deployed: &Deployed) -> anyhow::Result<String> {
    let units = ["tether.service"];
    watchdog::hurry(deployed, &units).await?;
    deployed.sh("systemctl start tether.service").await?;
    let pid = deployed.run_pool("independent").await?;
    watchdog::hang(deployed, &units).await?;
    deployed
        .is_still(pid)
        .await
        .map(|seen| format!("watchdog, then {seen}"))
}

async fn coupled(deployed: &Deployed) -> anyhow::Result<String> {
    deployed.sh("systemctl start tether.service").await?;
    let pid = deployed.run_pool("coupled").await?;
    deployed
        .sh("systemctl kill --kill-whom=main --signal=KILL beam@coupled.service")
        .await?;
    deployed.gone(pid).await?;
    anyhow::ensure!(
        deployed.is_active("tether.service").await?,
        "Tether is gone too"
    );
    Ok("gone".to_owned())
}

async fn independent(deployed: &Deployed) -> anyhow::Result<String> {
    deployed.sh("systemctl start tether.service").await?;
    let pid = deployed.run_pool("independent").await?;
    deployed
        .sh("systemctl kill --kill-whom=main --signal=KILL beam@independent.service")
        .await?;
    deployed
        .becomes("beam@independent.service", "failed")
        .await?;
    deployed.is_still(pid).await
}

async fn bound(deployed: &Deployed) -> anyhow::Result<String> {
    let file = "/etc/systemd/system/tether.service.d/application.conf";
    deployed
        .machine
        .write(file, "[Unit]\nBindsTo=beam@bound.service\n")
        .await?;
    deployed
        .sh("systemctl daemon-reload; systemctl start tether.service")
        .await?;
    let pid = deployed.run_pool("bound").await?;
    deployed
        .sh("systemctl kill --kill-whom=main --signal=KILL beam@bound.service")
        .await?;
    deployed.becomes("tether.service", "inactive").await?;
    deployed.gone(pid).await?;
    Ok("agent and worker gone".to_owned())
}

async fn stopped(deployed: &Deployed) -> anyhow::Result<String> {
    deployed.sh("systemctl start tether.service").await?;
    let pid = deployed.run_pool("independent").await?;
    let group = deployed
        .sh(&format!("grep ^0:: /proc/{pid}/cgroup"))
        .await?;
    anyhow::ensure!(
        group.contains("/tether.slice/tether-workers.slice/tether-"),
        "it is in {group}"
    );
    deployed
        .sh("systemctl stop tether.service tether.socket")
        .await?;
    let tasks = deployed.sh(IN_UNIT).await?;
    anyhow::ensure!(tasks.is_empty(), "left in the unit: {tasks}");
    anyhow::ensure!(deployed.runs(pid).await, "the worker is gone");
    deployed.follow("What outlives what").await?;
    deployed.gone(pid).await?;
    Ok("an empty unit, a worker that lives".to_owned())
}
