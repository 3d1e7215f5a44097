//! `tether-discovery` as a process, with what it logs and how much memory it takes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tempfile::TempDir;
use tether_etcd_cluster::{Cluster, Setup};
use tether_kit::channel;
use tether_proto::discovery::{
    WatchEndpointsRequest, discovery_service_client::DiscoveryServiceClient,
};
use tether_types::Address;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::{PATIENCE, support, told::Told};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tether-discovery");

/// The service on an etcd of its own; both end when this is dropped.
pub(crate) struct Service {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    client: DiscoveryServiceClient<Channel>,
    /// Where files are that sources read.
    pub(crate) folder: TempDir,
    /// Its store, and a source for whoever wants one.
    pub(crate) etcd: Cluster,
}

impl Service {
    /// Starts with what `discovery` says under `[discovery]`, for files in that folder and for that etcd.
    pub(crate) async fn start(discovery: impl FnOnce(&Path, &Cluster) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let etcd = Setup::members(1).start().await;
        let discovery = discovery(folder.path(), &etcd);
        let address = Address::Unix(folder.path().join("discovery.sock"));
        let config = folder.path().join("tether.toml");
        let text = format!(
            "store = {:?}\n[listen]\ndiscovery = [\"{address}\"]\n{discovery}",
            etcd.url("tether")
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new(PROGRAM)
            .arg("--config")
            .arg(config)
            .env_remove("TETHER_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let written = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                written.lock().unwrap().push(line);
            }
        });
        let service = Self {
            child,
            log,
            client: support::client(channel::connect(&address)),
            folder,
            etcd,
        };
        service.logs(&["Discovery serves"]).await;
        service
    }

    /// What is told of a pool from now on.
    pub(crate) async fn watch(&self, pool: &str) -> Told {
        let request = WatchEndpointsRequest {
            pool: pool.to_owned(),
            ..WatchEndpointsRequest::default()
        };
        let stream = self.client.clone().watch_endpoints(request).await.unwrap();
        Told::new(stream.into_inner())
    }

    /// Waits for a line of the log with all of these in it.
    pub(crate) async fn logs(&self, parts: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = self.log.lock().unwrap().clone();
            let has_all = |line: &&String| parts.iter().all(|part| line.contains(part));
            if let Some(line) = lines.iter().find(has_all) {
                return line.clone();
            }
            assert!(Instant::now() < deadline, "no {parts:?} in {lines:#?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many lines of the log have this in them.
    pub(crate) fn logged(&self, part: &str) -> usize {
        let log = self.log.lock().unwrap();
        log.iter().filter(|line| line.contains(part)).count()
    }

    /// The memory it takes now, in KiB.
    pub(crate) fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most memory it has ever taken, in KiB.
    pub(crate) fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse().unwrap()
    }

    /// Has the file `name` say this, all at once.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        write(self.folder.path(), name, text);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has a file say this, all at once.
pub(crate) fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) {
    fs::write(folder.join("next"), text).unwrap();
    fs::rename(folder.join("next"), folder.join(name)).unwrap();
}

/// What becomes of the program with a configuration that it is to refuse.
pub(crate) fn refused(config: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tether.toml");
    fs::write(&path, config).unwrap();
    Command::new(PROGRAM)
        .arg("--config")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}
