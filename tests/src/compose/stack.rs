//! What `docker-compose.yml` runs, seen from outside: its containers, its nodes and workers, and how one is lost.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    docker::{self, Engine},
    images::{BASE, NEXT_BASE, quietly},
};

/// The project's name, of which the names of networks and volumes are made.
pub(crate) const PROJECT: &str = "tetherground";

/// Which images run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edition {
    First,
    Next,
}

impl Edition {
    pub(crate) const fn tag(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Next => "next",
        }
    }
}

/// The stack on an engine.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) engine: Engine,
    edition: Edition,
    /// Where another program is called `docker-compose`.
    compose: Option<tempfile::TempDir>,
}

impl Stack {
    pub(crate) const fn new(engine: Engine) -> Self {
        Self {
            engine,
            edition: Edition::First,
            compose: None,
        }
    }

    /// From here on `docker-compose` is this program.
    pub(crate) fn call_compose(&mut self, program: &str) -> anyhow::Result<()> {
        let mut found = docker::path()
            .into_iter()
            .map(|folder| folder.join(program));
        let program = found.find(|file| file.is_file());
        let program =
            program.context("it is not there: `cargo xtask ground compose` fetches it")?;
        let program = program.display();
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("docker-compose");
        std::fs::write(&file, format!("#!/bin/sh\nexec {program} \"$@\"\n"))?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
        self.compose = Some(folder);
        Ok(())
    }

    /// What `docker-compose up` starts from here on.
    pub(crate) const fn choose(&mut self, edition: Edition) {
        self.edition = edition;
    }

    /// A command with the variables that name the images.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = self.engine.command(program);
        if let Some(own) = &self.compose {
            let first = [own.path().to_owned()].into_iter();
            if let Ok(path) = std::env::join_paths(first.chain(docker::path())) {
                command.env("PATH", path);
            }
        }
        let etcd = match self.edition {
            Edition::First => BASE,
            Edition::Next => NEXT_BASE,
        };
        command
            .env("COMPOSE_PROJECT_NAME", PROJECT)
            .env("TETHER_TAG", self.edition.tag())
            .env("ETCD_IMAGE", etcd)
            .envs(
                ["RUST", "PYTHON", "ELIXIR", "PROMETHEUS"].map(|of| (format!("{of}_IMAGE"), BASE)),
            );
        command
    }

    /// Runs `docker-compose` to its end.
    pub(crate) async fn compose(&self, arguments: &[&str]) -> anyhow::Result<String> {
        said(self.command("docker-compose").args(arguments)).await
    }

    /// Runs `docker` to its end.
    pub(crate) async fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        said(self.command("docker").args(arguments)).await
    }

    /// The containers of a service that run.
    pub(crate) async fn containers(&self, service: &str) -> anyhow::Result<Vec<String>> {
        let project = format!("label=com.docker.compose.project={PROJECT}");
        let service = format!("label=com.docker.compose.service={service}");
        let filters = [
            "ps",
            "--quiet",
            "--no-trunc",
            "--filter",
            &project,
            "--filter",
            &service,
        ];
        let listed = self.docker(&filters).await?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// What the engine knows of a container, by a template.
    pub(crate) async fn inspect(&self, container: &str, what: &str) -> anyhow::Result<String> {
        let said = self
            .docker(&["inspect", "--format", what, container])
            .await?;
        Ok(said.trim().to_owned())
    }

    /// Whether every container of these services is healthy, and there are that many.
    pub(crate) async fn healthy(&self, services: &[(&str, usize)]) -> bool {
        for (service, count) in services {
            let containers = self.containers(service).await.unwrap_or_default();
            if containers.len() != *count {
                return false;
            }
            for container in containers {
                let health = self.inspect(&container, "{{.State.Health.Status}}").await;
                if health.ok().as_deref() != Some("healthy") {
                    return false;
                }
            }
        }
        true
    }

    /// Kills the first process of a container, as a fault would: the engine does not know that it is wanted.
    pub(crate) async fn kill(&self, container: &str) -> anyhow::Result<()> {
        let pid = self.inspect(container, "{{.State.Pid}}").await?;
        self.kill_numbered(&pid).await
    }

    /// Kills a process by the number that the engine knows it by.
    pub(crate) async fn kill_numbered(&self, pid: &str) -> anyhow::Result<()> {
        said(self.command("kill").args(["-KILL", pid])).await?;
        Ok(())
    }

    /// `tether` in the container of the application, which no scene takes away.
    pub(crate) async fn tether_plain(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let app = self.containers("app").await?;
        let app = app.first().context("the application does not run")?;
        let gateway = ["--gateway", "gateway:7437"];
        self.docker(&[&["exec", app, "tether"], &gateway[..], arguments].concat())
            .await
    }

    /// The same for programs to read.
    pub(crate) async fn tether(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let said = self
            .tether_plain(&[&["--output", "json"], arguments].concat())
            .await?;
        Ok(serde_json::from_str(&said)?)
    }

    /// How many workers have died of something else than an order and their replacement.
    pub(crate) async fn deaths(&self) -> anyhow::Result<usize> {
        let said = self.tether_plain(&["--output", "json", "events"]).await?;
        let orderly = |line: &&str| line.contains("ORDERED_BY") || line.contains("RECYCLED");
        let deaths = said.lines().filter(|line| line.contains("WORKER_DIED"));
        Ok(deaths.filter(|line| !orderly(line)).count())
    }

    /// Workers that serve, with their nodes.
    pub(crate) async fn serving(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let workers = self.tether(&["ps"]).await?;
        let workers = workers.as_array().context("no list")?.iter();
        let serving = workers.filter(|worker| worker["phase"] == "ready");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(serving
            .map(|worker| (text(&worker["worker"]), text(&worker["node"])))
            .collect())
    }

    /// The name of the node that a container is.
    pub(crate) async fn node(&self, container: &str) -> anyhow::Result<String> {
        self.inspect(container, "{{.Config.Hostname}}").await
    }

    /// Nodes that are up.
    pub(crate) async fn nodes(&self) -> anyhow::Result<Vec<String>> {
        let nodes = self.tether(&["nodes"]).await?;
        let nodes = nodes.as_array().context("no list")?.iter();
        let up = nodes.filter(|node| node["up"] == true);
        Ok(up
            .filter_map(|node| node["node"].as_str().map(str::to_owned))
            .collect())
    }

    /// Which of the arbiters says last that it leads.
    pub(crate) async fn leader(&self) -> anyhow::Result<&'static str> {
        let mut last = (String::new(), "arbiter-1");
        for arbiter in ["arbiter-1", "arbiter-2"] {
            for container in self.containers(arbiter).await? {
                let mut logs = self.command("docker");
                logs.args(["logs", "--timestamps", &container]);
                let output = logs.output().await?;
                let text =
                    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
                let leads = text
                    .lines()
                    .filter(|line| line.contains("This arbiter leads"));
                let when = leads.filter_map(|line| line.split(' ').next()).max();
                last = last.max((when.unwrap_or_default().to_owned(), arbiter));
            }
        }
        ensure!(!last.0.is_empty(), "no arbiter says that it leads");
        Ok(last.1)
    }

    /// The numbers, as the engine knows them, of a container's processes whose commands contain this.
    pub(crate) async fn processes(
        &self,
        container: &str,
        command: &str,
    ) -> anyhow::Result<Vec<String>> {
        let top = self.docker(&["top", container]).await?;
        let processes = top.lines().filter(|line| line.contains(command));
        let pids = processes.filter_map(|line| line.split_whitespace().nth(1));
        Ok(pids.map(str::to_owned).collect())
    }

    /// How many processes of workers are in a container, whatever its network.
    pub(crate) async fn worker_processes(&self, container: &str) -> anyhow::Result<usize> {
        Ok(self.processes(container, "worker.py").await?.len())
    }

    /// The number of a worker's process, as its own container knows it.
    pub(crate) async fn worker_process(&self, worker: &str) -> anyhow::Result<u64> {
        let workers = self.tether(&["ps"]).await?;
        let mut workers = workers.as_array().context("no list")?.iter();
        let found = workers.find(|row| row["worker"] == worker);
        let pid = found.and_then(|row| row["pid"].as_u64());
        pid.filter(|pid| *pid > 1).context("it has no process")
    }

    /// The counts that the application wrote last: calls, and those that failed.
    pub(crate) async fn app_counts(&self) -> anyhow::Result<(u64, u64)> {
        self.app_counts_since("").await
    }

    /// The same of what it has written since a time, which may be empty.
    pub(crate) async fn app_counts_since(&self, since: &str) -> anyhow::Result<(u64, u64)> {
        let said = self.app_log(since).await?;
        let counts = said.lines().rev().find_map(|line| {
            let (calls, failed) = line.strip_prefix("calls ")?.split_once(" failed ")?;
            Some((calls.parse().ok()?, failed.parse().ok()?))
        });
        counts.context("the application has not counted yet")
    }

    /// What follows these words where the application has written them of late.
    pub(crate) async fn app_says(&self, words: &str) -> anyhow::Result<Option<String>> {
        let said = self.app_log("").await?;
        let rest = said.lines().find_map(|line| line.strip_prefix(words));
        Ok(rest.map(str::to_owned))
    }

    /// The last that the application has written since a time.
    async fn app_log(&self, since: &str) -> anyhow::Result<String> {
        let app = self.containers("app").await?;
        let app = app.first().context("the application does not run")?;
        self.docker(&["logs", "--tail", "40", "--since", since, app])
            .await
    }

    /// What is left on the engine of this project.
    pub(crate) async fn left(&self) -> anyhow::Result<Vec<String>> {
        let project = format!("label=com.docker.compose.project={PROJECT}");
        // Volumes without a name have no project either; on an engine of our own there is nothing else.
        let all = ["--quiet", "--filter", &project];
        let filter = if self.engine.is_own() {
            &all[..1]
        } else {
            &all
        };
        let mut left = Vec::new();
        for list in [&["ps", "--all"][..], &["network", "ls"], &["volume", "ls"]] {
            let filter = if list[0] == "network" { &all } else { filter };
            let listed = self.docker(&[list, filter].concat()).await?;
            left.extend(listed.lines().map(|line| format!("{}: {line}", list[0])));
        }
        Ok(left)
    }

    /// Runs `docker` and wants no more than that it succeeds.
    pub(crate) async fn quietly(&self, arguments: &[&str]) -> anyhow::Result<()> {
        quietly(&self.engine, arguments).await
    }
}

async fn said(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().await?;
    let error = String::from_utf8_lossy(&output.stderr);
    let program = command
        .as_std()
        .get_args()
        .map(|word| word.to_string_lossy());
    let program = program.collect::<Vec<_>>().join(" ");
    ensure!(output.status.success(), "{program}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
