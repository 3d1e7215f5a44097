//! A worker and a client on grpcio, each in a Python process that ends with the test.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{case::Case, patiently, record::Record};
use crate::client::soon;

/// The environment that `tools/python-env.sh` makes.
const PYTHON: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../target/venv/digits/bin/python"
);

/// A script of ours with what it reads and prints. It ends when its input does.
pub(super) struct Python {
    into: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    child: Child,
}

impl Python {
    fn start(script: &str, arguments: &[&str]) -> Self {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gateway/conformance/");
        let mut child = Command::new(PYTHON)
            .arg(format!("{directory}{script}"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("there is a Python environment: run `tools/python-env.sh`");
        let out = child.stdout.take().expect("it is piped");
        Self {
            into: child.stdin.take().expect("it is piped"),
            lines: BufReader::new(out).lines(),
            child,
        }
    }

    /// Ends it, and waits until it has: gigabytes take their time.
    async fn end(mut self) {
        soon("its end", self.child.kill())
            .await
            .expect("it is ours");
    }

    async fn line(&mut self) -> String {
        let line = patiently("a line of Python's", self.lines.next_line()).await;
        line.expect("it prints text")
            .expect("it has ended; what it said is above")
    }
}

/// A worker on grpcio.
pub(super) struct Worker {
    pub(super) address: String,
    python: Python,
}

impl Worker {
    pub(super) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// One that speaks TLS, and lets in who has a certificate.
    pub(super) async fn secure(certificates: &str) -> Self {
        Self::start_with(&[certificates]).await
    }

    async fn start_with(arguments: &[&str]) -> Self {
        let mut python = Python::start("worker.py", arguments);
        let address = format!("127.0.0.1:{}", python.line().await);
        Self { address, python }
    }

    pub(super) async fn end(self) {
        self.python.end().await;
    }
}

/// A client on grpcio with one channel.
pub(super) struct Client(Python);

impl Client {
    pub(super) fn connect(address: &str, way: &str, certificates: Option<&str>) -> Self {
        let mut arguments = vec![address, way];
        arguments.extend(certificates);
        Self(Python::start("client.py", &arguments))
    }

    pub(super) async fn end(self) {
        self.0.end().await;
    }

    pub(super) async fn play(&mut self, case: &Case) -> Record {
        let mut line = serde_json::to_string(case).expect("a case can be written");
        line.push('\n');
        let sent = self.0.into.write_all(line.as_bytes()).await;
        sent.expect("it reads");
        let record = self.0.line().await;
        serde_json::from_str(&record).expect("it prints a record")
    }
}
