//! Endpoints that no agent runs are asked whether they serve, and who they are: real servers, over TCP.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use support::{Copy, Messages, PATIENCE, memory, start};
use tether_discovery::{Check, Config, Health as Terms, PoolSource};
use tether_proto::common::{Endpoint, EndpointHealth};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, HealthCheckResponse, health_check_response,
        health_server::{Health, HealthServer},
    },
    server::HealthReporter,
};

/// A gRPC server that says how it is.
struct Grpc {
    address: SocketAddr,
    reporter: HealthReporter,
    serving: JoinHandle<()>,
}

impl Grpc {
    async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reporter, service) = tonic_health::server::health_reporter();
        let serve = Server::builder().add_service(service);
        let serving = tokio::spawn(async move {
            serve
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        let grpc = Self {
            address,
            reporter,
            serving,
        };
        grpc.says(ServingStatus::Serving).await;
        grpc
    }

    async fn says(&self, status: ServingStatus) {
        self.reporter.set_service_status("", status).await;
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn config(addresses: &[SocketAddr], health: Terms) -> Config {
    let listed: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let pool = PoolSource {
        source: format!("static://{}", listed.join(",")),
        health: Some(Terms {
            timeout: Duration::from_secs(2),
            ..health
        }),
        ..PoolSource::default()
    };
    Config {
        pools: BTreeMap::from([("train".to_owned(), pool)]),
        ..Config::default()
    }
}

fn often(check: Check) -> Terms {
    Terms {
        check,
        interval: Duration::from_millis(30),
        ..Terms::default()
    }
}

/// Waits until what is told is as it should be.
async fn until(watch: &mut Messages, copy: &mut Copy, wanted: impl Fn(&[&Endpoint]) -> bool) {
    let waiting = async {
        loop {
            let told: Vec<_> = copy.0.values().collect();
            if wanted(&told) {
                return;
            }
            copy.take(&watch.any().await);
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{:?}", copy.0);
}

fn all(endpoints: &[&Endpoint], health: EndpointHealth, count: usize) -> bool {
    endpoints.len() == count && endpoints.iter().all(|known| known.health() == health)
}

#[tokio::test]
async fn who_does_not_answer_is_never_told_and_who_answers_no_more_is_gone_until_it_does() {
    let (first, second, third) = (
        Grpc::start().await,
        Grpc::start().await,
        Grpc::start().await,
    );
    let gone = Grpc::start().await;
    let dead = gone.address;
    drop(gone);
    let addresses = [first.address, second.address, third.address, dead];
    let health = Terms {
        failures: 2,
        ..often(Check::Grpc)
    };
    let running = start(config(&addresses, health), memory()).await;
    let mut watch = running.watch("train", None).await;
    let mut copy = Copy::default();

    // The pool is not told before the first answers.
    let message = watch.next().await;
    copy.take(&message);
    if !message.unheard_pools.is_empty() {
        assert!(copy.0.is_empty());
        copy.take(&watch.next().await);
    }
    let told: Vec<_> = copy.0.values().collect();
    assert!(all(&told, EndpointHealth::Passing, 3), "{told:?}");

    second.says(ServingStatus::NotServing).await;
    until(&mut watch, &mut copy, |told| {
        all(told, EndpointHealth::Passing, 2)
    })
    .await;
    // Three of four fail: that is not believed, and told with a mark.
    first.says(ServingStatus::NotServing).await;
    let marked = |told: &[&Endpoint]| {
        let failing = told
            .iter()
            .filter(|known| known.health() == EndpointHealth::Failing);
        (told.len(), failing.count()) == (4, 3)
    };
    until(&mut watch, &mut copy, marked).await;
    first.says(ServingStatus::Serving).await;
    let _back = Grpc::at(dead).await;
    until(&mut watch, &mut copy, |told| {
        all(told, EndpointHealth::Passing, 3)
    })
    .await;
}

#[tokio::test]
async fn a_watched_one_is_believed_at_once() {
    let servers = [Grpc::start().await, Grpc::start().await];
    let addresses = [servers[0].address, servers[1].address];
    let health = Terms {
        interval: Duration::from_secs(600),
        ..often(Check::Watch)
    };
    let running = start(config(&addresses, health), memory()).await;
    let mut watch = running.watch("train", None).await;
    let mut copy = Copy::default();
    until(&mut watch, &mut copy, |told| {
        all(told, EndpointHealth::Passing, 2)
    })
    .await;

    servers[0].says(ServingStatus::NotServing).await;
    until(&mut watch, &mut copy, |told| told.len() == 1).await;
    servers[0].says(ServingStatus::Serving).await;
    until(&mut watch, &mut copy, |told| {
        all(told, EndpointHealth::Passing, 2)
    })
    .await;
}

/// A way to a server that takes connections, and carries nothing while it is shut: the server hangs, or is cut off.
async fn way_to(server: SocketAddr, is_open: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut is_open = is_open.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let carried = copy_bidirectional(&mut client, &mut server);
                tokio::pin!(carried);
                loop {
                    is_open.wait_for(|is_open| *is_open).await.unwrap();
                    tokio::select! {
                        _ = is_open.wait_for(|is_open| !is_open) => {}
                        _ = &mut carried => return,
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn one_that_is_watched_and_hangs_is_gone_until_it_answers() {
    let servers = [
        Grpc::start().await,
        Grpc::start().await,
        Grpc::start().await,
    ];
    let (way, is_open) = watch::channel(true);
    let hangs = way_to(servers[0].address, is_open).await;
    let addresses = [hangs, servers[1].address, servers[2].address];
    let mut config = config(&addresses, often(Check::Watch));
    let pool = config.pools.get_mut("train").unwrap();
    pool.health.as_mut().unwrap().timeout = Duration::from_millis(500);
    let running = start(config, memory()).await;
    let mut watch = running.watch("train", None).await;
    let mut copy = Copy::default();
    let three = |told: &[&Endpoint]| all(told, EndpointHealth::Passing, 3);
    until(&mut watch, &mut copy, three).await;

    way.send_replace(false);
    until(&mut watch, &mut copy, |told| told.len() == 2).await;
    way.send_replace(true);
    until(&mut watch, &mut copy, three).await;
}

/// Says that it serves, and in a header who it is; as somebody else it is started anew.
struct Named(watch::Receiver<&'static str>);

#[tonic::async_trait]
impl Health for Named {
    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(serving()))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut name = self.0.clone();
        let header = name.borrow_and_update().parse().unwrap();
        let ends = async move {
            name.changed().await.unwrap();
            Err(Status::unavailable("it is started anew"))
        };
        let told = stream::iter([Ok(serving())]).chain(stream::once(ends));
        let mut told = Response::new(told.boxed());
        told.metadata_mut().insert("x-instance", header);
        Ok(told)
    }
}

fn serving() -> HealthCheckResponse {
    let status = health_check_response::ServingStatus::Serving.into();
    HealthCheckResponse { status }
}

#[tokio::test]
async fn another_identity_of_a_watched_one_is_another_worker() {
    let (name, named) = watch::channel("one");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let serve = Server::builder().add_service(HealthServer::new(Named(named)));
    let serve = serve.serve_with_incoming(TcpListenerStream::new(listener));
    let mut serving = JoinSet::new();
    serving.spawn(async { serve.await.unwrap() });
    let health = Terms {
        identity_header: "x-instance".to_owned(),
        ..often(Check::Watch)
    };
    let running = start(config(&[at], health), memory()).await;
    let mut watch = running.watch("train", None).await;
    let mut copy = Copy::default();
    let passes = |told: &[&Endpoint]| all(told, EndpointHealth::Passing, 1);
    until(&mut watch, &mut copy, passes).await;
    let before = copy.0.values().next().cloned().unwrap();

    name.send_replace("two");
    let another = |told: &[&Endpoint]| passes(told) && told[0].worker != before.worker;
    until(&mut watch, &mut copy, another).await;
}

/// Answers each GET with a status, and says who it is.
async fn http(answers: Arc<Mutex<(u16, &'static str)>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (status, identity) = *answers.lock().unwrap();
            let answer = format!(
                "HTTP/1.1 {status} -\r\nx-instance: {identity}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            tokio::spawn(async move {
                let mut asked = [0; 1024];
                let _ = stream.read(&mut asked).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn another_identity_at_the_same_address_is_another_worker() {
    let answers = Arc::new(Mutex::new((200, "one")));
    let address = http(Arc::clone(&answers)).await;
    let health = Terms {
        path: "/health".to_owned(),
        identity_header: "x-instance".to_owned(),
        ..often(Check::Http)
    };
    let running = start(config(&[address], health), memory()).await;
    let mut watch = running.watch("train", None).await;
    let mut copy = Copy::default();
    until(&mut watch, &mut copy, |told| told.len() == 1).await;
    let before = copy.0.values().next().cloned().unwrap();

    answers.lock().unwrap().1 = "two";
    let another = |told: &[&Endpoint]| told.len() == 1 && told[0].worker != before.worker;
    until(&mut watch, &mut copy, another).await;

    let after = copy.0.values().next().unwrap();
    assert_eq!(after.address, before.address);
    answers.lock().unwrap().0 = 503;
    // The only one, so that a loss of it is one of most: it is told with a mark.
    until(&mut watch, &mut copy, |told| {
        all(told, EndpointHealth::Failing, 1)
    })
    .await;
}

#[tokio::test]
async fn a_port_that_takes_connections_passes_and_a_server_that_is_away_does_not() {
    let server = Grpc::start().await;
    let other = Grpc::start().await;
    let addresses = [server.address, other.address];
    let running = start(config(&addresses, often(Check::Tcp)), memory()).await;
    let mut watch = running.watch("train", None).await;
    let mut copy = Copy::default();
    until(&mut watch, &mut copy, |told| {
        all(told, EndpointHealth::Passing, 2)
    })
    .await;

    let address = server.address;
    drop(server);
    until(&mut watch, &mut copy, |told| told.len() == 1).await;
    let _back = Grpc::at(address).await;
    until(&mut watch, &mut copy, |told| {
        all(told, EndpointHealth::Passing, 2)
    })
    .await;
}

#[tokio::test]
async fn one_that_wants_tls_is_told_unchecked_and_not_taken_for_one_that_fails() {
    // Whoever is asked there does not answer.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr();
    let list = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    let entry = format!(
        r#"[{{"address": "{}", "protocol": "grpcs"}}]"#,
        closed.unwrap()
    );
    std::fs::write(list.path(), entry).unwrap();
    let mut config = config(&[], often(Check::Grpc));
    config.pools.get_mut("train").unwrap().source = format!("file://{}", list.path().display());
    let running = start(config, memory()).await;
    let mut watch = running.watch("train", None).await;
    let mut copy = Copy::default();

    until(&mut watch, &mut copy, |told| told.len() == 1).await;

    let told = copy.0.values().next().unwrap();
    assert_eq!(told.health(), EndpointHealth::Unchecked);
}
