//! Real BEAMs that run an application with the Elixir client (`app/`), each with a directory of its own, by which
//! all that it and its workers start is known.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use tether_tests::{DEADLINE, eventually_within, kill, mentioning, program, python};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::application::{self, HERE};

const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/python");

/// For how long what is left is waited for at the end.
const LEAVE: Duration = Duration::from_secs(5);

/// So often within its timeout a BEAM's session is renewed.
pub(crate) const BEATS: u32 = 6;

/// The application, compiled once.
#[derive(Debug)]
pub(crate) struct Lab {
    scratch: tempfile::TempDir,
    homes: std::cell::Cell<u32>,
}

/// How a BEAM's Tether and pool are to be.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// Its directory, by which all that it and its workers start is known; that of the BEAM before it, where it comes
    /// for its workers.
    pub(crate) home: PathBuf,
    /// Its gateway; without one its port runs everything itself.
    pub(crate) gateway: Option<String>,
    pub(crate) mode: &'static str,
    pub(crate) timeout: Duration,
    pub(crate) owner: String,
    pub(crate) pool: String,
    pub(crate) size: u32,
}

/// One BEAM, and what it has said.
#[derive(Debug)]
pub(crate) struct Beam {
    pub(crate) dir: PathBuf,
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// With whether somebody waited for it already.
    said: Vec<(String, bool)>,
}

impl Lab {
    /// Compiles it.
    pub(crate) async fn build() -> anyhow::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("tether-beams-").tempdir()?;
        application::compile(&scratch.path().join("build")).await?;
        Ok(Self {
            scratch,
            homes: std::cell::Cell::new(0),
        })
    }

    /// A directory that no other BEAM has.
    pub(crate) fn home(&self) -> anyhow::Result<PathBuf> {
        let number = self.homes.replace(self.homes.get() + 1);
        let home = self.scratch.path().join(number.to_string());
        std::fs::create_dir(&home)?;
        Ok(home)
    }

    /// Starts a BEAM, and does not wait for it.
    pub(crate) fn start(&self, setting: &Setting) -> anyhow::Result<Beam> {
        let dir = setting.home.clone();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"))?;
        let mut beam = Command::new("elixir");
        beam.args(application::arguments(&self.scratch.path().join("build")))
            .env("LAB_OWNER", &setting.owner)
            .env("LAB_MODE", setting.mode)
            .env("LAB_TIMEOUT", setting.timeout.as_millis().to_string())
            .env(
                "LAB_INTERVAL",
                (setting.timeout / BEATS).as_millis().to_string(),
            )
            .env("LAB_POOL", &setting.pool)
            .env("LAB_SIZE", setting.size.to_string())
            .env("LAB_PYTHON", python())
            .env("LAB_WORKER", Path::new(HERE).join("worker.py"))
            .env("LAB_SDK", std::path::absolute(SDK)?)
            // By its end, so that no directory's name begins with another's.
            .env("LAB_MARK", dir.join("mark"))
            .env("TMPDIR", &dir)
            .env("TETHER_PORT_PROGRAM", program("tether"))
            // Its schedulers do not spin where others are to run.
            .env("ELIXIR_ERL_OPTIONS", "+sbwt none")
            .env("ERL_CRASH_DUMP_BYTES", "0")
            .env_remove("TETHER_CONFIG");
        if let Some(gateway) = &setting.gateway {
            beam.env("LAB_GATEWAY", gateway);
        }
        let mut child = beam
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("there is no `elixir`")?;
        let input = child.stdin.take().context("its input is piped")?;
        let output = child.stdout.take().context("its output is piped")?;
        Ok(Beam {
            dir,
            child,
            input,
            lines: BufReader::new(output).lines(),
            said: Vec::new(),
        })
    }

    /// Starts one, and waits until its workers are ready.
    pub(crate) async fn ready(&self, setting: &Setting) -> anyhow::Result<Beam> {
        let mut beam = self.start(setting)?;
        beam.until_ready().await?;
        Ok(beam)
    }
}

impl Beam {
    /// Waits until its workers are ready.
    pub(crate) async fn until_ready(&mut self) -> anyhow::Result<()> {
        let up = self.until("up ").await?;
        ensure!(
            up == format!("up {}", self.pid()),
            "{up}: another process is the BEAM"
        );
        self.until("ready").await.map(drop)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Tells it what to do.
    pub(crate) async fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let line = format!("{line}\n");
        let said = self.input.write_all(line.as_bytes()).await;
        said.context("the BEAM does not listen")
    }

    /// Tells it what to do, and waits for a line that begins so.
    pub(crate) async fn ask(&mut self, line: &str, answer: &str) -> anyhow::Result<String> {
        self.say(line).await?;
        self.until(answer).await
    }

    /// Waits for a line that begins so, and nobody has waited for yet.
    pub(crate) async fn until(&mut self, begin: &str) -> anyhow::Result<String> {
        let new = |(line, taken): &&mut (String, bool)| !*taken && line.starts_with(begin);
        if let Some((line, taken)) = self.said.iter_mut().find(new) {
            *taken = true;
            return Ok(line.clone());
        }
        let found = timeout(DEADLINE, async {
            while let Some(line) = self.lines.next_line().await? {
                let found = line.starts_with(begin);
                self.said.push((line.clone(), found));
                if found {
                    return Ok(line);
                }
            }
            bail!("the BEAM ended")
        });
        let found = found.await;
        let found = found.unwrap_or_else(|_| Err(anyhow::anyhow!("nothing for {DEADLINE:?}")));
        found.with_context(|| {
            let said: Vec<_> = self.said.iter().map(|(line, _)| line.as_str()).collect();
            let log = self.log();
            format!(
                "`{begin}` was not said, but:\n{}\nand in the log:\n{}",
                last(&said),
                last(&log.lines().collect::<Vec<_>>())
            )
        })
    }

    /// Waits until its port's program has logged this.
    pub(crate) async fn until_logged(&self, what: &str) -> anyhow::Result<()> {
        let logged = eventually_within(DEADLINE, async || self.log().contains(what).then_some(()));
        let logged = logged.await;
        logged.with_context(|| format!("`{what}` was not logged, but:\n{}", self.log()))?;
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Where its port's own services are, if it has such.
    pub(crate) fn runtime(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(&self.dir).ok()?.flatten();
        let mut paths = entries.map(|entry| entry.path());
        paths.find(|path| path.join("workers").is_dir())
    }

    /// Process ids of its workers.
    pub(crate) async fn workers(&mut self) -> anyhow::Result<Vec<u32>> {
        let line = self.ask("workers", "workers").await?;
        let pids = line.split(' ').skip(1).map(str::parse);
        Ok(pids.collect::<Result<_, _>>()?)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Kills it, and sees it dead.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL);
        self.child.wait().await?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What is left of killed BEAMs ends by itself, and may still use its directory.
        let start = Instant::now();
        while !mentioning(self.scratch.path()).is_empty() && start.elapsed() < LEAVE {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The last of many lines.
fn last(lines: &[&str]) -> String {
    lines[lines.len().saturating_sub(20)..].join("\n")
}
