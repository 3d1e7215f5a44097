//! The Debian package, on a machine that has never seen Tether: each row goes on where the last one ended.

use std::{path::Path, process::Stdio};

use anyhow::Context as _;
use tether_tests::program;
use tokio::process::Command;

use super::{files, machine::Deployed, rows::Row};

/// The heading of the page below which are the commands that make it, and install it.
const HEADING: &str = "Or as a package";

/// Where the page has it.
const ITS_FOLDER: &str = "target/deb";

/// In the order they are played.
pub(super) const ALL: &[Row] = &[
    Row {
        name: "the package installs, and starts nothing",
        expected: "units, pages and a configuration; nothing active",
        play: |deployed| Box::pin(installs(deployed)),
    },
    Row {
        name: "what the package installed serves",
        expected: "an answer",
        play: |deployed| Box::pin(serves(deployed)),
    },
    Row {
        name: "an upgrade of the package restarts what ran, and no worker",
        expected: "the same process, and calls",
        play: |deployed| Box::pin(upgrades(deployed)),
    },
    Row {
        name: "a purge of the package leaves nothing",
        expected: "no file, no process, no user",
        play: |deployed| Box::pin(purges(deployed)),
    },
];

/// Makes it of the programs under test.
///
/// # Errors
/// Says what it lacks.
pub(super) async fn make(folder: &Path) -> anyhow::Result<()> {
    let tether = program("tether");
    let programs = tether.parent().unwrap_or(&tether);
    let (makes, _) = commands();
    let line = makes
        .replace(ITS_FOLDER, &folder.display().to_string())
        .replace("target/release", &programs.display().to_string());
    let made = Command::new("sh")
        .args(["-ec", &line])
        .current_dir(files::repository())
        // It is unpacked once, near by.
        .env("DEB_COMPRESSION", "none")
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("`{line}`"))?;
    let said = String::from_utf8_lossy(&made.stderr);
    anyhow::ensure!(made.status.success(), "{said}");
    Ok(())
}

/// What makes the package on the machine that builds, and what installs it on that which has it in /packages.
fn commands() -> (String, String) {
    let commands = files::commands(HEADING);
    let (makes, installs) = commands
        .split_once('\n')
        .expect("a command that makes it, and one that installs it");
    (makes.to_owned(), installs.replace(ITS_FOLDER, "/packages"))
}

async fn install(deployed: &Deployed) -> anyhow::Result<()> {
    let (_, installs) = commands();
    deployed.sh(&format!("exec 2>&1\n{installs}")).await?;
    Ok(())
}

async fn installs(deployed: &Deployed) -> anyhow::Result<String> {
    install(deployed).await?;
    let files = "ls /etc/tether/tether.toml /usr/share/man/man1/tether.1.gz /usr/share/man/man1/tether-pool-apply.1.gz \
                 /usr/share/man/man8/tether-gateway.8.gz /usr/share/man/man8/tether-arbiter.8.gz \
                 /usr/share/man/man8/tether-discovery.8.gz /usr/share/man/man8/tether-agent.8.gz \
                 /usr/share/bash-completion/completions/tether /run/tether -d && getent passwd tether";
    deployed.sh(files).await?;
    let active = "systemctl list-units --all --plain --no-legend --state=active 'tether*'";
    let active = deployed.sh(active).await?;
    anyhow::ensure!(active.is_empty(), "active: {active}");
    Ok("units, pages and a configuration; nothing active".to_owned())
}

async fn serves(deployed: &Deployed) -> anyhow::Result<String> {
    deployed
        .sh("systemctl enable --now tether.service 2>&1")
        .await?;
    // Its worker is a unit too, whose name begins as those of the services.
    deployed.run_pool("unit").await?;
    deployed.call().await?;
    let line =
        "systemctl show --value -p NoNewPrivileges -p CapabilityBoundingSet 'tether-w.*.service'";
    let bounds = deployed.sh(line).await?;
    let is_bound = bounds.contains("yes") && !bounds.contains("cap_sys_ptrace");
    anyhow::ensure!(is_bound, "its unit has `{bounds}`");
    Ok("an answer".to_owned())
}

async fn upgrades(deployed: &Deployed) -> anyhow::Result<String> {
    let worker = deployed.worker().await?;
    let before = deployed.main_process("tether.service").await?;
    deployed
        .sh("echo '# mine' >> /etc/tether/tether.toml")
        .await?;
    install(deployed).await?;
    let after = deployed.main_process("tether.service").await?;
    anyhow::ensure!(after != before, "it did not restart");
    deployed
        .sh("grep '# mine' /etc/tether/tether.toml")
        .await
        .context("the configuration was lost")?;
    deployed.is_still(worker).await
}

async fn purges(deployed: &Deployed) -> anyhow::Result<String> {
    deployed
        .sh("systemctl stop beam@unit.service; dpkg --remove tether 2>&1")
        .await?;
    deployed
        .sh("test -f /etc/tether/tether.toml")
        .await
        .context("the configuration went with the program")?;
    deployed.sh("dpkg --purge tether 2>&1").await?;
    let left = deployed.left().await?;
    anyhow::ensure!(left.is_empty(), "left: {left}");
    let files = "find /etc /usr /run /var -xdev -name '*tether*' -not -path '/usr/src/*' -not -path '/var/log/*'; getent passwd tether || true";
    let files = deployed.sh(files).await?;
    anyhow::ensure!(files.is_empty(), "left: {files}");
    Ok("no file, no process, no user".to_owned())
}
