//! A real admin port, asked as kubelets and Nomad ask.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::time::Duration;

use futures::StreamExt as _;
use tether_kit::{admin, channel, listen, serve};
use tether_types::Address;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

const SOON: Duration = Duration::from_secs(20);

struct Running {
    dir: tempfile::TempDir,
    one: watch::Sender<bool>,
    other: watch::Sender<bool>,
    stop: CancellationToken,
    over: CancellationToken,
    ended: JoinHandle<Result<(), serve::Error>>,
}

impl Running {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen::bind(&at(&dir), false).await.unwrap();
        let (one, other) = (watch::Sender::new(true), watch::Sender::new(true));
        let (stop, over) = (CancellationToken::new(), CancellationToken::new());
        let parts = vec![one.subscribe(), other.subscribe()];
        let ended = tokio::spawn(admin::serve(listener, parts, stop.clone(), over.clone()));
        Self {
            dir,
            one,
            other,
            stop,
            over,
            ended,
        }
    }

    async fn watch(&self, service: &str) -> Watched {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut client = HealthClient::new(channel::connect(&at(&self.dir)));
        Watched(client.watch(request).await.unwrap().into_inner())
    }

    /// The first line of what an HTTP/1.1 client is answered.
    async fn get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("a.sock"))
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        let read = timeout(SOON, stream.read_to_string(&mut text)).await;
        read.unwrap().unwrap();
        text.lines().next().unwrap_or_default().to_owned()
    }
}

fn at(dir: &tempfile::TempDir) -> Address {
    Address::Unix(dir.path().join("a.sock"))
}

struct Watched(Streaming<HealthCheckResponse>);

impl Watched {
    /// Waits until it is told.
    async fn until(&mut self, wanted: ServingStatus) {
        let told = async {
            while let Some(said) = self.0.next().await {
                if said.unwrap().status() == wanted {
                    return;
                }
            }
            panic!("it ended");
        };
        timeout(SOON, told).await.expect("it is told");
    }
}

#[tokio::test]
async fn a_process_is_ready_while_all_of_its_parts_are_and_lives_all_the_while() {
    let running = Running::start().await;
    let mut whole = running.watch("").await;
    let mut ready = running.watch("readiness").await;
    whole.until(ServingStatus::Serving).await;
    ready.until(ServingStatus::Serving).await;
    assert_eq!(running.get("/health/readiness").await, "HTTP/1.1 200 OK");

    running.other.send_replace(false);
    ready.until(ServingStatus::NotServing).await;
    whole.until(ServingStatus::NotServing).await;
    assert_eq!(
        running.get("/health/readiness").await,
        "HTTP/1.1 503 Service Unavailable"
    );
    assert_eq!(running.get("/health/liveness").await, "HTTP/1.1 200 OK");
    let mut lives = running.watch("liveness").await;
    lives.until(ServingStatus::Serving).await;

    running.other.send_replace(true);
    ready.until(ServingStatus::Serving).await;
    drop(running.one);
    ready.until(ServingStatus::NotServing).await;
}

#[tokio::test]
async fn one_that_is_asked_to_stop_is_not_ready_and_answers_until_it_is_over() {
    let running = Running::start().await;
    let mut ready = running.watch("readiness").await;
    ready.until(ServingStatus::Serving).await;

    running.stop.cancel();
    ready.until(ServingStatus::NotServing).await;
    assert_eq!(running.get("/health/liveness").await, "HTTP/1.1 200 OK");
    assert_eq!(running.get("/health/other").await, "HTTP/1.1 404 Not Found");
    assert_eq!(running.get("/").await, "HTTP/1.1 404 Not Found");

    drop(ready);
    running.over.cancel();
    let ended = timeout(SOON, running.ended).await.expect("it ends");
    ended.unwrap().unwrap();
}
