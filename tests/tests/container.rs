//! `tether up --init` as the first process of a container: here a PID namespace of the test's own, without
//! cgroups or further namespaces, as a container has it.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    fs,
    path::Path,
    process::{ExitStatus, Stdio},
};

use rustix::process::Signal;
use tether_tests::{Tether, Traces, eventually, kill, program};
use tokio::process::{Child, Command};

/// A container: `tether up --init`, killed with all in it when it is dropped.
struct Container {
    dir: tempfile::TempDir,
    first: Child,
}

impl Container {
    fn start() -> Self {
        Self::with(&[])
    }

    /// With these arguments besides.
    fn with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let log = fs::File::create(path("log")).unwrap();
        let first = Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
            .arg(program("tether"))
            .args([
                "up",
                "--init",
                "--store",
                &format!("redb:{}", path("state")),
            ])
            .args(["--set", "agent.no_namespaces=true"])
            .args(["--set", "agent.no_cgroups=true"])
            .args(["--set", "agent.node=node-1"])
            .args(["--set", &format!("listen.runtime_dir={}", path("run"))])
            .args([
                "--set",
                &format!("listen.gateway=[\"unix:{}\"]", path("run/gateway.sock")),
            ])
            .args(more)
            .env_remove("TETHER_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { dir, first }
    }

    fn tether(&self) -> Tether {
        let socket = self.dir.path().join("run/gateway.sock");
        Tether::at(&format!("unix:{}", socket.display()))
    }

    /// How it ended, once it has.
    async fn ended(&mut self) -> ExitStatus {
        let ended = eventually("the container ends", async || {
            self.first.try_wait().unwrap()
        });
        ended.await.0
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The process that is `tether up` itself, seen from outside.
    async fn up(&self) -> u32 {
        // The first process has this name too, until it becomes the zygote.
        let has = |line: &[u8], text: &str| {
            line.windows(text.len())
                .any(|window| window == text.as_bytes())
        };
        let mark = format!(
            "listen.runtime_dir={}",
            self.dir.path().join("run").display()
        );
        let found = eventually("`tether up` runs as a child of the zygote", async || {
            let entries = fs::read_dir("/proc").ok()?.flatten();
            let mut pids =
                entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
            pids.find(|pid| {
                let read = |file: &str| {
                    fs::read(Path::new("/proc").join(pid.to_string()).join(file))
                        .unwrap_or_default()
                };
                let (name, line) = (read("comm"), read("cmdline"));
                name == b"tether\n" && has(&line, &mark) && !has(&line, "--init")
            })
        });
        found.await.0
    }

    async fn ready_worker(&self) -> Option<(u64, String)> {
        let ran = self.tether().run(&["--output", "json", "ps"]).await;
        let workers: serde_json::Value = serde_json::from_str(&ran.out).ok()?;
        let worker = workers.as_array()?.first()?;
        (worker["phase"] == "ready").then(|| {
            let name = worker["worker"].as_str().unwrap_or_default().to_owned();
            (worker["pid"].as_u64().unwrap_or(0), name)
        })
    }
}

#[tokio::test]
async fn in_a_container_a_killed_agent_comes_back_to_its_workers_and_nothing_outlives_the_first_process()
 {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may make the namespace that stands for a container");
        return;
    }
    let mut container = Container::start();
    let pools = container.dir.path().join("pools.toml");
    let text = "[template.t]\ncommand = \"sh\"\nargs = [\"-c\", \"(setsid sleep 600 &) ; exec sleep 600\"]\nreadiness = { kind = \"started\" }\n[pool.p]\ntemplate = \"t\"\nmode = \"independent\"\n";
    fs::write(&pools, text).unwrap();
    let up = container.up().await;
    eventually("the pool is applied", async || {
        let ran = container
            .tether()
            .run(&[
                "pool",
                "apply",
                "--owner",
                "o",
                "-f",
                &pools.display().to_string(),
            ])
            .await;
        (ran.code == Some(0)).then_some(())
    })
    .await;
    let (before, _) = eventually("the worker runs", async || container.ready_worker().await).await;
    let nodes = container.tether().json(&["nodes"]).await;

    kill(up, Signal::KILL);
    eventually("another `tether up` runs", async || {
        (container.up().await != up).then_some(())
    })
    .await;
    let (after, _) = eventually("its worker is taken over", async || {
        container.ready_worker().await
    })
    .await;

    assert_eq!(nodes[0]["guarantee"], "G4", "{nodes}");
    assert_eq!(
        after,
        before,
        "the same process and incarnation: {}",
        container.log()
    );
    let traces = Traces::of(&container.dir.path().join("run"));
    assert_eq!(traces.find().len(), 2, "the worker and its daemon");
    container.first.start_kill().unwrap();
    container.first.wait().await.unwrap();
    eventually("nothing is left of the container", async || {
        traces.find().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_container_ends_with_its_agents_status_when_it_is_asked_to_and_when_the_agent_refuses() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may make the namespace that stands for a container");
        return;
    }
    let mut refused = Container::with(&["--set", "agent.node=not a name"]);
    let status = refused.ended().await;
    assert_eq!(status.code(), Some(78), "{}", refused.log());

    let mut asked = Container::start();
    eventually("it works", async || {
        let ran = asked.tether().run(&["ps"]).await;
        (ran.code == Some(0)).then_some(())
    })
    .await;
    let outside = asked.first.id().unwrap();
    let first = eventually("the first process is found", async || {
        let list = format!("/proc/{outside}/task/{outside}/children");
        fs::read_to_string(list).ok()?.trim().parse().ok()
    });
    kill(first.await.0, Signal::TERM);
    let status = asked.ended().await;
    assert_eq!(status.code(), Some(0), "{}", asked.log());
}

#[tokio::test]
async fn a_container_that_is_asked_to_end_between_two_agents_ends() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may make the namespace that stands for a container");
        return;
    }
    let mut container = Container::start();
    let up = container.up().await;
    let outside = container.first.id().unwrap();
    let list = format!("/proc/{outside}/task/{outside}/children");
    let first = fs::read_to_string(list).unwrap().trim().parse().unwrap();
    kill(up, Signal::KILL);
    eventually("the agent is reaped", async || {
        (!Path::new(&format!("/proc/{up}")).exists()).then_some(())
    })
    .await;

    // The next one is started no sooner than 100 ms later.
    kill(first, Signal::TERM);

    let status = container.ended().await;
    assert_eq!(status.code(), Some(1), "{}", container.log());
}
