//! The programs under test: our own binaries, and Python with what the example worker needs.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// One of our binaries, built beside the one that asks.
///
/// # Panics
/// When it was not built, with the command that builds it.
pub fn program(name: &str) -> PathBuf {
    let own = env::current_exe().expect("the system tells which program this is");
    let near = own.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    let found = near.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("`{name}` is not built: run `cargo build --workspace --bins`, or `cargo xtask test`")
    })
}

pub(crate) fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The Python that has what the example worker needs.
///
/// # Panics
/// When it was not made, with the command that makes it.
pub fn python() -> PathBuf {
    let path = repository().join("target/venv/digits/bin/python");
    assert!(
        path.exists(),
        "there is no Python environment: run `tools/python-env.sh`, or `cargo xtask test`"
    );
    std::path::absolute(path).expect("the current directory is there")
}

/// The directory of an example.
pub fn example(name: &str) -> PathBuf {
    repository()
        .join("examples")
        .join(name)
        .canonicalize()
        .expect("the example is there")
}

/// The `tether` command line, pointed at one gateway.
#[derive(Debug, Clone)]
pub struct Tether {
    gateway: String,
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit status.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Tether {
    /// A command line that talks to `gateway`.
    pub fn at(gateway: &str) -> Self {
        Self {
            gateway: gateway.to_owned(),
        }
    }

    /// A command, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("tether"));
        command
            .args(args)
            .env("TETHER_GATEWAY", &self.gateway)
            .env_remove("TETHER_CONFIG")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn run(&self, args: &[&str]) -> Ran {
        let output = self
            .command(args)
            .output()
            .await
            .expect("tether can be started");
        Ran {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that is to succeed, and reads its answer.
    ///
    /// # Panics
    /// When it fails, or does not answer in JSON.
    pub async fn json(&self, args: &[&str]) -> serde_json::Value {
        let ran = self.run(&[&["--output", "json"], args].concat()).await;
        assert_eq!(ran.code, Some(0), "tether {args:?}: {}", ran.err);
        serde_json::from_str(&ran.out)
            .unwrap_or_else(|error| panic!("tether {args:?}: {error}: {}", ran.out))
    }

    /// Runs a command that is to succeed, and reads the lines of its answer.
    ///
    /// # Panics
    /// When it fails, or does not answer in JSON.
    pub async fn json_lines(&self, args: &[&str]) -> Vec<serde_json::Value> {
        let ran = self.run(&[&["--output", "json"], args].concat()).await;
        assert_eq!(ran.code, Some(0), "tether {args:?}: {}", ran.err);
        ran.out
            .lines()
            .map(|line| serde_json::from_str(line).expect("each line is JSON"))
            .collect()
    }
}

/// Starts an owner, and waits until it says that its workers are ready. Returns it with what it says from then on.
///
/// # Errors
/// When it cannot be started, ends, or takes longer.
pub async fn until_ready(
    owner: &mut Command,
    patience: Duration,
) -> anyhow::Result<(Child, Lines<BufReader<ChildStdout>>)> {
    owner.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = owner.spawn().context("the owner cannot be started")?;
    let out = child.stdout.take().context("the owner says nothing")?;
    let mut lines = BufReader::new(out).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("\"ready\"") {
                return Ok(());
            }
        }
        anyhow::bail!("the owner ended before its workers were ready")
    };
    let ready = timeout(patience, ready).await;
    ready.context("the workers are not ready")??;
    Ok((child, lines))
}
