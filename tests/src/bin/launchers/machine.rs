//! A machine with systemd, and Tether in it.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tether_tests::{
    eventually_within,
    ground::{Ground, Nspawn, Refused},
};

/// The lease of its node.
pub(crate) const NODE_TTL: Duration = Duration::from_secs(8);

/// Longest time for anything to happen, on a loaded machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Where the workspace is in it: what is below `/tmp` there is its own.
const WORKSPACE: &str = "/opt/tether";

/// What tests' Python has, of the version that the machine's is.
const PACKAGES: &str = "target/venv/digits/lib/python3.11/site-packages";

/// A unit as an administrator writes it.
const SERVICE: &str = "
[Unit]
Description=Worker %i
[Service]
ExecStart=/usr/bin/python3 WORKSPACE/examples/digits/worker.py --listen unix:/run/worker-%i.sock
Environment=PYTHONPATH=PACKAGES
Restart=on-failure
RestartSec=200ms
TimeoutStopSec=2s
";

/// All of Tether as a unit that is killed whole, as an administrator would by default. What its end was is kept over boots.
const TETHER: &str = "
[Unit]
After=dbus.service
[Service]
Type=notify
ExecStart=WORKSPACE/target/debug/tether up --store redb:/var/lib/tether.redb --set lease.node_ttl=NODE_TTL --set lease.node_beat=2s
ExecStopPost=/bin/sh -c 'echo $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS >> /var/log/tether-ends'
Environment=TETHER_RUNTIME_DIR=/run/tether
[Install]
WantedBy=multi-user.target
";

#[derive(Debug)]
pub(crate) struct Machine {
    nspawn: Nspawn,
}

impl Machine {
    /// Boots one in which this was put beside Tether.
    pub(crate) async fn boot(put: impl FnOnce(&mut Ground)) -> Result<Self, Refused> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let workspace = workspace
            .canonicalize()
            .map_err(|error| Refused(error.to_string()))?;
        if !workspace.join(PACKAGES).is_dir() {
            return Err(Refused(format!(
                "no `{PACKAGES}`: tests' Python is not that of Debian 12"
            )));
        }
        let mut ground = Ground::new().await?;
        ground.bind(&workspace, WORKSPACE);
        let unit = filled(TETHER).replace("NODE_TTL", &format!("{NODE_TTL:?}"));
        ground.write("etc/systemd/system/tether.service", unit);
        put(&mut ground);
        Ok(Self {
            nspawn: ground.boot().await?,
        })
    }

    pub(crate) async fn sh(&self, line: &str) -> anyhow::Result<String> {
        self.nspawn.sh(line).await
    }

    pub(crate) async fn show(&self, unit: &str, property: &str) -> anyhow::Result<String> {
        self.nspawn.show(unit, property).await
    }

    /// What is seen in time.
    pub(crate) async fn until<T>(
        &self,
        what: &str,
        look: impl AsyncFnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        let seen = eventually_within(DEADLINE, look).await;
        if let Some((seen, _)) = seen {
            return Ok(seen);
        }
        let workers = self.tether(&["ps"]).await;
        let events = self.tether(&["events"]).await;
        let said = self.nspawn.journal("tether").await;
        let lines: Vec<_> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(12)..].join("\n");
        anyhow::bail!("not within {DEADLINE:?}: {what}; {workers:?}; {events:?}\n{last}")
    }

    /// Starts all of Tether.
    pub(crate) async fn start_tether(&self) -> anyhow::Result<()> {
        self.until("the one before is over", async || {
            let state = self.show("tether", "ActiveState").await.ok()?;
            matches!(state.as_str(), "inactive" | "failed").then_some(())
        })
        .await?;
        self.sh("systemctl start tether").await?;
        self.until("Tether answers", async || {
            self.tether(&["nodes"]).await.ok()
        })
        .await
        .map(drop)
    }

    /// Runs a command line of Tether in it.
    pub(crate) async fn tether(&self, args: &[&str]) -> anyhow::Result<String> {
        let program = format!("{WORKSPACE}/target/debug/tether");
        let env = ["env", "TETHER_RUNTIME_DIR=/run/tether", &program];
        let ran = self.nspawn.run(&[&env, args].concat()).await?;
        ensure!(ran.code == Some(0), "tether {args:?}: {}", ran.err);
        Ok(ran.out)
    }

    pub(crate) async fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let said = self.tether(&[&["--output", "json"], args].concat()).await?;
        Ok(serde_json::from_str(&said)?)
    }

    /// Makes the pool of this file.
    pub(crate) async fn apply(&self, name: &str, file: &str) -> anyhow::Result<()> {
        let path = format!("/etc/{name}.toml");
        self.nspawn.write(&path, filled(file)).await?;
        let args = ["pool", "apply", "--file", &path, "--owner", "checkout"];
        self.tether(&args).await.map(drop)
    }

    /// Has an owner in a service of its own run the pool of this file.
    pub(crate) async fn start_owner(&self, pool: &str, file: &str) -> anyhow::Result<()> {
        let path = format!("/etc/{pool}.toml");
        self.nspawn.write(&path, filled(file)).await?;
        let line = format!(
            "systemd-run --quiet --unit=owner-{pool} --setenv=TETHER_RUNTIME_DIR=/run/tether \
             {WORKSPACE}/target/debug/tether run --file {path} --owner owner-{pool}"
        );
        self.sh(&line).await.map(drop)
    }

    /// Boots it again, with what was written.
    pub(crate) async fn reboot(&mut self) -> anyhow::Result<()> {
        self.nspawn.reboot().await
    }

    /// Has its systemd hang, or go on.
    pub(crate) fn hang(&self, hangs: bool) -> anyhow::Result<()> {
        let signal = if hangs { Signal::STOP } else { Signal::CONT };
        self.nspawn.signal_first(signal)
    }

    /// What a file of it has.
    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.nspawn.path(path)).unwrap_or_default()
    }

    pub(crate) async fn write(&self, path: &str, content: &str) -> anyhow::Result<()> {
        self.nspawn.write(path, content).await
    }

    pub(crate) async fn power_off(self) -> anyhow::Result<()> {
        self.nspawn.power_off().await
    }

    /// A call through the gateway.
    pub(crate) async fn call(&self, pool: &str) -> anyhow::Result<()> {
        let data = format!("{{\"pixels\": {:?}}}", [0; 64]);
        let args = [
            "call",
            pool,
            "digits.v1.DigitsService/Predict",
            "--data",
            &data,
        ];
        let answer = self.tether(&args).await;
        let answer = answer.with_context(|| format!("pool {pool} answers no call"))?;
        ensure!(answer.contains("probability"), "it answers {answer}");
        Ok(())
    }

    pub(crate) async fn write_service(&self) -> anyhow::Result<()> {
        let path = "/etc/systemd/system/worker@.service";
        self.nspawn.write(path, filled(SERVICE)).await?;
        self.sh("systemctl daemon-reload").await.map(drop)
    }
}

/// Debian's Python with what the tests' own one has.
pub(crate) fn filled(text: &str) -> String {
    let packages = format!("{WORKSPACE}/{PACKAGES}");
    text.replace("WORKSPACE", WORKSPACE)
        .replace("PACKAGES", &packages)
}
