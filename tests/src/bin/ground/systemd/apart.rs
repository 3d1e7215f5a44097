//! The four services, each as a unit of its own.

use anyhow::Context as _;

use super::{machine::Deployed, rows::Row, watchdog};

/// In the order they are played.
pub(super) const ALL: &[Row] = &[
    Row {
        name: "four units serve together, and a worker outlives each",
        expected: "the same process, and calls",
        play: |deployed| Box::pin(killed(deployed)),
    },
    Row {
        name: "each of the four that hangs is started again",
        expected: "watchdog, four times, then the same worker",
        play: |deployed| Box::pin(hung(deployed)),
    },
    Row {
        name: "the first caller starts each of the four",
        expected: "inactive, then active, and an answer",
        play: |deployed| Box::pin(activated(deployed)),
    },
];

/// Each needs those before it.
const SERVICES: [&str; 4] = [
    "tether-arbiter.service",
    "tether-discovery.service",
    "tether-gateway.service",
    "tether-agent.service",
];

/// Starts a store that several services can read, and names it to them.
async fn store(deployed: &Deployed) -> anyhow::Result<()> {
    let line = "systemctl start etcd.service; sed 's/^#store/store/' -i /etc/tether/tether.toml";
    deployed.sh(line).await.map(drop)
}

/// Starts them as the page says, with a worker, whose process it tells.
async fn start(deployed: &Deployed) -> anyhow::Result<u64> {
    store(deployed).await?;
    deployed.follow("Each service by itself").await?;
    let pid = deployed.run_pool("tcp").await?;
    deployed.call().await?;
    Ok(pid)
}

async fn killed(deployed: &Deployed) -> anyhow::Result<String> {
    let pid = start(deployed).await?;
    for unit in SERVICES {
        deployed.kill_main(unit).await?;
        deployed.sh(&format!("systemctl restart {unit}")).await?;
        deployed.is_still(pid).await.context(unit)?;
    }
    Ok(format!("the same process, {pid}, and calls"))
}

async fn hung(deployed: &Deployed) -> anyhow::Result<String> {
    watchdog::hurry(deployed, &SERVICES).await?;
    let pid = start(deployed).await?;
    watchdog::hang(deployed, &SERVICES).await?;
    deployed
        .is_still(pid)
        .await
        .map(|seen| format!("watchdog, four times, then {seen}"))
}

async fn activated(deployed: &Deployed) -> anyhow::Result<String> {
    store(deployed).await?;
    for unit in SERVICES {
        let program = unit.trim_end_matches(".service");
        deployed
            .sh(&format!("systemctl start {program}.socket"))
            .await?;
        let before = deployed.machine.show(unit, "ActiveState").await?;
        anyhow::ensure!(
            before == "inactive",
            "{unit} is {before} before anybody calls"
        );
        // A caller like any other, but that it does not wait for long: the first call is what starts the service.
        let asks = format!("{program} --config /etc/tether/tether.toml --health");
        deployed
            .until(&format!("{unit} answers"), async || {
                deployed.sh(&asks).await.ok()
            })
            .await?;
        anyhow::ensure!(deployed.is_active(unit).await?, "{unit} is not active");
        let status = deployed.machine.show(unit, "StatusText").await?;
        let expected = match unit {
            "tether-agent.service" => "Holds workers",
            _ => "Serves",
        };
        anyhow::ensure!(status == expected, "{unit} says `{status}`");
    }
    deployed.run_pool("tcp").await?;
    deployed.call().await?;
    Ok("inactive, then active, and an answer".to_owned())
}
