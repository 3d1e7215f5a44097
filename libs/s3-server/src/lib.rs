//! A real server of S3 for tests: moto, in an environment of its own, which checks signatures as botocore makes them and
//! holds the parts of an upload to their least size.
//!
//! ```no_run
//! # async fn example() {
//! let Some(mut s3) = tether_s3_server::Server::start().await else {
//!     return;
//! };
//! println!("{}", s3.endpoint());
//! assert_eq!(s3.seen().await.unfinished, 0);
//! # }
//! ```
//!
//! Everything here panics when it cannot do what it is for: it is for tests alone.

use std::{path::Path, process::Stdio, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// The only bucket that there is.
pub const BUCKET: &str = "models";

/// Where it is.
pub const REGION: &str = "eu-west-1";

/// Of a start or an answer, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with an empty bucket. It ends with this.
#[derive(Debug)]
pub struct Server {
    /// The key of the one who may use the bucket.
    pub key: String,
    /// What that one signs with.
    pub secret: String,
    port: u16,
    wishes: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _child: Child,
    _log: TempDir,
}

/// What a server has seen.
#[derive(Debug, Deserialize)]
pub struct Seen {
    /// Each request, as in `PUT /models/tether/train?partNumber=1`.
    pub asked: Vec<String>,
    /// The name of each object that there is.
    pub objects: Vec<String>,
    /// Uploads in parts that were neither finished nor ended.
    pub unfinished: usize,
}

#[derive(Deserialize)]
struct Started {
    port: u16,
    key: String,
    secret: String,
}

impl Server {
    /// Starts one. Where it was not installed there is none, and it is said why: `cargo xtask test` counts that as
    /// skipped.
    ///
    /// # Panics
    /// When one that was installed does not start.
    #[expect(
        clippy::print_stderr,
        reason = "a test that is left out has no other way to say so"
    )]
    pub async fn start() -> Option<Self> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        let installed = own.join("../../target/venv/s3");
        // What is written last of all.
        if !installed.join(".requirements.sha256").exists() {
            eprintln!(
                "SKIPPED: nothing was tested with S3, whose server is not installed: run `tools/python-env.sh s3`, it says why it cannot be"
            );
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory can be made");
        let log = dir.path().join("log");
        let mut child = Command::new(installed.join("bin/python"))
            .arg(own.join("server.py"))
            .args([BUCKET, REGION])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).expect("the directory can be written"))
            .kill_on_drop(true)
            .spawn()
            .expect("the environment has a Python");
        let wishes = child.stdin.take().expect("it is a pipe");
        let answers = child.stdout.take().expect("it is a pipe");
        let mut answers = BufReader::new(answers).lines();
        let started: Option<Started> = next(&mut answers).await;
        let Started { port, key, secret } = started
            .unwrap_or_else(|| panic!("it did not start: {:?}", std::fs::read_to_string(&log)));
        Some(Self {
            key,
            secret,
            port,
            wishes,
            answers,
            _child: child,
            _log: dir,
        })
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it has seen until now.
    ///
    /// # Panics
    /// When it has ended.
    pub async fn seen(&mut self) -> Seen {
        self.ask("seen").await
    }

    /// Has it tell the next so many requests to slow down.
    ///
    /// # Panics
    /// When it has ended.
    pub async fn be_busy(&mut self, many: usize) {
        let _: serde_json::Value = self.ask(&format!("busy {many}")).await;
    }

    async fn ask<T: DeserializeOwned>(&mut self, wish: &str) -> T {
        let line = format!("{wish}\n");
        let written = self.wishes.write_all(line.as_bytes()).await;
        written.expect("it runs");
        next(&mut self.answers).await.expect("it runs")
    }
}

/// What it says next; nothing where it has ended.
async fn next<T: DeserializeOwned>(answers: &mut Lines<BufReader<ChildStdout>>) -> Option<T> {
    let line = timeout(PATIENCE, answers.next_line()).await;
    let line = line.expect("it answers in time").ok()??;
    Some(serde_json::from_str(&line).expect("it speaks JSON"))
}
