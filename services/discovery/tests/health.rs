//! Endpoints that no agent runs are asked whether they serve, and who they are: real servers, over TCP.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use support::{Copy, Messages, PATIENCE, memory, start};
use tether_discovery::{Check, Config, Health, PoolSource};
use tether_proto::common::{Endpoint, EndpointHealth};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::{ServingStatus, server::HealthReporter};

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

fn config(addresses: &[SocketAddr], health: Health) -> Config {
    let listed: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let pool = PoolSource {
        source: format!("static://{}", listed.join(",")),
        health: Some(Health {
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

fn often(check: Check) -> Health {
    Health {
        check,
        interval: Duration::from_millis(30),
        ..Health::default()
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
    let health = Health {
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
    let health = Health {
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
    let health = Health {
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
