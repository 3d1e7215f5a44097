//! An etcd of one member, with nothing in it.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use etcd_client::Client;
use tokio::time::sleep;

use crate::{ground::Ground, net::free_port, resident_bytes};

/// A running etcd, which ends with this.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    url: String,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Etcd {
    /// Starts one with nothing in it.
    ///
    /// # Errors
    /// Where it cannot be started, or does not answer.
    pub async fn start(ground: &Ground, program: &Path) -> anyhow::Result<Self> {
        let dir = ground.fresh("etcd")?;
        let (client, peer) = (free_port()?, free_port()?);
        let (url, peers) = (
            format!("http://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let mut command = Command::new(program);
        command
            .args(["--name", "bench", "--log-level", "error"])
            .arg("--data-dir")
            .arg(&dir)
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("bench={peers}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let etcd = Self {
            child: ground.start(&mut command).context("cannot start etcd")?,
            url,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = async { Client::connect([&etcd.url], None).await?.status().await };
            match answer.await {
                Ok(_) => return Ok(etcd),
                Err(error) => anyhow::ensure!(Instant::now() < deadline, "no answer: {error}"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Where it is, for a client.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// As the URL of a store.
    pub fn store(&self) -> String {
        self.url.replace("http://", "etcd://")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has in memory, in bytes.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn resident(&self) -> anyhow::Result<u64> {
        Ok(resident_bytes(self.child.id())?)
    }
}
