//! `tether discover` beside a discovery that comes and goes: the real program and the real service, without a gateway
//! between them.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use tether_discovery::{Config, Discovery, PoolSource};
use tether_kit::{listen, serve};
use tether_store::MemoryStore;
use tether_types::Address;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Nothing here takes as long, on a busy machine either.
const DEADLINE: Duration = Duration::from_secs(60);

/// A child that does not outlive its test, and what it says.
struct Watching {
    child: Child,
    out: mpsc::Receiver<String>,
    err: mpsc::Receiver<String>,
}

impl Watching {
    fn start(at: &Address) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tether"))
            .args(["--gateway", &at.to_string(), "discover", "train", "--watch"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            out: lines(child.stdout.take().unwrap()),
            err: lines(child.stderr.take().unwrap()),
            child,
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (told, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(from).lines();
        lines
            .map_while(Result::ok)
            .try_for_each(|line| told.send(line))
    });
    lines
}

/// Waits for a line with this in it.
async fn until(lines: &mpsc::Receiver<String>, part: &str) {
    tokio::task::block_in_place(|| {
        let mut seen = Vec::new();
        while let Ok(line) = lines.recv_timeout(DEADLINE) {
            if line.contains(part) {
                return;
            }
            seen.push(line);
        }
        panic!("`{part}` is not said: {seen:?}");
    });
}

/// A discovery that knows one pool from its configuration.
async fn discovery(at: &Address, source: &str) -> (CancellationToken, JoinSet<()>) {
    let pool = PoolSource {
        source: source.to_owned(),
        ..PoolSource::default()
    };
    let config = Config {
        pools: BTreeMap::from([("train".to_owned(), pool)]),
        ..Config::default()
    };
    let discovery = Discovery::build(&config, Arc::new(MemoryStore::new())).unwrap();
    let stop = CancellationToken::new();
    let server = serve::Server::new(tether_proto::DESCRIPTORS).service(discovery.service());
    let served = server.serve(
        listen::bind(at, false).await.unwrap(),
        stop.clone(),
        Duration::from_secs(1),
    );
    let ran = discovery.run(stop.clone());
    let mut running = JoinSet::new();
    running.spawn(async { served.await.unwrap() });
    running.spawn(async { ran.await.unwrap() });
    (stop, running)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_when_discovery_is_back_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let at = Address::Unix(dir.path().join("discovery.sock"));
    let (stop, running) = discovery(&at, "static://10.0.0.1:1").await;
    let watching = Watching::start(&at);
    until(&watching.out, "10.0.0.1:1").await;

    stop.cancel();
    running.join_all().await;
    until(&watching.err, "discovery is away").await;

    let (_stop, _running) = discovery(&at, "static://10.0.0.2:1").await;
    until(&watching.err, "discovery is back, and tells all there is").await;
    until(&watching.out, "10.0.0.2:1").await;
}
