//! A real gRPC client in Python that finds real workers by `dns:///`, out of discovery's table.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{collections::BTreeSet, fs, net::TcpListener, process::Stdio};

use rustix::process::Signal;
use tether_tests::{Cluster, DEADLINE, Setup, eventually, kill, python};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    net::UdpSocket,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// Says its slot to whoever asks. grpcio cannot serve on the socket that is held for it, so bytes are carried there.
const WORKER: &str = r#"
import os, pathlib, socket, sys, tempfile, threading
from concurrent import futures
import grpc

def who(request, context):
    return os.environ["TETHER_SLOT"].encode()

method = grpc.unary_unary_rpc_method_handler(who)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Who", {"Am": method}),))
inside = os.path.join(tempfile.mkdtemp(), "who.sock")
server.add_insecure_port("unix:" + inside)
server.start()

def carry(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for end in source, sink:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

listener = socket.socket(fileno=3)
while True:
    outer, _ = listener.accept()
    inner = socket.socket(socket.AF_UNIX)
    inner.connect(inside)
    for ends in (outer, inner), (inner, outer):
        threading.Thread(target=carry, args=ends, daemon=True).start()
"#;

/// Calls without end, and prints who answered. gRPC resolves again when a connection is lost, and by itself not more
/// often than every 30 s.
const CLIENT: &str = r#"
import sys, time
import grpc

options = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.dns_min_time_between_resolutions_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
]
with grpc.insecure_channel(sys.argv[1], options=options) as channel:
    who = channel.unary_unary("/test.Who/Am")
    while True:
        try:
            print(who(b"", timeout=10, wait_for_ready=True).decode(), flush=True)
        except grpc.RpcError as error:
            print(error.code(), error.details(), file=sys.stderr, flush=True)
        time.sleep(0.01)
"#;

/// A client at work; ended when it is dropped.
struct Calls {
    _client: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Calls {
    fn start(cluster: &Cluster, target: &str) -> Self {
        let script = cluster.dir().join("client.py");
        fs::write(&script, CLIENT).unwrap();
        let mut client = Command::new(python())
            .arg(script)
            .arg(target)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap()).lines();
        Self {
            _client: client,
            lines,
        }
    }

    /// Waits until the last twenty calls were answered as is wanted.
    async fn are_answered(&mut self, what: &str, wanted: impl Fn(&BTreeSet<&str>) -> bool) {
        let mut last: Vec<String> = Vec::new();
        let waiting = async {
            loop {
                let line = self.lines.next_line().await.unwrap();
                last.push(line.expect("the client goes on"));
                let recent = &last[last.len().saturating_sub(20)..];
                if recent.len() == 20 && wanted(&recent.iter().map(String::as_str).collect()) {
                    return;
                }
            }
        };
        let waited = timeout(DEADLINE, waiting).await;
        waited.unwrap_or_else(|_| {
            let recent = &last[last.len().saturating_sub(40)..];
            panic!("calls are never answered {what}, but by {recent:?}")
        });
    }
}

/// Waits until DNS names so many addresses for the pool.
async fn named(dns: &str, count: u8) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // One question for its A records, with nothing else to it.
    let question = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x03who\x07default\x06tether\0\0\x01\0\x01";
    eventually("DNS names the workers", async || {
        socket.send_to(question, dns).await.unwrap();
        let mut answer = [0; 512];
        let received = timeout(DEADLINE, socket.recv(&mut answer)).await;
        received.unwrap().unwrap();
        (answer[6..8] == [0, count]).then_some(())
    })
    .await;
}

/// A pool of so many, each at an address of its own and the same port.
async fn apply(cluster: &Cluster, size: u32, port: u16) {
    let worker = cluster.dir().join("worker.py");
    fs::write(&worker, WORKER).unwrap();
    let text = format!(
        "[template.who]\ncommand = {:?}\nargs = [{:?}]\n\
         [template.who.readiness]\nkind = \"started\"\n\
         [template.who.restart]\ndelay = \"100ms\"\n\
         [template.who.sockets.grpc]\nlisten = \"127.0.1.1{{slot}}:{port}\"\n\
         [pool.who]\ntemplate = \"who\"\nmode = \"independent\"\nsize = {size}\n",
        python().display().to_string(),
        worker.display().to_string(),
    );
    let file = cluster.dir().join("who.toml");
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let applied = cluster
        .tether()
        .run(&["pool", "apply", "--owner", "ops", "--file", &file])
        .await;
    assert_eq!(applied.code, Some(0), "{applied:?}");
}

#[tokio::test]
async fn a_grpc_client_finds_workers_by_dns_and_follows_a_change() {
    // Of an address that nobody else uses; both are given back before they are taken.
    let free = |ip: &str| {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let (port, dns) = (free("127.0.1.10"), free("127.0.1.1"));
    let at = format!("127.0.1.1:{dns}");
    let cluster = Setup::default()
        .set("discovery.dns.listen", &at)
        .start()
        .await;
    apply(&cluster, 2, port).await;
    named(&at, 2).await;
    let target = format!("dns://{at}/who.default.tether:{port}");
    let mut calls = Calls::start(&cluster, &target);
    let both = BTreeSet::from(["0", "1"]);
    calls.are_answered("by both", |slots| *slots == both).await;

    apply(&cluster, 3, port).await;
    named(&at, 3).await;
    // A client looks again when it loses a connection. Whether it finds the one that is lost among the others is up
    // to who is faster.
    let first = cluster.workers("who").await.remove(0);
    kill(first.pid, Signal::KILL);
    let others = BTreeSet::from(["1", "2"]);
    calls
        .are_answered("by the others", |slots| slots.is_superset(&others))
        .await;
    named(&at, 3).await;

    apply(&cluster, 1, port).await;
    let one = BTreeSet::from(["0"]);
    calls
        .are_answered("by the one that is left", |slots| *slots == one)
        .await;
}
