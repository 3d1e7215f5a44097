//! How much memory `tether-gateway` takes, as a process of its own, for clients that do not read.

use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::Duration,
};

use tether_kit::channel;
use tether_types::Address;
use tonic::Streaming;

use crate::{
    client::{Client, next, soon},
    discovery::{Discovery, worker},
    house::{DIGITS, UNARY},
    worker::Worker,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tether-gateway");
const STREAM: &str = "/test.Echo/ServerStream";

/// What one stream that nobody reads may take, and what of it a worker may send.
const STREAM_KIB: u64 = 1024;
const WINDOW_KIB: u64 = 960;

/// So many calls at the same worker without another message of a stream: none comes any more.
const IDLE_CALLS: u32 = 20;

struct Gateway {
    child: Child,
    worker: Worker,
    client: Client,
    /// With a connection of its own, whose window nobody uses up.
    other: Client,
    _discovery: Discovery,
    _folder: tempfile::TempDir,
}

impl Gateway {
    /// One that has served a call.
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("there is a place for files");
        let discovery = Discovery::start(folder.path());
        let worker_of_it = Worker::start().await;
        discovery.up(worker("digits", 0, 1), &worker_of_it.address, false);
        let address = Address::Unix(folder.path().join("gateway.sock"));
        let config = folder.path().join("tether.toml");
        let text = format!(
            "[listen]\ngateway = [\"{address}\"]\n[connect]\narbiter = [\"unix:/nonexistent\"]\ndiscovery = \"unix:{}\"\n",
            discovery.socket.display()
        );
        fs::write(&config, text).expect("the folder is writable");
        let child = Command::new(PROGRAM)
            .arg("--config")
            .arg(config)
            .env("TETHER_LOG", "error")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let gateway = Self {
            child,
            worker: worker_of_it,
            client: Client::over(channel::connect(&address)),
            other: Client::over(channel::connect(&address)),
            _discovery: discovery,
            _folder: folder,
        };
        let serves = async {
            while gateway.client.unary(UNARY, DIGITS, "").await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon("the gateway serves", serves).await;
        gateway
    }

    /// Opens so many streams of messages of this size, and waits until no more comes of them.
    async fn unread(&self, streams: u64, size: u64) -> Vec<Streaming<bytes::Bytes>> {
        let request = format!("{} {size}", (8 << 20) / size);
        let mut unread = Vec::new();
        for _ in 0..streams {
            let stream = self.client.server_stream(STREAM, DIGITS, request.clone());
            unread.push(stream.await.expect("the worker answers"));
        }
        let sent = || self.worker.seen.sent.load(Ordering::SeqCst);
        let most = streams * WINDOW_KIB * 1024 * 3 / 4;
        let settled = async {
            let (mut before, mut calls) = (0, 0);
            // Both have had their turns, however slow the machine is, and nothing more was sent.
            while before < most || calls < IDLE_CALLS {
                let call = self.other.unary(UNARY, DIGITS, "").await;
                call.expect("other calls are served");
                let now = sent();
                calls = if now == before { calls + 1 } else { 0 };
                before = now;
            }
        };
        soon("all windows are used up", settled).await;
        unread
    }

    /// The memory it takes, in KiB.
    fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse().ok())
            .expect("the kernel says")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nobody_reads_takes_a_mebibyte_however_small_its_messages() {
    for (streams, size) in [(64, 64 << 10), (8, 16)] {
        let gateway = Gateway::start().await;
        let before = gateway.memory();

        let mut unread = gateway.unread(streams, size).await;

        let more = gateway.memory() - before;
        // And what calls leave behind, however many there are.
        let most = streams * STREAM_KIB + 1024;
        assert!(more <= most, "{more} KiB for {streams} streams");
        let first = next(&mut unread[0]).await.expect("it goes on");
        assert_eq!(first.map(|message| message.len() as u64), Some(size));
    }
}
