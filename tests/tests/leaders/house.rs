//! The services as processes of their own, with two arbiters and an owner.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tether_client::Client;
use tether_etcd_cluster::{Cluster, Setup};
use tether_proto::{
    common::WorkerPhase,
    pool::DeletePoolRequest,
    worker::{ListNodesRequest, ListWorkersRequest},
};
use tether_tests::{DEADLINE, Tether, Traces, eventually, kill, program};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, Command},
};
use tonic::Status;

const WORKERS: usize = 2;

/// All of it, on one machine.
pub(crate) struct House {
    dir: tempfile::TempDir,
    pub(crate) etcd: Cluster,
    pub(crate) arbiters: Vec<Option<Child>>,
    others: Vec<(&'static str, Child)>,
    owner: Option<Child>,
    /// The workers when all was well.
    pids: Vec<u32>,
}

impl House {
    /// Everything runs, and the workers are ready.
    pub(crate) async fn start() -> Self {
        Self::with("").await
    }

    /// The same, with more in the configuration.
    pub(crate) async fn with(more: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("tether-").tempdir();
        let mut house = Self {
            dir: dir.unwrap(),
            etcd: Setup::members(1).start().await,
            arbiters: Vec::new(),
            others: Vec::new(),
            owner: None,
            pids: Vec::new(),
        };
        house.configure(more);
        for number in 0..2 {
            let arbiter = house.start_arbiter(number);
            house.arbiters.push(Some(arbiter));
            house.leader().await;
        }
        for service in ["tether-discovery", "tether-agent", "tether-gateway"] {
            let child = house.service(service, &[]);
            house.others.push((service, child));
        }
        eventually("the node has joined", async || {
            let request = ListNodesRequest {};
            let nodes = house.client().workers().list_nodes(request).await.ok()?;
            nodes
                .into_inner()
                .nodes
                .iter()
                .any(|node| node.up)
                .then_some(())
        })
        .await;
        house.start_owner();
        house.pids = house.ready_workers().await;
        house
    }

    fn configure(&self, more: &str) {
        let unix = |name: &str| format!("\"unix:{}\"", self.path(name).display());
        let text = format!(
            "store = \"{}\"\n[listen]\nruntime_dir = {:?}\ngateway = [{}]\n[connect]\narbiter = [{}, {}]\n[agent]\nnode = \"node-1\"\n[gateway]\nhandover = {:?}\n[metrics]\nlisten = {}\n{more}",
            self.etcd.url("tether"),
            self.dir.path().display().to_string(),
            unix("gateway.sock"),
            unix("arbiter-0.sock"),
            unix("arbiter-1.sock"),
            self.path("handover.sock").display().to_string(),
            unix("metrics.sock"),
        );
        std::fs::write(self.path("tether.toml"), text).unwrap();
        let text = format!(
            "[template.digits]\ncommand = {:?}\nargs = [\"worker.py\"]\ncwd = {:?}\n\n[pool.digits]\ntemplate = \"digits\"\nmode = \"independent\"\nsize = {WORKERS}\n",
            tether_tests::python().display().to_string(),
            tether_tests::example("digits").display().to_string(),
        );
        std::fs::write(self.path("pool.toml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn service(&self, name: &str, more: &[&str]) -> Child {
        let mut log = std::fs::File::options();
        let log = log.create(true).append(true).open(self.path("log"));
        Command::new(program(name))
            .arg("--config")
            .arg(self.path("tether.toml"))
            .args(more)
            .stdin(Stdio::null())
            .stderr(log.unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn arbiter_address(&self, number: usize) -> String {
        format!(
            "unix:{}",
            self.path(&format!("arbiter-{number}.sock")).display()
        )
    }

    /// What its configuration says beyond that of the others.
    pub(crate) fn listen_of_arbiter(&self, number: usize) -> String {
        format!("listen.arbiter=[\"{}\"]", self.arbiter_address(number))
    }

    /// Writes a configuration with that, for one that is started by it alone.
    pub(crate) fn configure_arbiter(&self, number: usize, name: &str) {
        let text = std::fs::read_to_string(self.path("tether.toml")).unwrap();
        let listen = self.listen_of_arbiter(number);
        let own = listen.replacen("listen.", "[listen]\n", 1);
        std::fs::write(self.path(name), text.replacen("[listen]", &own, 1)).unwrap();
    }

    /// The process of a service that is no arbiter, to be ended by whoever takes it.
    pub(crate) fn take(&mut self, name: &str) -> Child {
        let at = self.others.iter().position(|(service, _)| *service == name);
        self.others.swap_remove(at.unwrap()).1
    }

    fn start_arbiter(&self, number: usize) -> Child {
        let listen = self.listen_of_arbiter(number);
        self.service("tether-arbiter", &["--set", &listen])
    }

    fn start_owner(&mut self) {
        let owner = Command::new(program("demo-client"))
            .args(["--gateway", &self.gateway(), "--owner", "beam", "--file"])
            .arg(self.path("pool.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        self.owner = Some(owner.unwrap());
    }

    pub(crate) fn gateway(&self) -> String {
        format!("unix:{}", self.path("gateway.sock").display())
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.gateway().parse().unwrap())
    }

    /// One arbiter, asked without a gateway.
    pub(crate) fn arbiter(&self, number: usize) -> Client {
        Client::connect(&self.arbiter_address(number).parse().unwrap())
    }

    pub(crate) async fn leads(&self, number: usize) -> Result<(), Status> {
        let mut workers = self.arbiter(number).workers();
        let mut request = tonic::Request::new(ListNodesRequest {});
        request.set_timeout(Duration::from_millis(500));
        workers.list_nodes(request).await.map(drop)
    }

    /// Which arbiter leads, as they say themselves.
    pub(crate) async fn leader(&self) -> usize {
        let (leader, _) = eventually("an arbiter leads", async || {
            for number in 0..self.arbiters.len() {
                if self.leads(number).await.is_ok() {
                    return Some(number);
                }
            }
            None
        })
        .await;
        leader
    }

    pub(crate) fn pid(&self, arbiter: usize) -> u32 {
        self.arbiters[arbiter].as_ref().unwrap().id().unwrap()
    }

    async fn workers(&self) -> Option<Vec<u32>> {
        let request = ListWorkersRequest {
            pool: "digits".into(),
        };
        let answer = self.client().workers().list_workers(request).await.ok()?;
        let workers = answer.into_inner().workers;
        let ready = workers
            .iter()
            .filter(|worker| worker.phase() == WorkerPhase::Ready);
        let pids: Vec<_> = ready.map(|worker| worker.pid).collect();
        (pids.len() == WORKERS).then_some(pids)
    }

    async fn ready_workers(&self) -> Vec<u32> {
        let workers = eventually("the workers are ready", async || self.workers().await);
        workers.await.0
    }

    /// How long ago a heartbeat of the agent was answered.
    async fn heartbeat_age(&self) -> Option<Duration> {
        let mut stream = UnixStream::connect(self.path("metrics.sock")).await.ok()?;
        let request = b"GET /metrics HTTP/1.1\r\nhost: tether\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("tether_heartbeat_age_seconds "));
        Some(Duration::from_secs_f64(line?.parse().ok()?))
    }

    /// How long after `lost` the first heartbeat was answered, as seen by the agent.
    pub(crate) async fn resumed(&self, lost: Instant) -> Duration {
        let resumed = eventually("heartbeats are answered again", async || {
            // Looked at first: an answer is not to seem later for what the reading takes.
            let elapsed = lost.elapsed();
            let age = self.heartbeat_age().await?;
            elapsed.checked_sub(age).filter(|after| !after.is_zero())
        });
        resumed.await.0
    }

    /// The same workers as ever, started once, with nobody dead; and the owner can say goodbye.
    pub(crate) async fn nothing_was_lost(&mut self) {
        assert_eq!(self.ready_workers().await, self.pids);
        let tether = Tether::at(&self.gateway());
        let events = tether.json_lines(&["events"]).await;
        let count = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
        let lost = ["WORKER_DIED", "SESSION_LOST", "NODE_LOST"].map(count);
        assert_eq!(lost, [0; 3], "{events:#?}");
        assert_eq!(count("WORKER_STARTED"), WORKERS, "{events:#?}");
        assert_eq!(count("SESSION_OPENED"), 1);

        let mut owner = self.owner.take().unwrap();
        assert!(
            owner.try_wait().unwrap().is_none(),
            "the owner has its session"
        );
        kill(owner.id().unwrap(), Signal::TERM);
        let ended = tokio::time::timeout(DEADLINE, owner.wait()).await;
        assert_eq!(ended.unwrap().unwrap().code(), Some(0));
        let request = DeletePoolRequest {
            name: "digits".into(),
            ..DeletePoolRequest::default()
        };
        self.client().pools().delete_pool(request).await.unwrap();
        let traces = Traces::of(self.dir.path());
        eventually("nothing is left", async || {
            traces.find().is_empty().then_some(())
        })
        .await;
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            say(&log);
        }
        tether_tests::tidy(self.dir.path());
    }
}

#[expect(clippy::print_stdout, reason = "what was seen is the point")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
