//! A real etcd on free loopback ports, in a directory of its own, gone when dropped.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tether_store::open;

/// One etcd member.
pub(crate) struct Etcd {
    child: Child,
    directory: TempDir,
    client_port: u16,
    peer_port: u16,
}

impl Etcd {
    /// Starts etcd and waits until it answers.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (client_port, peer_port) = (free_port(), free_port());
        let child = spawn(&directory, client_port, peer_port);
        let etcd = Self {
            child,
            directory,
            client_port,
            peer_port,
        };
        etcd.answers().await;
        etcd
    }

    /// The URL of a store under `prefix`.
    pub(crate) fn url(&self, prefix: &str) -> String {
        format!("etcd://127.0.0.1:{}/{prefix}/", self.client_port)
    }

    /// Kills it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same ports and data.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(&self.directory, self.client_port, self.peer_port);
        self.answers().await;
    }

    async fn answers(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let store = open(&self.url("probe")).await.unwrap();
        while let Err(error) = store.list("").await {
            assert!(Instant::now() < deadline, "etcd does not answer: {error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port()
}

fn spawn(directory: &TempDir, client_port: u16, peer_port: u16) -> Child {
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.path())
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--log-level", "error", "--logger", "zap"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test needs etcd; install it with `apt-get install -y etcd-server`")
}
