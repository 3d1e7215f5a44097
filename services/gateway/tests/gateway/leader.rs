//! Several arbiters, of which one leads at a time.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use tether_gateway::Config;
use tether_proto::{
    Failure, NotLeader,
    session::{
        CloseSessionRequest, CloseSessionResponse, KeepAliveRequest, KeepAliveResponse,
        ListSessionsRequest, ListSessionsResponse, OpenSessionRequest, OpenSessionResponse,
        Session,
        session_service_client::SessionServiceClient,
        session_service_server::{SessionService, SessionServiceServer},
    },
};
use tether_types::Reason;
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    client::soon,
    house::{House, reason},
};

/// What an arbiter says when it is asked.
#[derive(Debug, Clone)]
enum Says {
    /// That it leads.
    Leads,
    /// That it does not, and where the leader is.
    Standby(Option<String>),
}

#[derive(Debug, Clone)]
struct Service {
    name: String,
    says: Arc<Mutex<Says>>,
}

impl Service {
    fn led(&self) -> Result<(), Status> {
        let says = self.says.lock().expect("no test panicked").clone();
        match says {
            Says::Leads => Ok(()),
            Says::Standby(leader) => {
                let leader = leader.map(|leader| leader.parse().expect("it is an address"));
                Err(Failure::from(NotLeader { leader }).into())
            }
        }
    }
}

#[tonic::async_trait]
impl SessionService for Service {
    async fn open_session(
        &self,
        _: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type KeepAliveStream = Pin<Box<dyn Stream<Item = Result<KeepAliveResponse, Status>> + Send>>;

    async fn keep_alive(
        &self,
        request: Request<Streaming<KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        self.led()?;
        let answers = request.into_inner().map(|beat| {
            beat.map(|beat| KeepAliveResponse {
                seq: beat.seq,
                ..KeepAliveResponse::default()
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn close_session(
        &self,
        _: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    /// One session, with the name of who was asked.
    async fn list_sessions(
        &self,
        _: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        self.led()?;
        let session = Session {
            owner: self.name.clone(),
            ..Session::default()
        };
        Ok(Response::new(ListSessionsResponse {
            sessions: vec![session],
        }))
    }
}

struct Arbiter {
    address: String,
    says: Arc<Mutex<Says>>,
    health: HealthReporter,
    runtime: Option<Runtime>,
}

impl Arbiter {
    /// Begins as a standby that knows of no leader.
    async fn start(name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("the runtime starts");
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("there is a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let listener = listener.into_std().expect("it is a socket");
        let says = Arc::new(Mutex::new(Says::Standby(None)));
        let (name, said) = (name.to_owned(), Arc::clone(&says));
        let service = SessionServiceServer::new(Service { name, says: said });
        let (health, healthy) = tonic_health::server::health_reporter();
        health
            .set_service_status("", ServingStatus::NotServing)
            .await;
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("the runtime has IO");
            let server = Server::builder().add_service(service).add_service(healthy);
            server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        });
        Self {
            address,
            says,
            health,
            runtime: Some(runtime),
        }
    }

    /// What calls are told, and what health is told.
    async fn says(&self, says: Says) {
        let status = match says {
            Says::Leads => ServingStatus::Serving,
            Says::Standby(_) => ServingStatus::NotServing,
        };
        *self.says.lock().expect("no test panicked") = says;
        self.health.set_service_status("", status).await;
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Scene {
    house: House,
    arbiters: Vec<Arbiter>,
    sessions: SessionServiceClient<Channel>,
}

impl Scene {
    async fn start() -> Self {
        let mut arbiters = Vec::new();
        for name in ["a", "b", "c"] {
            arbiters.push(Arbiter::start(name).await);
        }
        let addresses = arbiters.iter().map(|arbiter| arbiter.address.clone());
        Self::at(addresses.collect(), arbiters).await
    }

    /// A gateway that knows of these addresses.
    async fn at(addresses: Vec<String>, arbiters: Vec<Arbiter>) -> Self {
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        let house = House::with_arbiters(Config::default(), &addresses).await;
        let endpoint = Channel::from_shared(format!("http://{}", house.address));
        let channel = endpoint.expect("it is a URL").connect_lazy();
        Self {
            house,
            arbiters,
            sessions: SessionServiceClient::new(channel),
        }
    }

    /// Who answers.
    async fn ask(&self) -> Result<String, Status> {
        let mut sessions = self.sessions.clone();
        let asked = sessions.list_sessions(ListSessionsRequest {});
        let answer = soon("an answer", asked).await?.into_inner();
        Ok(answer.sessions[0].owner.clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_a_standby_refuses_is_made_again_where_it_points() {
    let scene = Scene::start().await;
    let third = scene.arbiters[2].address.clone();
    for standby in &scene.arbiters[..2] {
        standby.says(Says::Standby(Some(third.clone()))).await;
    }
    scene.arbiters[2].says(Says::Leads).await;

    assert_eq!(scene.ask().await.unwrap(), "c");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_hint_every_arbiter_is_asked_and_without_a_leader_the_call_says_so() {
    let scene = Scene::start().await;

    let refused = scene.ask().await.unwrap_err();
    assert_eq!(reason(&refused), Reason::NotLeader.word());

    scene.arbiters[1].says(Says::Leads).await;
    assert_eq!(scene.ask().await.unwrap(), "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_a_standby_refuses_goes_to_the_leader_when_it_is_opened_again() {
    let scene = Scene::start().await;
    let third = scene.arbiters[2].address.clone();
    scene.arbiters[0].says(Says::Standby(Some(third))).await;
    scene.arbiters[2].says(Says::Leads).await;
    let open = async || {
        let beat = KeepAliveRequest {
            seq: 7,
            ..KeepAliveRequest::default()
        };
        let beats = stream::iter([beat]).chain(stream::pending());
        let answers = scene.sessions.clone().keep_alive(beats).await?;
        answers.into_inner().message().await
    };

    // The gateway may be about to ask the one that has no hint, and finds out by itself meanwhile: each refusal
    // leads on to another.
    let answer = async {
        loop {
            match open().await {
                Ok(answer) => return answer,
                Err(refused) => assert_eq!(reason(&refused), Reason::NotLeader.word()),
            }
        }
    };
    let answer = soon("an answer of the leader", answer).await;

    assert_eq!(answer.unwrap().seq, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_when_the_leader_is_killed_and_another_takes_over() {
    let mut scene = Scene::start().await;
    scene.arbiters[0].says(Says::Leads).await;
    assert_eq!(scene.ask().await.unwrap(), "a");

    scene.arbiters[0].kill();
    scene.arbiters[1].says(Says::Leads).await;

    let found = async || scene.ask().await.is_ok_and(|name| name == "b");
    scene.house.until("the other one is found", found).await;
}

/// As a process that was stopped: it takes connections and calls, and says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_for_a_leader_that_hangs_is_told_and_the_next_one_finds_another() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let leader = Arbiter::start("b").await;
    leader.says(Says::Leads).await;
    let addresses = vec![address, leader.address.clone()];
    let scene = Scene::at(addresses, vec![leader]).await;
    let start = tokio::time::Instant::now();

    let told = scene.ask().await;

    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    if let Err(told) = told {
        assert_eq!(reason(&told), Reason::ArbiterUnreachable.word());
    }
    let found = async || scene.ask().await.is_ok_and(|name| name == "b");
    scene.house.until("the other one is found", found).await;
}
