//! A real `tether up` in a directory of its own, and owners: processes that hold sessions.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tether_client::Client;
use tether_proto::worker::{ListWorkersRequest, Worker};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{Instant, timeout},
};

use crate::{
    Bucket, DEADLINE, Traces, eventually, example, kill,
    programs::{Tether, program, python},
    tidy,
};

/// A cluster in the making.
#[derive(Debug, Default)]
pub struct Setup {
    sets: Vec<String>,
    store: Option<String>,
    bucket: Option<Bucket>,
}

/// One `tether up` and what belongs to it. Dropping it ends all of that, and fails nothing: whether
/// anything is left is for the test to ask before.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    sets: Vec<String>,
    store: Option<String>,
    bucket: Option<Bucket>,
    up: Option<Child>,
    /// From start to serving.
    pub start_time: Duration,
}

impl Setup {
    /// Sets one key of the configuration.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.sets.push(format!("{key}={value}"));
        self
    }

    /// Keeps its state there, rather than in a file of its own.
    #[must_use]
    pub fn store(mut self, url: &str) -> Self {
        self.store = Some(url.to_owned());
        self
    }

    /// Its nodes keep checkpoints in that bucket, rather than in a directory.
    #[must_use]
    pub fn bucket(mut self, bucket: Bucket) -> Self {
        self.bucket = Some(bucket);
        self
    }

    /// Starts it, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(self) -> Cluster {
        let dir = tempfile::Builder::new()
            .prefix("tether-")
            .tempdir()
            .expect("a directory can be made");
        let mut cluster = Cluster {
            dir,
            sets: self.sets,
            store: self.store,
            bucket: self.bucket,
            up: None,
            start_time: Duration::ZERO,
        };
        cluster.up().await;
        cluster
    }
}

impl Cluster {
    /// A cluster on the defaults.
    pub async fn start() -> Self {
        Setup::default().start().await
    }

    /// Starts `tether up` on this cluster's directory, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub async fn up(&mut self) {
        let start = Instant::now();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_file());
        let file = || format!("redb:{}", self.path("state.redb").display());
        let store = self.store.clone().unwrap_or_else(file);
        let mut command = Command::new(program("tether"));
        command
            .args(["up", "--store", &store])
            .args(["--set", &format!("listen.gateway=[\"{}\"]", self.gateway())])
            .args([
                "--set",
                &format!("listen.runtime_dir={}", self.runtime().display()),
            ])
            .args(["--set", "agent.node=node-1"])
            .args(self.sets.iter().flat_map(|set| ["--set", set]))
            .env_remove("TETHER_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the log can be written"))
            .kill_on_drop(true);
        self.keep_checkpoints(&mut command);
        self.up = Some(command.spawn().expect("tether can be started"));
        let client = self.client();
        eventually("`tether up` serves and its node has joined", async || {
            if let Some(ended) = self.up.as_mut().and_then(|up| up.try_wait().ok().flatten()) {
                panic!("`tether up` ended with {ended}:\n{}", self.log());
            }
            self.has_node(&client).await.then_some(())
        })
        .await;
        self.start_time = start.elapsed();
    }

    /// A node has joined once an event says so that is younger than this `tether up`.
    async fn has_node(&self, client: &Client) -> bool {
        let events = client
            .workers()
            .watch_events(tether_proto::worker::WatchEventsRequest::default())
            .await;
        events.is_ok()
            && self.log().matches("Node joined").count()
                >= self.log().matches("Tether is up").count().max(1)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log_file(&self) -> PathBuf {
        self.path("up.log")
    }

    /// What `tether up` logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A directory for files of the test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The runtime directory.
    pub fn runtime(&self) -> PathBuf {
        self.path("run")
    }

    /// Has an agent keep checkpoints where all nodes of this cluster do.
    pub(crate) fn keep_checkpoints(&self, agent: &mut Command) {
        match &self.bucket {
            Some(bucket) => bucket.give(agent),
            None => {
                let store = format!("file://{}", self.path("checkpoints").display());
                agent.args(["--set", &format!("agent.checkpoints.store={store}")]);
            }
        }
        agent.args(["--set", "agent.checkpoints.sweep_seconds=1"]);
    }

    /// The gateway's address.
    pub fn gateway(&self) -> String {
        format!("unix:{}", self.path("run/gateway.sock").display())
    }

    /// A client of its gateway.
    pub fn client(&self) -> Client {
        Client::connect(&self.gateway().parse().expect("the address is one"))
    }

    /// The command line, pointed at its gateway.
    pub fn tether(&self) -> Tether {
        Tether::at(&self.gateway())
    }

    /// What its workers left in the process table.
    pub fn traces(&self) -> Traces {
        Traces::of(&self.runtime())
    }

    /// Process id of `tether up`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.up
            .as_ref()
            .and_then(Child::id)
            .expect("`tether up` runs")
    }

    /// Kills `tether up` and sees it dead.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill(&mut self) {
        kill(self.pid(), Signal::KILL);
        self.gone().await;
    }

    /// Waits until `tether up` has ended, by whatever cause; tells its exit status.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn gone(&mut self) -> Option<i32> {
        let up = self.up.as_mut().expect("`tether up` was started");
        let ended = timeout(DEADLINE, up.wait())
            .await
            .expect("`tether up` ends")
            .expect("it can be waited for");
        self.up = None;
        ended.code()
    }

    /// Asks `tether up` to stop, and waits until it has; tells its exit status.
    pub async fn stop(&mut self) -> Option<i32> {
        kill(self.pid(), Signal::TERM);
        self.gone().await
    }

    /// Writes a pool file for the digits worker; `script` is `worker.py` or `unruly.py` with its flags,
    /// `pool` and `template` are more lines of their tables.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn pool_file(
        &self,
        pool: &str,
        mode: &str,
        size: u32,
        script: &str,
        template: &str,
        more: &str,
    ) -> PathBuf {
        let args: Vec<_> = script.split(' ').map(|arg| format!("{arg:?}")).collect();
        let text = format!(
            "[template.digits]\ncommand = {python:?}\nargs = [{args}]\ncwd = {cwd:?}\n{template}\n\n[pool.{pool}]\ntemplate = \"digits\"\nmode = {mode:?}\nsize = {size}\n{more}\n",
            python = python().display().to_string(),
            args = args.join(", "),
            cwd = example("digits").display().to_string(),
        );
        let path = self.path(&format!("{pool}.toml"));
        std::fs::write(&path, text).expect("the file can be written");
        path
    }

    /// The workers of a pool.
    ///
    /// # Panics
    /// When the gateway does not answer.
    pub async fn workers(&self, pool: &str) -> Vec<Worker> {
        let request = ListWorkersRequest {
            pool: pool.to_owned(),
        };
        let answer = self
            .client()
            .workers()
            .list_workers(request)
            .await
            .expect("the gateway answers");
        answer.into_inner().workers
    }

    /// Waits until nothing of any worker is left, and tells how long that took.
    pub async fn no_orphans(&self) -> Duration {
        let traces = self.traces();
        eventually("no process of any worker is left", async || {
            traces.find().is_empty().then_some(())
        })
        .await
        .1
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(up) = &mut self.up {
            let _ = up.start_kill();
            // Dead before its workers are looked for: it would start others.
            while matches!(up.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        tidy(&self.runtime());
    }
}

/// A process that owns a pool: `demo-client`, to be killed as a BEAM would be.
#[derive(Debug)]
pub struct Owner {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Owner {
    /// Starts a client process with these flags.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(cluster: &Cluster, name: &str, flags: &[&str]) -> Self {
        let mut child = Command::new(program("demo-client"))
            .args(["--gateway", &cluster.gateway(), "--owner", name])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the client can be started");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { child, lines }
    }

    /// Starts a client that applies the pool of a file, and waits until all workers are ready.
    pub async fn with_pool(cluster: &Cluster, name: &str, file: &Path) -> Self {
        let mut owner = Self::start(cluster, name, &["--file", &file.display().to_string()]);
        owner.until("ready").await;
        owner
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it has ended.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the client runs")
    }

    /// The next thing it says.
    ///
    /// # Panics
    /// When it says nothing in time, or ends.
    pub async fn next(&mut self) -> serde_json::Value {
        let line = timeout(DEADLINE, self.lines.next_line())
            .await
            .expect("the client says something in time");
        let line = line
            .expect("its output can be read")
            .expect("the client still runs");
        serde_json::from_str(&line).expect("it speaks JSON")
    }

    /// The next thing of this kind it says.
    pub async fn until(&mut self, event: &str) -> serde_json::Value {
        loop {
            let said = self.next().await;
            if said["event"] == event {
                return said;
            }
        }
    }

    /// Kills it and sees it dead.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub async fn kill(&mut self) {
        kill(self.pid(), Signal::KILL);
        self.gone().await;
    }

    /// Waits until it has ended; tells its exit status.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn gone(&mut self) -> Option<i32> {
        let ended = timeout(DEADLINE, self.child.wait())
            .await
            .expect("the client ends");
        ended.expect("it can be waited for").code()
    }
}
