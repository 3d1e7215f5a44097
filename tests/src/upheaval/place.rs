//! Every service as a process of its own: one arbiter, discovery, two gateways, two nodes, and workers that write down
//! what they do.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::Signal;
use tether_client::{Client, Condition, Problem, Registrant, Registration};
use tether_etcd_cluster as etcd;
use tether_proto::{
    common::WorkerPhase,
    pool::{ApplyPoolRequest, Listen, PolicyOverrides, PoolSpec, Restart, Stop, Template},
    worker::{ListNodesRequest, ListWorkersRequest, NodeState, SetNodeStateRequest, Worker},
};
use tether_tests::{DEADLINE, clerk::now, eventually_within, kill, program, tidy};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

/// The pool of workers that agents run.
pub(crate) const STEADY: &str = "steady";
/// The pool of those that are registered.
pub(crate) const OUTSIDE: &str = "outside";

/// How long a call takes.
pub(crate) const WORK: Duration = Duration::from_millis(40);

/// The node that is drained now and then.
pub(crate) const SECOND_NODE: &str = "node-2";

/// All of it. Dropped, nothing of it is left.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    etcd: etcd::Cluster,
    services: Vec<(String, Child)>,
    gateways: Vec<Gateway>,
    processes: watch::Sender<Processes>,
    pub(crate) client: Client,
}

/// Services by their names.
pub(crate) type Processes = Vec<(String, u32)>;

struct Gateway {
    port: u16,
    child: Child,
}

/// A worker that nobody but the soak runs.
pub(crate) struct Outsider {
    name: String,
    port: u16,
    child: Child,
    registration: Option<Registration>,
}

impl Place {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tether-").tempdir()?;
        let arbiter = format!("unix:{}", dir.path().join("arbiter.sock").display());
        let mut place = Self {
            etcd: etcd::Setup::members(1).start().await,
            services: Vec::new(),
            gateways: Vec::new(),
            processes: watch::Sender::default(),
            client: Client::connect(&arbiter.parse()?),
            dir,
        };
        std::fs::create_dir(place.books())?;
        place.serve("arbiter", "arbiter", &[])?;
        place.serve("discovery", "discovery", &[])?;
        for node in ["node-1", SECOND_NODE] {
            let name = format!("agent.node=\"{node}\"");
            place.serve("agent", node, &[&name])?;
        }
        for _ in 0..2 {
            let port = free_port()?;
            let child = place.gateway(port)?;
            place.gateways.push(Gateway { port, child });
        }
        place.tell();
        let joined = eventually_within(DEADLINE, async || {
            let mut workers = place.client.workers();
            let nodes = workers.list_nodes(ListNodesRequest {}).await.ok()?;
            let nodes = nodes.into_inner().nodes;
            (nodes.iter().filter(|node| node.up).count() == 2).then_some(())
        });
        joined.await.context("the nodes do not join")?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where workers write.
    pub(crate) fn books(&self) -> PathBuf {
        self.path("books")
    }

    /// The end of what services have said.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let from = log.len().saturating_sub(4_000);
        log.get(from..).unwrap_or(&log).to_owned()
    }

    fn command(&self, service: &str, home: &str, sets: &[&str]) -> anyhow::Result<Command> {
        let mut log = std::fs::File::options();
        let log = log.create(true).append(true).open(self.path("log"))?;
        let unix = |name: &str| format!("unix:{}", self.path(&format!("{name}.sock")).display());
        let mut command = Command::new(program(&format!("tether-{service}")));
        command
            .args(["--set", &format!("store=\"{}\"", self.etcd.url("soak"))])
            .args([
                "--set",
                &format!("listen.runtime_dir=\"{}\"", self.path(home).display()),
            ])
            .args([
                "--set",
                &format!("listen.arbiter=[\"{}\"]", unix("arbiter")),
            ])
            .args([
                "--set",
                &format!("listen.discovery=[\"{}\"]", unix("discovery")),
            ])
            .args(["--set", &format!("connect.arbiter=\"{}\"", unix("arbiter"))])
            .args([
                "--set",
                &format!("connect.discovery=\"{}\"", unix("discovery")),
            ])
            .args(sets.iter().flat_map(|set| ["--set", set]))
            .env_remove("TETHER_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        Ok(command)
    }

    fn serve(&mut self, service: &str, home: &str, sets: &[&str]) -> anyhow::Result<()> {
        let child = self.command(service, home, sets)?.spawn()?;
        self.services.push((home.to_owned(), child));
        Ok(())
    }

    fn gateway(&self, port: u16) -> anyhow::Result<Child> {
        let listen = format!("listen.gateway=[\"127.0.0.1:{port}\"]");
        let home = format!("gateway-{port}");
        Ok(self.command("gateway", &home, &[&listen])?.spawn()?)
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.gateways.iter().map(|gateway| gateway.port).collect()
    }

    /// Every service that lives, by its name, as it changes.
    pub(crate) fn processes(&self) -> watch::Receiver<Processes> {
        self.processes.subscribe()
    }

    fn tell(&self) {
        let services = self.services.iter();
        let services = services.filter_map(|(name, child)| Some((name.clone(), child.id()?)));
        let gateways = self.gateways.iter().enumerate();
        let gateways = gateways.filter_map(|(number, gateway)| {
            Some((format!("gateway-{}", number + 1), gateway.child.id()?))
        });
        let all = services.chain(gateways).collect();
        self.processes.send_replace(all);
    }

    /// Ends a gateway with this signal, and starts the next one in its place; tells when the first was gone.
    pub(crate) async fn replace_gateway(
        &mut self,
        number: usize,
        signal: Signal,
    ) -> anyhow::Result<u64> {
        let gateway = &mut self.gateways[number];
        kill(gateway.child.id().context("the gateway runs")?, signal);
        let ended = timeout(DEADLINE, gateway.child.wait()).await;
        let ended = ended.context("a gateway does not end")??;
        let gone = now();
        if signal == Signal::TERM {
            anyhow::ensure!(ended.success(), "a gateway that was told to end: {ended}");
        }
        let port = gateway.port;
        let next = self.gateway(port)?;
        self.gateways[number].child = next;
        self.tell();
        let listens = async || TcpStream::connect(("127.0.0.1", port)).await.ok();
        let listens = eventually_within(DEADLINE, listens).await;
        listens.context("a gateway does not listen")?;
        Ok(gone)
    }

    /// Has the pool at this size, of workers of this edition.
    pub(crate) async fn apply(&self, size: u32, edition: u32) -> Result<(), Problem> {
        let stays = || Some("continue".to_owned());
        let text = |path: &Path| path.display().to_string();
        let book = format!("{}/{STEADY}.{{slot}}.{{incarnation}}", text(&self.books()));
        let work = WORK.as_micros().to_string();
        let args = [
            "--listen",
            "{address}",
            "--slot",
            "{slot}",
            "--book",
            &book,
            "--work-us",
            &work,
        ];
        let template = Template {
            command: text(&program("clerk")),
            args: args.map(str::to_owned).to_vec(),
            env: [("EDITION".to_owned(), edition.to_string())].into(),
            listen: Listen::Tcp.into(),
            capacity: 1,
            stop: Some(Stop {
                grace_ms: Some(1_000),
                signal: 0,
            }),
            restart: Some(Restart {
                delay_ms: Some(100),
                max_delay_ms: Some(100),
                max_restarts: Some(100_000),
                ..Restart::default()
            }),
            ..Template::default()
        };
        let request = ApplyPoolRequest {
            pool: Some(PoolSpec {
                name: STEADY.to_owned(),
                mode: "independent".to_owned(),
                template: Some(template),
                size,
                policy: Some(PolicyOverrides {
                    on_owner_exit: stays(),
                    on_owner_silent: stays(),
                    on_owner_goodbye: stays(),
                    ..PolicyOverrides::default()
                }),
                ..PoolSpec::default()
            }),
            owner: "soak".to_owned(),
            epoch: 0,
        };
        self.client.pools().apply_pool(request).await?;
        Ok(())
    }

    pub(crate) async fn workers(&self) -> Option<Vec<Worker>> {
        let request = ListWorkersRequest {
            pool: STEADY.to_owned(),
        };
        let workers = self.client.workers().list_workers(request).await.ok()?;
        let mut workers = workers.into_inner().workers;
        workers.retain(|worker| worker.phase() != WorkerPhase::Dead);
        Some(workers)
    }

    /// Waits until there are so many workers, all of them ready and like that.
    pub(crate) async fn settled(
        &self,
        size: u32,
        is: impl Fn(&Worker) -> bool,
    ) -> anyhow::Result<()> {
        let settled = eventually_within(DEADLINE, async || {
            let workers = self.workers().await?;
            let ready = |worker: &Worker| worker.phase() == WorkerPhase::Ready && is(worker);
            let all = workers.len() == usize::try_from(size).ok()?;
            (all && workers.iter().all(ready)).then_some(())
        });
        let settled = settled.await;
        if settled.is_none() {
            let workers = self.workers().await;
            anyhow::bail!("the workers do not come to rest: {workers:?}");
        }
        Ok(())
    }

    pub(crate) async fn set_second_node(&self, state: NodeState) -> anyhow::Result<()> {
        let request = SetNodeStateRequest {
            node: SECOND_NODE.to_owned(),
            state: state.into(),
        };
        self.client.workers().set_node_state(request).await?;
        Ok(())
    }

    /// Starts a worker of its own and registers it.
    pub(crate) async fn outsider(&self, number: usize) -> anyhow::Result<Outsider> {
        let port = free_port()?;
        let name = format!("outsider-{number}");
        let mut outsider = Outsider {
            child: self.clerk(&name, port)?,
            name,
            port,
            registration: None,
        };
        self.register(&mut outsider).await?;
        Ok(outsider)
    }

    fn clerk(&self, name: &str, port: u16) -> anyhow::Result<Child> {
        Ok(Command::new(program("clerk"))
            .args(["--listen", &format!("127.0.0.1:{port}"), "--slot", "0"])
            .args(["--work-us", &WORK.as_micros().to_string(), "--book"])
            .arg(self.books().join(name))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?)
    }

    /// Registers a worker once it listens.
    pub(crate) async fn register(&self, outsider: &mut Outsider) -> anyhow::Result<()> {
        let port = outsider.port;
        let listens = async || TcpStream::connect(("127.0.0.1", port)).await.ok();
        let listens = eventually_within(DEADLINE, listens).await;
        listens.context("an outsider does not listen")?;
        let registrant = Registrant {
            pool: OUTSIDE.parse()?,
            name: outsider.name.parse()?,
            address: format!("127.0.0.1:{port}").parse()?,
            protocol: String::new(),
            ttl: None,
        };
        let condition = Condition {
            capacity: 1,
            ..Condition::default()
        };
        let registered = self.client.register(registrant, condition).await?;
        outsider.registration = Some(registered);
        Ok(())
    }

    /// Starts a worker again that was killed; its registration stands.
    pub(crate) async fn revive(&self, outsider: &mut Outsider) -> anyhow::Result<()> {
        timeout(DEADLINE, outsider.child.wait()).await??;
        outsider.child = self.clerk(&outsider.name, outsider.port)?;
        let port = outsider.port;
        let listens = async || TcpStream::connect(("127.0.0.1", port)).await.ok();
        let listens = eventually_within(DEADLINE, listens).await;
        listens.map(drop).context("an outsider does not listen")
    }
}

impl Outsider {
    /// Takes it out; calls that it has it finishes.
    pub(crate) async fn deregister(&mut self) -> anyhow::Result<()> {
        if let Some(registration) = self.registration.take() {
            registration.close().await?;
        }
        Ok(())
    }

    /// As gateways call it, and its process.
    pub(crate) fn worker(&self) -> Option<(String, u32)> {
        let registration = self.registration.as_ref()?;
        Some((registration.worker().to_string(), self.child.id()?))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for (_, child) in &mut self.services {
            let _ = child.start_kill();
            // Dead before workers are looked for: it would start others.
            while matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        for node in ["node-1", SECOND_NODE] {
            tidy(&self.path(node));
        }
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
