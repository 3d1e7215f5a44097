//! Owners: client processes that hold a session; inside the container, where there is one.

use std::{
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tether_tests::program;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

use crate::{
    lineage::Pinned,
    world::{START, World},
};

/// The program of an owner.
const CLIENT: &str = "demo-client";

/// An owner: a client process that holds a session.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) name: String,
    pub(crate) epoch: u64,
    pub(crate) pinned: Pinned,
    child: Child,
    _lines: Lines<BufReader<ChildStdout>>,
}

impl World {
    /// Starts a client that owns what is applied in its name. Services that were killed a moment ago may
    /// not answer the first one.
    pub(crate) async fn owner(&self, name: String) -> anyhow::Result<Owner> {
        let deadline = Instant::now() + START;
        loop {
            match self.try_owner(name.clone()).await {
                Ok(owner) => return Ok(owner),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn try_owner(&self, name: String) -> anyhow::Result<Owner> {
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.path("log"))?;
        // Where no agent could see it, it could own no coupled pools.
        let mut command = match &self.container {
            Some(container) => {
                let mut command = container.command()?;
                command.arg(program(CLIENT));
                command
            }
            None => {
                let mut command = Command::new(program(CLIENT));
                command.stdin(Stdio::null());
                command
            }
        };
        let mut child = command
            .arg("--gateway")
            .arg(format!("unix:{}", self.path("gateway.sock").display()))
            .args(["--owner", &name])
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("it is piped")?).lines();
        let line = timeout(START, lines.next_line()).await??;
        let said: serde_json::Value = serde_json::from_str(&line.context("the owner ended")?)?;
        ensure!(
            said["event"] == "session",
            "the owner has no session: {said}"
        );
        let pid = child.id().context("the owner runs")?;
        let pinned = match &self.container {
            Some(_) => Pinned::child(pid, CLIENT).context("the owner has ended")?,
            None => Pinned::new(pid)?,
        };
        Ok(Owner {
            name,
            epoch: said["epoch"].as_u64().context("a session has an epoch")?,
            pinned,
            child,
            _lines: lines,
        })
    }
}

impl Owner {
    /// Kills it, where it still lives.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        self.pinned.kill();
        self.child.wait().await?;
        Ok(())
    }
}
