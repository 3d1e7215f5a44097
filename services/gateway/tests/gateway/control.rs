//! Calls to the arbiter and to discovery, the gateway's own services, and life without either.

use tether_gateway::{Config, Gateway, Listener};
use tether_proto::discovery::{
    WatchEndpointsRequest, discovery_service_client::DiscoveryServiceClient,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    client::{Client, soon},
    discovery::{sigkill, worker},
    house::{DIGITS, House, UNARY, reason},
    worker::Worker,
};

async fn channel(house: &House) -> Channel {
    let endpoint =
        Channel::from_shared(format!("http://{}", house.address)).expect("the gateway answers");
    endpoint.connect().await.expect("the gateway answers")
}

async fn health(house: &House) -> ServingStatus {
    let mut client = HealthClient::new(channel(house).await);
    let answer = client
        .check(HealthCheckRequest::default())
        .await
        .expect("the gateway answers");
    answer.into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn control_calls_reach_the_arbiter_and_discovery() {
    // The worker stands in for an arbiter: it answers with its own "no such method".
    let arbiter = Worker::start().await;
    let house = House::with_arbiter(Config::default(), &arbiter.address).await;
    let client = house.client().await;

    let status = client
        .unary("/tether.pool.v1.PoolService/Unary", &[], "")
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Unimplemented, "none of ours")
    );

    let mut discovery = DiscoveryServiceClient::new(channel(&house).await);
    let words = discovery
        .watch_endpoints(WatchEndpointsRequest::default())
        .await;
    let word = soon("a word", words.unwrap().get_mut().message())
        .await
        .unwrap()
        .unwrap();
    assert!(word.snapshot);
    assert_eq!(word.pools, ["digits"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_arbiter_control_calls_say_so_and_workers_are_reached() {
    let house = House::open().await;
    let _worker = house.worker(0).await;
    let client = house.client().await;

    let status = client
        .unary("/tether.pool.v1.PoolService/List", &[], "")
        .await
        .unwrap_err();

    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Unavailable, "ARBITER_UNREACHABLE")
    );
    let text = status.message();
    assert!(text.starts_with("cannot reach the arbiter at `unix:/nonexistent/arbiter.sock`"));
    assert!(
        text.ends_with("is `tether-arbiter` (or `tether up`) running?"),
        "{text}"
    );
    client.unary(UNARY, DIGITS, "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_discovery_calls_to_workers_say_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let nowhere = |name: &str| format!("unix:/nonexistent/{name}").parse().unwrap();
    let gateway = Gateway::build(Config::default(), vec![nowhere("a")], nowhere("d"));
    let stop = CancellationToken::new();
    let serving = tokio::spawn(gateway.serve(vec![Listener::Tcp(listener)], stop.clone()));

    let client = Client::connect(&address).await;
    let status = client.unary(UNARY, DIGITS, "").await.unwrap_err();

    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Unavailable, "DISCOVERY_UNREACHABLE")
    );
    assert!(
        status
            .message()
            .starts_with("cannot reach discovery at `unix:/nonexistent/d`")
    );
    drop(client);
    stop.cancel();
    soon("the gateway's end", serving).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn when_discovery_goes_the_last_set_serves_and_what_was_missed_is_caught_up() {
    let mut house = House::open().await;
    let mut first = house.worker(0).await;
    let client = house.client().await;

    house.discovery.kill();
    client.unary(UNARY, DIGITS, "").await.unwrap();
    first.kill();
    let second = Worker::start().await;
    house
        .discovery
        .gone(worker("digits", 0, 1), Some(sigkill()));
    house
        .discovery
        .up(worker("digits", 0, 2), &second.address, false);
    house.discovery.run();

    let answered = async || client.unary(UNARY, DIGITS, "").await.is_ok();
    house.until("the second worker is known", answered).await;
    assert_eq!(second.calls(), 1);
    let asked = house.discovery.asked();
    assert_eq!(asked.first().unwrap().resume_instance, "");
    let resumed = asked.last().unwrap();
    assert_eq!(
        (resumed.resume_instance.as_str(), resumed.resume_revision),
        ("first", 2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_serving_once_discovery_has_spoken_and_while_the_arbiter_is_there() {
    let alone = House::open().await;
    assert_eq!(health(&alone).await, ServingStatus::NotServing);

    let mut arbiter = Worker::start().await;
    let house = House::with_arbiter(Config::default(), &arbiter.address).await;
    let is = async |status| health(&house).await == status;
    house
        .until("health is serving", async || {
            is(ServingStatus::Serving).await
        })
        .await;

    arbiter.kill();
    house
        .until("health is not serving", async || {
            is(ServingStatus::NotServing).await
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services_the_gateway_stands_for() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let house = House::open().await;
    let mut client = ServerReflectionClient::new(channel(&house).await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };

    let answers = client
        .server_reflection_info(futures::stream::iter([request]))
        .await;
    let answer = soon("the list", answers.unwrap().get_mut().message())
        .await
        .unwrap()
        .unwrap();

    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("no list: {answer:?}");
    };
    let names: Vec<&str> = list
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for name in ["tether.pool.v1.PoolService", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
}
