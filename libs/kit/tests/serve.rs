//! A real server and a real client over a unix socket and over TCP.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _, stream};
use tether_kit::{channel, listen, serve};
use tether_proto::discovery::{
    WatchEndpointsRequest, WatchEndpointsResponse,
    discovery_service_client::DiscoveryServiceClient,
    discovery_service_server::{DiscoveryService, DiscoveryServiceServer},
};
use tether_types::{Address, Reason};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Answers once and then goes on for ever.
struct Endless;

type Responses = Pin<Box<dyn Stream<Item = Result<WatchEndpointsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DiscoveryService for Endless {
    type WatchEndpointsStream = Responses;

    async fn watch_endpoints(
        &self,
        request: Request<WatchEndpointsRequest>,
    ) -> Result<Response<Responses>, Status> {
        let peer = request.extensions().get::<listen::Peer>();
        let answer = WatchEndpointsResponse {
            instance: format!("{peer:?}"),
            ..Default::default()
        };
        let answers = stream::iter([Ok(answer)]).chain(stream::pending());
        Ok(Response::new(answers.boxed()))
    }
}

struct Running {
    address: Address,
    stop: CancellationToken,
    ended: JoinHandle<Result<(), serve::Error>>,
}

async fn start(address: &Address, drain: Duration) -> Running {
    let listener = listen::bind(address, false).await.unwrap();
    let address = listener.local_address().unwrap();
    let stop = CancellationToken::new();
    let service =
        DiscoveryServiceServer::new(Endless).max_decoding_message_size(serve::MESSAGE_LIMIT);
    let server = serve::Server::new(tether_proto::DESCRIPTORS).service(service);
    let ended = tokio::spawn(server.serve(listener, stop.clone(), drain));
    Running {
        address,
        stop,
        ended,
    }
}

#[tokio::test]
async fn a_service_is_reached_over_a_socket_and_over_tcp_and_says_it_is_healthy() {
    let root = tempfile::tempdir().unwrap();
    for address in [
        Address::Unix(root.path().join("t.sock")),
        "127.0.0.1:0".parse().unwrap(),
        "localhost:0".parse().unwrap(),
    ] {
        let running = start(&address, Duration::from_secs(5)).await;
        let channel = channel::connect(&running.address);

        for service in ["", "tether.discovery.v1.DiscoveryService"] {
            let request = HealthCheckRequest {
                service: service.to_owned(),
            };
            let health = HealthClient::new(channel.clone()).check(request).await;
            assert_eq!(health.unwrap().into_inner().status, 1, "{service}");
        }
        let mut client = DiscoveryServiceClient::new(channel);
        let request = WatchEndpointsRequest::default();
        let mut watch = client.watch_endpoints(request).await.unwrap().into_inner();
        let peer = watch.message().await.unwrap().unwrap().instance;
        let pid = format!("pid: Some({})", std::process::id());
        match address {
            Address::Unix(_) => assert!(peer.contains(&pid), "{peer}"),
            Address::Tcp { .. } => assert!(peer.contains("Address("), "{peer}"),
        }

        drop((watch, client));
        running.stop.cancel();
        running.ended.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_not_ready_says_so_and_that_it_lives() {
    let root = tempfile::tempdir().unwrap();
    let address = Address::Unix(root.path().join("t.sock"));
    let listener = listen::bind(&address, false).await.unwrap();
    let (stop, ready) = (CancellationToken::new(), watch::Sender::new(false));
    let server = serve::Server::new(tether_proto::DESCRIPTORS)
        .ready(ready.subscribe())
        .service(DiscoveryServiceServer::new(Endless));
    let ended = tokio::spawn(server.serve(listener, stop.clone(), Duration::ZERO));
    let channel = channel::connect(&address);
    let health = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut client = HealthClient::new(channel.clone());
        let watched = client.watch(request).await.unwrap();
        watched.into_inner().map(|said| said.unwrap().status)
    };
    let own = "tether.discovery.v1.DiscoveryService";
    let (mut whole, mut part) = (health("").await, health(own).await);
    let mut alive = health("grpc.health.v1.Health").await;

    let said = [&mut whole, &mut part, &mut alive].map(|health| health.next());
    assert_eq!(
        futures::future::join_all(said).await,
        [Some(2), Some(2), Some(1)]
    );
    ready.send_replace(true);
    assert_eq!((whole.next().await, part.next().await), (Some(1), Some(1)));
    ready.send_replace(false);
    assert_eq!((whole.next().await, part.next().await), (Some(2), Some(2)));

    stop.cancel();
    drop((whole, part, alive));
    ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_waits_for_the_drain_and_then_cuts_what_never_ends() {
    let root = tempfile::tempdir().unwrap();
    let drain = Duration::from_millis(300);
    let running = start(&Address::Unix(root.path().join("t.sock")), drain).await;
    let mut client = DiscoveryServiceClient::new(channel::connect(&running.address));
    let request = WatchEndpointsRequest::default();
    let mut watch = client.watch_endpoints(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();

    let asked = Instant::now();
    running.stop.cancel();
    running.ended.await.unwrap().unwrap();

    let took = asked.elapsed();
    assert!(took >= drain && took < Duration::from_secs(3), "{took:?}");
    let end = tokio::time::timeout(Duration::from_secs(3), watch.message()).await;
    assert!(end.expect("the client hears of it").is_err());
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_with_its_reason() {
    let root = tempfile::tempdir().unwrap();
    let running = start(&Address::Unix(root.path().join("t.sock")), Duration::ZERO).await;
    let mut client = DiscoveryServiceClient::new(channel::connect(&running.address));
    let large = |len| WatchEndpointsRequest {
        pool: "x".repeat(len),
        ..Default::default()
    };

    client
        .watch_endpoints(large(serve::MESSAGE_LIMIT - 64))
        .await
        .unwrap();
    let status = client
        .watch_endpoints(large(serve::MESSAGE_LIMIT + 64))
        .await
        .unwrap_err();

    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(
        tether_proto::reason_of(&status),
        Some(Reason::MessageTooLarge)
    );
    assert!(
        status.message().contains("the limit is: 8388608 bytes"),
        "{status:?}"
    );
    running.stop.cancel();
    running.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_burst_of_streams_is_not_taken_for_an_attack() {
    let root = tempfile::tempdir().unwrap();
    let running = start(&Address::Unix(root.path().join("t.sock")), Duration::ZERO).await;
    let channel = channel::connect(&running.address);
    let all_open = Arc::new(Notify::new());
    let mut tasks = Vec::new();

    // With small windows, h2 hangs up on a hundred small messages that nobody has read yet.
    for _ in 0..1000 {
        let mut client = DiscoveryServiceClient::new(channel.clone());
        let hold = Arc::clone(&all_open);
        let (opened, first) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let request = WatchEndpointsRequest::default();
            let mut watch = client.watch_endpoints(request).await.unwrap().into_inner();
            watch.message().await.unwrap().unwrap();
            let _ = opened.send(());
            hold.notified().await;
        });
        tasks.push(first);
    }
    let opened = tokio::time::timeout(Duration::from_secs(10), futures::future::join_all(tasks));

    assert!(
        opened
            .await
            .expect("every stream opens")
            .iter()
            .all(Result::is_ok)
    );
    all_open.notify_waiters();
    running.stop.cancel();
    running.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_named_in_the_failed_call() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nobody.sock");
    let channel = channel::connect(&Address::Unix(path.clone()));

    let request = WatchEndpointsRequest::default();
    let status = DiscoveryServiceClient::new(channel)
        .watch_endpoints(request)
        .await
        .unwrap_err();

    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        format!("{status:?}").contains(&path.display().to_string()),
        "{status:?}"
    );
}
