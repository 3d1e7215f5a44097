//! A cluster with a second node, whose way to the arbiter can be cut.

use std::{path::PathBuf, process::Stdio, time::Duration};

use rustix::process::Signal;
use tether_proto::worker::Worker;
use tokio::process::{Child, Command};

use crate::{Cable, Cluster, Setup, eventually, kill, program, tidy};

/// The cluster, the cable and the second node's agent.
#[derive(Debug)]
pub struct Site {
    /// With the first node.
    pub cluster: Cluster,
    /// Between the second node and the arbiter.
    pub cable: Cable,
    agent: Option<Child>,
}

impl Site {
    /// Of each node's lease.
    pub const TTL: Duration = Duration::from_secs(2);

    /// Between two beats of a node.
    pub const BEAT: Duration = Duration::from_millis(400);

    /// Starts it, and waits until the second node has joined.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start() -> Self {
        Self::of(Setup::default()).await
    }

    /// The same, of that cluster.
    ///
    /// # Panics
    /// When the second node does not join.
    pub async fn of(setup: Setup) -> Self {
        let cluster = setup
            .set("lease.node_ttl", &format!("{:?}", Self::TTL))
            .set("lease.node_beat", &format!("{:?}", Self::BEAT))
            .start()
            .await;
        let cable = Cable::start(
            &cluster.dir().join("cable.sock"),
            &cluster.runtime().join("arbiter.sock"),
        );
        let mut site = Self {
            cluster,
            cable,
            agent: None,
        };
        site.start_agent();
        eventually("the second node has joined", async || {
            let nodes = site.cluster.tether().json(&["nodes"]).await;
            let up = |node: &serde_json::Value| node["node"] == "node-2" && node["up"] == true;
            nodes.as_array()?.iter().any(up).then_some(())
        })
        .await;
        site
    }

    /// The same, with workers on the second node alone, whose agent is a process of its own.
    ///
    /// # Panics
    /// When the first node is not closed to workers.
    pub async fn with_second_alone() -> Self {
        let site = Self::start().await;
        site.close("node-1").await;
        site
    }

    /// Closes a node to workers that are not there yet.
    ///
    /// # Panics
    /// When that is refused.
    pub async fn close(&self, node: &str) {
        self.order(&["node", "cordon", node]).await;
    }

    /// Opens it again.
    ///
    /// # Panics
    /// When that is refused.
    pub async fn open(&self, node: &str) {
        self.order(&["node", "uncordon", node]).await;
    }

    async fn order(&self, words: &[&str]) {
        let ran = self.cluster.tether().run(words).await;
        assert_eq!(ran.code, Some(0), "{}", ran.err);
    }

    /// Of the second node's agent.
    pub fn runtime(&self) -> PathBuf {
        self.cluster.dir().join("run2")
    }

    /// Starts the second node's agent.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_agent(&mut self) {
        let text = format!(
            "[listen]\nruntime_dir = {:?}\n[connect]\narbiter = \"unix:{}\"\n[agent]\nnode = \"node-2\"\n",
            self.runtime().display().to_string(),
            self.cluster.dir().join("cable.sock").display(),
        );
        let file = self.cluster.dir().join("agent.toml");
        std::fs::write(&file, text).expect("the directory can be written");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.cluster.dir().join("agent.log"));
        let mut agent = Command::new(program("tether-agent"));
        agent
            .arg("--config")
            .arg(file)
            .stdin(Stdio::null())
            .stderr(log.expect("the directory can be written"))
            .kill_on_drop(true);
        self.cluster.keep_checkpoints(&mut agent);
        self.agent = Some(agent.spawn().expect("it was built"));
    }

    /// Process id of the second node's agent.
    ///
    /// # Panics
    /// When there is none.
    pub fn agent_pid(&self) -> u32 {
        let agent = self.agent.as_ref().and_then(Child::id);
        agent.expect("there is one")
    }

    /// Kills the second node's agent.
    ///
    /// # Panics
    /// When there is none.
    pub async fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("there is one");
        kill(agent.id().expect("it was not waited for"), Signal::KILL);
        agent.wait().await.expect("it is a child");
    }

    /// Applies this file for an owner called `beam`.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn apply(&self, pools: &str) {
        let file = self.cluster.dir().join("p.toml");
        std::fs::write(&file, pools).expect("the directory can be written");
        let file = file.display().to_string();
        let ran = self
            .cluster
            .tether()
            .run(&["pool", "apply", "--file", &file, "--owner", "beam"])
            .await;
        assert_eq!(ran.code, Some(0), "{}", ran.err);
    }

    /// The pool's worker on the second node, once it is like that.
    ///
    /// # Panics
    /// When it never is.
    pub async fn on_second(&self, pool: &str, what: &str, is: impl Fn(&Worker) -> bool) -> Worker {
        let (worker, _) = eventually(what, async || {
            let workers = self.cluster.workers(pool).await;
            let mut workers = workers.into_iter();
            workers.find(|worker| worker.node == "node-2" && is(worker))
        })
        .await;
        worker
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _ = agent.start_kill();
            while matches!(agent.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        tidy(&self.runtime());
    }
}
