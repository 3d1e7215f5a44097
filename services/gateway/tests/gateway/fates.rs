//! What agents say of their workers themselves.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tether_gateway::Config;
use tether_proto::{
    common::{Death, Endpoint, WorkerRef},
    fate::{
        Fate, Permission, WatchFatesRequest, WatchFatesResponse, WorkerFate,
        fate_service_server::{FateService, FateServiceServer},
    },
    gateway::{EjectRequest, RestoreRequest, RouteState, SnapshotRequest, WorkerRoute},
};
use tokio::{
    net::UnixListener,
    runtime::Runtime,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Server};

use crate::{
    client::next,
    discovery::{sigkill, worker},
    house::{DIGITS, House, UNARY, fact, reason},
    worker::{Worker, reached},
};

/// A real agent's feed whose words the test decides: one gateway at a time.
struct Agent {
    socket: PathBuf,
    node: &'static str,
    says: mpsc::Sender<WatchFatesResponse>,
    number: u64,
    /// How far the gateway has taken it in.
    seen: Arc<watch::Sender<u64>>,
    /// How often it has asked.
    asked: Arc<watch::Sender<u64>>,
    runtime: Option<Runtime>,
}

struct Service {
    node: &'static str,
    says: tokio::sync::Mutex<Option<mpsc::Receiver<WatchFatesResponse>>>,
    remaining_ms: Option<u64>,
    seen: Arc<watch::Sender<u64>>,
    asked: Arc<watch::Sender<u64>>,
}

impl Agent {
    /// With so much left for the workers of the pool, where it says so.
    fn start(directory: &std::path::Path, node: &'static str, remaining_ms: Option<u64>) -> Self {
        let socket = directory.join("agent.sock");
        let (says, said) = mpsc::channel(16);
        let seen = Arc::new(watch::Sender::new(0));
        let asked = Arc::new(watch::Sender::new(0));
        let service = Service {
            node,
            says: Some(said).into(),
            remaining_ms,
            seen: Arc::clone(&seen),
            asked: Arc::clone(&asked),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("the runtime starts");
        let inside = runtime.enter();
        let listener = UnixListener::bind(&socket).expect("the directory is writable");
        runtime.spawn(async move {
            Server::builder()
                .add_service(FateServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        });
        drop(inside);
        Self {
            socket,
            node,
            says,
            number: 1,
            seen,
            asked,
            runtime: Some(runtime),
        }
    }

    /// Says this of a worker in the pool `digits`, and waits until the gateway has taken it in.
    async fn says(&mut self, slot: u32, fate: Fate, death: Option<Death>) {
        self.number += 1;
        let told = WorkerFate {
            worker: Some(worker("digits", slot, 1)),
            fate: fate.into(),
            death,
        };
        let word = WatchFatesResponse {
            node: self.node.to_owned(),
            number: self.number,
            workers: vec![told],
            ..WatchFatesResponse::default()
        };
        let sent = self.says.send(word).await;
        sent.expect("the gateway listens");
        reached(&self.seen, self.number).await;
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tonic::async_trait]
impl FateService for Service {
    type WatchFatesStream = ReceiverStream<Result<WatchFatesResponse, Status>>;

    async fn watch_fates(
        &self,
        request: Request<Streaming<WatchFatesRequest>>,
    ) -> Result<Response<Self::WatchFatesStream>, Status> {
        let said = self.says.lock().await.take();
        let mut said = said.ok_or_else(|| Status::unavailable("one at a time"))?;
        let mut requests = request.into_inner();
        let (outbox, responses) = mpsc::channel(16);
        let (node, left) = (self.node, self.remaining_ms);
        let (seen, asked) = (Arc::clone(&self.seen), Arc::clone(&self.asked));
        let say = move |word: WatchFatesResponse| WatchFatesResponse {
            node: node.to_owned(),
            ..word
        };
        tokio::spawn(async move {
            let first = WatchFatesResponse {
                number: 1,
                snapshot: true,
                workers: (0..2).map(running).collect(),
                ..WatchFatesResponse::default()
            };
            let mut number = 1;
            outbox.send(Ok(say(first))).await.ok()?;
            loop {
                let word = tokio::select! {
                    word = said.recv() => word?,
                    request = requests.message() => {
                        let request = request.ok()??;
                        seen.send_replace(request.seen);
                        asked.send_replace(request.seq);
                        let permission = left.map(|remaining_ms| Permission {
                            pool: "digits".to_owned(),
                            remaining_ms,
                        });
                        WatchFatesResponse {
                            seq: request.seq,
                            number,
                            permissions: permission.into_iter().collect(),
                            ..WatchFatesResponse::default()
                        }
                    }
                };
                number = word.number;
                outbox.send(Ok(say(word))).await.ok()?;
            }
            #[expect(unreachable_code, reason = "says of what kind the end is")]
            Some(())
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

fn running(slot: u32) -> WorkerFate {
    WorkerFate {
        worker: Some(worker("digits", slot, 1)),
        fate: Fate::Running.into(),
        death: None,
    }
}

/// Workers in the first slots of the pool `digits`, all on node `a`, whose agent is that.
async fn on_node(house: &House, agent: &Agent, count: u32) -> Vec<Worker> {
    let mut workers = Vec::new();
    for slot in 0..count {
        let echo = house.worker(slot).await;
        house.discovery.tell(Endpoint {
            worker: Some(WorkerRef {
                slot,
                ..worker("digits", 0, 1)
            }),
            address: echo.address.clone(),
            node: "a".to_owned(),
            fates: format!("unix:{}", agent.socket.display()),
            ..Endpoint::default()
        });
        workers.push(echo);
    }
    workers
}

/// Whether workers are given calls, as routes say.
async fn states(house: &House) -> Vec<RouteState> {
    let all = house.control().snapshot(SnapshotRequest::default()).await;
    let all = all.expect("the gateway answers").into_inner();
    let routes = all.routes.expect("there are some");
    routes.workers.iter().map(WorkerRoute::state).collect()
}

/// Long enough that nobody waits for discovery by mistake.
fn patient() -> Config {
    Config {
        death_wait: Duration::from_secs(30),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_word_of_a_death_ends_calls_and_sends_others_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(directory.path(), "a", None);
    let house = House::with(patient()).await;
    let workers = on_node(&house, &agent, 2).await;
    reached(&agent.seen, 1).await;
    let client = house.client().await;
    let pinned: &[(&str, &str)] = &[("tether-worker", "digits/0")];
    let mut stream = client
        .server_stream("/test.Echo/OneThenHang", pinned, "a")
        .await
        .unwrap();
    next(&mut stream).await.unwrap();
    let before = workers[0].calls();

    let said = Instant::now();
    agent.says(0, Fate::Dying, Some(sigkill())).await;
    // Nothing of the connection tells, and discovery is silent.
    let status = next(&mut stream).await.unwrap_err();
    assert!(
        said.elapsed() < Duration::from_secs(5),
        "{:?}",
        said.elapsed()
    );
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Unavailable, "WORKER_DIED")
    );
    let told = ["worker", "cause", "signal", "outcome"].map(|key| fact(&status, key).unwrap());
    assert_eq!(told, ["digits/0.1", "SIGNALED", "9", "started"]);
    for _ in 0..20 {
        client.unary(UNARY, DIGITS, "x").await.unwrap();
    }
    assert_eq!(workers[0].calls(), before, "E13");

    // What discovery says of it later changes nothing, early or late.
    house.tell(1, 1, &workers[1].address).await;
    house
        .discovery
        .up(worker("digits", 0, 1), &workers[0].address, false);
    house
        .discovery
        .gone(worker("digits", 0, 1), Some(sigkill()));
    for _ in 0..20 {
        client.unary(UNARY, DIGITS, "x").await.unwrap();
    }
    assert_eq!(workers[0].calls(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_about_to_end_or_gives_no_sign_gets_no_new_calls_and_keeps_those_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(directory.path(), "a", None);
    let house = House::with(patient()).await;
    let workers = on_node(&house, &agent, 2).await;
    reached(&agent.seen, 1).await;
    let client = house.client().await;
    let call = async || client.unary(UNARY, DIGITS, "x").await;

    agent.says(0, Fate::Doubtful, None).await;
    let before = workers[0].calls();
    for _ in 0..20 {
        call().await.unwrap();
    }
    assert_eq!(workers[0].calls(), before, "E14");
    let doubtful_and_ready = [RouteState::Doubtful, RouteState::Ready];
    assert_eq!(states(&house).await, doubtful_and_ready);
    let request = EjectRequest {
        worker: Some(worker("digits", 1, 1)),
        ttl_ms: 60_000,
        ..EjectRequest::default()
    };
    let ejected = house.control().eject(request).await.unwrap();
    assert_eq!(ejected.get_ref().ready, 0, "the other one is doubtful");
    let request = RestoreRequest {
        worker: Some(worker("digits", 1, 1)),
        ..RestoreRequest::default()
    };
    house.control().restore(request).await.unwrap();

    agent.says(0, Fate::Running, None).await;
    agent.says(1, Fate::Ending, None).await;
    let before = workers[1].calls();
    for _ in 0..20 {
        call().await.unwrap();
    }
    assert_eq!(workers[1].calls(), before, "E13");

    agent.says(0, Fate::Ending, None).await;
    assert_eq!(reason(&call().await.unwrap_err()), "DRAINING");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_node_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::start(directory.path(), "b", Some(0));
    let house = House::with(patient()).await;
    let _workers = on_node(&house, &agent, 1).await;
    let client = house.client().await;
    // It has asked, and left.
    agent.says.closed().await;
    client.unary(UNARY, DIGITS, "x").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_over_is_over_though_agent_and_discovery_are_away() {
    let directory = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(directory.path(), "a", Some(2_000));
    let mut house = House::with(patient()).await;
    let _workers = on_node(&house, &agent, 1).await;
    // Half a second after the one before, whose answer it has.
    reached(&agent.asked, 3).await;
    let client = house.client().await;
    let call = async || client.unary(UNARY, DIGITS, "x").await;

    agent.kill();
    house.discovery.kill();
    let alone = Instant::now();
    call().await.unwrap();
    house
        .until("it is refused", async || call().await.is_err())
        .await;
    let status = call().await.unwrap_err();
    assert!(alone.elapsed() < Duration::from_secs(5));
    assert_eq!(reason(&status), "LEASE_EXPIRED", "{status:?}");
    assert_eq!(fact(&status, "outcome").unwrap(), "never_sent");
    assert_eq!(states(&house).await, [RouteState::Lapsed]);

    // The arbiter has it serve, as discovery brings it.
    house.discovery.run();
    house.discovery.is_old(None);
    house
        .until("discovery vouches for it", async || call().await.is_ok())
        .await;
}
