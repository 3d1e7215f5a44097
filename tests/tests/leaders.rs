//! Two arbiters on a real etcd, of which one leads, with agent, gateway, discovery, an owner and real
//! workers: whatever becomes of the leader, nothing that lives on its leases ends.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

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
    pool::{ApplyPoolRequest, DeletePoolRequest, GetPoolRequest, PoolSpec, Template},
    worker::{ListNodesRequest, ListWorkersRequest},
};
use tether_tests::{DEADLINE, Tether, Traces, eventually, kill, program};
use tether_types::Reason;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, Command},
};
use tonic::Status;

/// Renewals go on this soon after a leader is lost, whatever became of it.
const RESUMED: Duration = Duration::from_secs(9);

const WORKERS: usize = 2;

struct House {
    dir: tempfile::TempDir,
    etcd: Cluster,
    arbiters: Vec<Option<Child>>,
    others: Vec<Child>,
    owner: Option<Child>,
    /// The workers when all was well.
    pids: Vec<u32>,
}

impl House {
    /// Everything runs, and the workers are ready.
    async fn start() -> Self {
        Self::with("").await
    }

    /// The same, with more in the configuration.
    async fn with(more: &str) -> Self {
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
            house.others.push(child);
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
            "store = \"{}\"\n[listen]\nruntime_dir = {:?}\ngateway = [{}]\n[connect]\narbiter = [{}, {}]\n[agent]\nnode = \"node-1\"\n[metrics]\nlisten = {}\n{more}",
            self.etcd.url("tether"),
            self.dir.path().display().to_string(),
            unix("gateway.sock"),
            unix("arbiter-0.sock"),
            unix("arbiter-1.sock"),
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

    fn path(&self, name: &str) -> PathBuf {
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

    fn start_arbiter(&self, number: usize) -> Child {
        let listen = format!("listen.arbiter=[\"{}\"]", self.arbiter_address(number));
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

    fn gateway(&self) -> String {
        format!("unix:{}", self.path("gateway.sock").display())
    }

    fn client(&self) -> Client {
        Client::connect(&self.gateway().parse().unwrap())
    }

    /// One arbiter, asked without a gateway.
    fn arbiter(&self, number: usize) -> Client {
        Client::connect(&self.arbiter_address(number).parse().unwrap())
    }

    async fn leads(&self, number: usize) -> Result<(), Status> {
        let mut workers = self.arbiter(number).workers();
        let mut request = tonic::Request::new(ListNodesRequest {});
        request.set_timeout(Duration::from_millis(500));
        workers.list_nodes(request).await.map(drop)
    }

    /// Which arbiter leads, as they say themselves.
    async fn leader(&self) -> usize {
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

    fn pid(&self, arbiter: usize) -> u32 {
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
    async fn resumed(&self, lost: Instant) -> Duration {
        let resumed = eventually("heartbeats are answered again", async || {
            // Looked at first: an answer is not to seem later for what the reading takes.
            let elapsed = lost.elapsed();
            let age = self.heartbeat_age().await?;
            elapsed.checked_sub(age).filter(|after| !after.is_zero())
        });
        resumed.await.0
    }

    /// The same workers as ever, started once, with nobody dead; and the owner can say goodbye.
    async fn nothing_was_lost(&mut self) {
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
fn say(text: &str) {
    println!("{text}");
}

fn say_took(what: &str, took: Duration) {
    say(&format!(
        "{what}: renewals went on after {:.2} s",
        took.as_secs_f64()
    ));
}

#[tokio::test]
async fn a_leader_that_is_killed_is_followed_before_anybody_notices() {
    let mut house = House::start().await;
    let leader = house.leader().await;

    kill(house.pid(leader), Signal::KILL);
    let lost = Instant::now();
    let took = house.resumed(lost).await;

    say_took("leader killed", took);
    assert!(took < RESUMED, "{took:?}");
    assert_eq!(house.leader().await, 1 - leader);
    house.nothing_was_lost().await;
}

#[tokio::test]
async fn a_leader_that_was_stopped_refuses_everything_when_it_goes_on() {
    let mut house = House::start().await;
    let leader = house.leader().await;
    let mut pools = house.arbiter(leader).pools();
    let digits = GetPoolRequest {
        name: "digits".into(),
    };
    pools.get_pool(digits).await.expect("the connection stands");

    kill(house.pid(leader), Signal::STOP);
    let lost = Instant::now();
    // Sent to it while it cannot hear: it finds this before it finds out anything else.
    let tardy = tokio::spawn(async move {
        let spec = PoolSpec {
            name: "tardy".into(),
            mode: "independent".into(),
            template: Some(Template {
                command: "/bin/sleep".into(),
                args: vec!["1000".into()],
                ..Template::default()
            }),
            size: 1,
            ..PoolSpec::default()
        };
        let request = ApplyPoolRequest {
            pool: Some(spec),
            owner: "ops".into(),
            epoch: 0,
        };
        pools.apply_pool(request).await
    });
    let took = house.resumed(lost).await;
    say_took("leader stopped", took);
    assert!(took < RESUMED, "{took:?}");
    assert_eq!(house.leader().await, 1 - leader);
    kill(house.pid(leader), Signal::CONT);

    let refused = tardy.await.unwrap().unwrap_err();
    assert_eq!(tether_proto::reason_of(&refused), Some(Reason::NotLeader));
    let said = tether_proto::NotLeader::of(&house.leads(leader).await.unwrap_err());
    assert!(said.is_some(), "it goes on as a standby");
    let tardy = GetPoolRequest {
        name: "tardy".into(),
    };
    let unknown = house.client().pools().get_pool(tardy).await.unwrap_err();
    assert_eq!(tether_proto::reason_of(&unknown), Some(Reason::UnknownPool));
    house.nothing_was_lost().await;
}

#[tokio::test]
async fn a_leader_that_stops_in_good_order_is_followed_at_once() {
    let mut house = House::start().await;
    let leader = house.leader().await;
    let other = 1 - leader;

    kill(house.pid(leader), Signal::TERM);
    let lost = Instant::now();
    let led = eventually("the other one leads", async || {
        house.leads(other).await.ok()
    });
    let (_, led) = led.await;
    let took = house.resumed(lost).await;

    say_took("leader stopped in good order", took);
    // Less than what it would have to wait for one that left no word.
    assert!(led < Duration::from_secs(4), "{led:?}");
    let mut stopped = house.arbiters[leader].take().unwrap();
    let ended = tokio::time::timeout(DEADLINE, stopped.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
    house.nothing_was_lost().await;
}

#[tokio::test]
async fn a_store_that_is_away_for_a_while_costs_the_leader_its_place_and_nobody_a_lease() {
    // Often enough that one falls into the time that the leader has left.
    let mut house = House::with("[lease]\nnode_beat = \"1s\"\n").await;
    let leader = house.leader().await;
    let not_leading = async |house: &House, number: usize| {
        let refused = house.leads(number).await.err()?;
        tether_proto::NotLeader::of(&refused)
    };

    house.etcd.member(0).kill();
    let lost = Instant::now();
    let still = house.resumed(lost).await;
    assert!(house.leads(leader).await.is_ok(), "its time is not over");
    let gives_up = async || not_leading(&house, leader).await;
    eventually("the leader gives up", gives_up).await;
    let out = lost.elapsed();
    assert!(not_leading(&house, 1 - leader).await.is_some());
    house.etcd.restart(0).await;
    let back = Instant::now();
    let took = house.resumed(back).await;

    say_took("store away", took);
    assert!(
        still < out,
        "leases were renewed without it: {still:?}, {out:?}"
    );
    assert!(
        out > Duration::from_secs(3) && out < Duration::from_secs(6),
        "{out:?}"
    );
    assert!(took < RESUMED, "{took:?}");
    house.nothing_was_lost().await;
}
