//! `tether run` and what may go wrong beneath it: the real programs, in a directory of their own.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tether_gateway::{Config, Gateway};
use tether_types::Address;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing here takes as long, on a busy machine either.
const DEADLINE: Duration = Duration::from_secs(60);

/// A child that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A `tether up`.
struct Up {
    dir: TempDir,
    _up: Running,
}

impl Up {
    fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("tether-")
            .tempdir()
            .unwrap();
        let runtime = dir.path().join("run");
        let up = tether()
            .args(["up", "--store", "memory:", "--set", "agent.node=node-1"])
            // It is killed in the end, and a killed agent cannot remove its cgroup.
            .args(["--set", "agent.no_cgroups=true"])
            .args([
                "--set",
                &format!("listen.runtime_dir={}", runtime.display()),
            ])
            .args([
                "--set",
                &format!(
                    "listen.gateway=[\"unix:{}/gateway.sock\"]",
                    runtime.display()
                ),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self {
            dir,
            _up: Running(up),
        };
        let deadline = Instant::now() + DEADLINE;
        while !started
            .command("gateway")
            .arg("ps")
            .output()
            .unwrap()
            .status
            .success()
        {
            assert!(Instant::now() < deadline, "`tether up` does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        started
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("run/{name}.sock"))
    }

    /// The command line, at the gateway of this name.
    fn command(&self, gateway: &str) -> Command {
        let mut command = tether();
        command.args([
            "--gateway",
            &format!("unix:{}", self.socket(gateway).display()),
        ]);
        command
    }

    /// A second gateway beside that of `tether up`, which can be restarted alone.
    async fn gateway(&self, name: &str) -> (CancellationToken, JoinHandle<anyhow::Result<()>>) {
        let at = |name| Address::Unix(self.socket(name));
        let listener = tether_kit::listen::bind(&at(name), false).await.unwrap();
        let config = Config {
            drain: Duration::ZERO,
            ..Config::default()
        };
        let gateway = Gateway::build(config, vec![at("arbiter")], at("discovery"));
        let stop = CancellationToken::new();
        (
            stop.clone(),
            tokio::spawn(gateway.serve(vec![listener], stop)),
        )
    }
}

fn tether() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tether"));
    command.env_remove("TETHER_CONFIG").env_remove("TETHER_LOG");
    command
}

/// The lines of a stream as they come.
fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sent, received) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let _ = sent.send(line);
        }
    });
    received
}

/// Waits for a line with `part` in it; shows what came before it when there is none.
fn line_with(lines: &Receiver<String>, part: &str) -> String {
    let deadline = Instant::now() + DEADLINE;
    let mut before = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) if line.contains(part) => return line,
            Ok(line) => before.push_str(&format!("{line}\n")),
            Err(error) => panic!("no line with `{part}` ({error}):\n{before}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_gateway_that_restarts_ends_neither_the_run_nor_its_workers() {
    let up = Up::start();
    let (stop, ended) = up.gateway("other").await;
    let run = up
        .command("other")
        .args([
            "run", "--pool", "p", "--mode", "coupled", "--", "sleep", "1000",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut run = Running(run);
    let told = lines(run.0.stdout.take().unwrap());
    let noted = lines(run.0.stderr.take().unwrap());
    line_with(&told, "WORKER_STARTED");

    stop.cancel();
    ended.await.unwrap().unwrap();
    line_with(&noted, "the gateway is away");
    // What happens meanwhile is told afterwards.
    let died = up
        .command("gateway")
        .args(["stop", "p/0"])
        .status()
        .unwrap();
    assert!(died.success());
    let _again = up.gateway("other").await;

    line_with(&noted, "the gateway is back");
    line_with(&told, "WORKER_DIED");
    line_with(&told, "WORKER_STARTED");
    assert!(run.0.try_wait().unwrap().is_none(), "the run goes on");
    let pid = run.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    line_with(&told, "ended; workers");
    assert!(run.0.wait().unwrap().success());
}

#[tokio::test]
async fn a_worker_that_is_given_up_says_why_and_leaves_its_last_words() {
    let up = Up::start();

    let ended = up
        .command("gateway")
        .args([
            "run",
            "--pool",
            "p",
            "--",
            "sh",
            "-c",
            "echo no model found >&2; exit 3",
        ])
        .output()
        .unwrap();

    let error = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{error}");
    for part in [
        "worker `p/0` was given up",
        "EXITED with code 3",
        "\n  | no model found\n",
    ] {
        assert!(error.contains(part), "{part} is missing in\n{error}");
    }
    // Nothing that went wrong while cleaning up is told instead.
    assert!(error.starts_with("tether: worker `p/0`"), "{error}");
}

/// What `tether config check` or `tether up` says of a file that is to be refused.
fn refusal(file: &Path, command: &[&str]) -> String {
    let ended = tether()
        .args(command)
        .arg("--config")
        .arg(file)
        .output()
        .unwrap();
    let error = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(78), "{error}");
    error
}

#[test]
fn a_configuration_that_cannot_be_used_is_refused_at_its_line_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tether.toml");
    let runtime = dir.path().join("run");
    for (text, key) in [
        ("[listen]\ngateway = ['7437']", "`listen.gateway`"),
        ("[listen]\nagent = ['0.0.0.0:1']", "`listen.agent`"),
        ("[connect]\narbiter = 'nowhere'", "`connect.arbiter`"),
        ("\nstore = 'sqlite:/x'", "`store`"),
        ("[lease]\nnode_beat = '15s'", "lease.node_ttl"),
        ("[lease]\nsession_ttl = '1ms'", "`lease.session_ttl`"),
        ("[lease]\nha = 'elected'", "lease.ha"),
        ("[lease]\nleader_renew = '4s'", "lease.leader_ttl"),
        ("[agent]\nnode = 'a b'", "`agent.node`"),
        (
            "[gateway]\nconnect_timeout = '0s'",
            "`gateway.connect_timeout`",
        ),
        (
            "[discovery.pools.p]\nsource = 'x://y'",
            "`discovery.pools.p.source`",
        ),
        ("[template.a]\nargs = ['x']", "`template.a.command`"),
    ] {
        std::fs::write(&file, text).unwrap();
        let here = format!("runtime_dir = '{}'", runtime.display());
        let whole = match text.contains("[listen]") {
            true => format!("{text}\n{here}\n"),
            false => format!("{text}\n[listen]\n{here}\n"),
        };
        std::fs::write(&file, whole).unwrap();
        let at = format!("{}:2:1", file.display());
        for command in [&["config", "check"] as &[_], &["up"]] {
            let error = refusal(&file, command);
            assert!(
                error.contains(key) && error.contains(&at),
                "{text}:\n{error}"
            );
        }
        assert!(!runtime.exists(), "{text}");
    }
}
