//! Services that hang, as systemd sees them: nothing is said to its watchdog any more.

use super::machine::Deployed;

/// So that nobody waits for long; there is no use for what is left of a process that was ended so.
const SOON: &str = "[Service]\nWatchdogSec=2s\nLimitCORE=0\n";

/// Has units of these names wait for their services' words for a short time only, once they are started.
pub(super) async fn hurry(deployed: &Deployed, units: &[&str]) -> anyhow::Result<()> {
    for unit in units {
        let file = format!("/etc/systemd/system/{unit}.d/watchdog.conf");
        deployed.machine.write(&file, SOON).await?;
    }
    deployed.sh("systemctl daemon-reload").await.map(drop)
}

/// Stops the main processes of all of these, and sees that systemd ends each by its watchdog and starts another.
pub(super) async fn hang(deployed: &Deployed, units: &[&str]) -> anyhow::Result<()> {
    let mut before = Vec::new();
    for unit in units {
        before.push(deployed.main_process(unit).await?);
    }
    let all = units.join(" ");
    let line = format!("systemctl kill --kill-whom=main --signal=STOP {all}");
    deployed.sh(&line).await?;
    for (unit, before) in units.iter().zip(before) {
        deployed.another(unit, before).await?;
        let journal = deployed.machine.journal(unit).await;
        anyhow::ensure!(
            journal.contains("result 'watchdog'"),
            "the journal says of {unit}\n{journal}"
        );
    }
    Ok(())
}
