//! xDS as a client sees it on the wire: streams over a socket, on a store that changes under them.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{collections::BTreeMap, net::UdpSocket, sync::Arc, time::Duration};

use prost::Message as _;
use tempfile::TempDir;
use tether_discovery::{Config, Discovery, PoolSource, Xds};
use tether_kit::channel;
use tether_proto::common::{Endpoint, WorkerRef};
use tether_store::{MemoryStore, Store, Txn, keys};
use tether_types::{Address, PoolName};
use tether_xds::{
    Kind, NAMES_MAX,
    wire::{
        envoy::{
            config::endpoint::v3::ClusterLoadAssignment,
            service::{
                cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient,
                discovery::v3::{
                    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
                    DiscoveryResponse,
                    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
                },
                endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient,
            },
        },
        google::rpc::Status,
    },
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Streaming, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(15);

struct Running {
    channel: Channel,
    stop: CancellationToken,
    ran: JoinHandle<Result<(), tether_discovery::Error>>,
    _directory: TempDir,
}

async fn start(store: Arc<dyn Store>) -> Running {
    start_with(store, BTreeMap::new()).await
}

async fn start_with(store: Arc<dyn Store>, pools: BTreeMap<String, PoolSource>) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("xds.sock"));
    let config = Config {
        xds: Xds {
            listen: Some(address.to_string()),
            ..Xds::default()
        },
        pools,
        ..Config::default()
    };
    let listener = config.xds.bind().await.unwrap().unwrap();
    let discovery = Discovery::build(&config, store).unwrap();
    let stop = CancellationToken::new();
    let server = discovery.xds().unwrap();
    tokio::spawn(server.serve(listener, stop.clone(), PATIENCE));
    Running {
        channel: channel::connect(&address),
        ran: tokio::spawn(discovery.run(stop.clone())),
        stop,
        _directory: directory,
    }
}

/// A stream, and what is sent on it.
struct Talk<S, T> {
    requests: mpsc::UnboundedSender<S>,
    responses: Streaming<T>,
}

impl Running {
    fn client(&self) -> AggregatedDiscoveryServiceClient<Channel> {
        AggregatedDiscoveryServiceClient::new(self.channel.clone())
    }

    async fn sotw(&self) -> Talk<DiscoveryRequest, DiscoveryResponse> {
        let mut client = self.client();
        Talk::begin(async |requests| client.stream_aggregated_resources(requests).await).await
    }

    async fn delta(&self) -> Talk<DeltaDiscoveryRequest, DeltaDiscoveryResponse> {
        let mut client = self.client();
        Talk::begin(async |requests| client.delta_aggregated_resources(requests).await).await
    }
}

impl<S, T> Talk<S, T> {
    async fn begin(
        call: impl AsyncFnOnce(
            UnboundedReceiverStream<S>,
        ) -> Result<Response<Streaming<T>>, tonic::Status>,
    ) -> Self {
        let (requests, stream) = mpsc::unbounded_channel();
        let responses = call(UnboundedReceiverStream::new(stream)).await;
        Self {
            requests,
            responses: responses.unwrap().into_inner(),
        }
    }

    fn say(&self, request: S) {
        assert!(self.requests.send(request).is_ok(), "the stream is open");
    }

    async fn hear(&mut self) -> T {
        let response = timeout(PATIENCE, self.responses.message()).await;
        response.expect("a response comes").unwrap().unwrap()
    }
}

fn wants(kind: Kind, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DiscoveryRequest::default()
    }
}

fn takes(response: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        response_nonce: response.nonce.clone(),
        version_info: response.version_info.clone(),
        ..wants(Kind::of(&response.type_url).unwrap(), names)
    }
}

fn subscribes(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ports(value: &[u8]) -> Vec<u32> {
    let assignment = ClusterLoadAssignment::decode(value).unwrap();
    let told = assignment.endpoints.into_iter();
    let told = told.flat_map(|zone| zone.lb_endpoints);
    let addresses = told.map(|told| told.endpoint.unwrap().address.unwrap());
    let ports = addresses.map(|address| address.socket_address.unwrap().port_value);
    ports.collect()
}

fn pool() -> PoolName {
    PoolName::new("train").unwrap()
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

/// An endpoint serves at `port`, with text that makes the message as long as is wanted.
async fn serves(store: &Arc<dyn Store>, slot: u32, port: u16, zone: &str) {
    let endpoint = Endpoint {
        worker: Some(WorkerRef {
            pool: "train".to_owned(),
            slot,
            incarnation: u64::from(port),
        }),
        address: format!("127.0.0.1:{port}"),
        zone: zone.to_owned(),
        ..Endpoint::default()
    };
    let txn = Txn::new()
        .put(keys::pool(&pool()), "")
        .put(keys::endpoint(&pool(), slot), endpoint.encode_to_vec());
    store.commit(txn).await.unwrap();
}

#[tokio::test]
async fn a_client_that_names_a_pool_is_told_all_that_leads_to_its_endpoints() {
    let store = memory();
    serves(&store, 0, 7000, "").await;
    let running = start(Arc::clone(&store)).await;
    let mut talk = running.sotw().await;
    for kind in [Kind::Listener, Kind::Route, Kind::Cluster, Kind::Endpoints] {
        talk.say(wants(kind, &["train"]));
        let told = talk.hear().await;
        assert_eq!(told.type_url, kind.type_url());
        assert_eq!(told.resources.len(), 1);
        assert_eq!(told.resources[0].type_url, kind.type_url());
        talk.say(takes(&told, &["train"]));
    }

    serves(&store, 1, 7001, "").await;

    let told = talk.hear().await;
    assert_eq!(told.type_url, Kind::Endpoints.type_url());
    assert_eq!(ports(&told.resources[0].value), [7000, 7001]);
}

#[tokio::test]
async fn a_refusal_is_not_answered_and_what_changes_then_is_told() {
    let store = memory();
    serves(&store, 0, 7000, "").await;
    let running = start(Arc::clone(&store)).await;
    let mut talk = running.sotw().await;
    talk.say(wants(Kind::Endpoints, &["train"]));
    let told = talk.hear().await;

    talk.say(DiscoveryRequest {
        error_detail: Some(Status {
            code: 3,
            message: "it is not to my liking".to_owned(),
        }),
        ..takes(&told, &["train"])
    });
    // Were the refusal answered, that would come before the answer to this.
    talk.say(wants(Kind::Route, &["train"]));
    let next = talk.hear().await;
    assert_eq!(next.type_url, Kind::Route.type_url());
    talk.say(takes(&next, &["train"]));

    serves(&store, 0, 7001, "").await;
    let told = talk.hear().await;
    assert_eq!(ports(&told.resources[0].value), [7001]);
}

#[tokio::test]
async fn one_that_comes_back_to_a_discovery_that_was_restarted_is_told_only_what_it_missed() {
    let store = memory();
    serves(&store, 0, 7000, "").await;
    let running = start(Arc::clone(&store)).await;
    let mut talk = running.delta().await;
    let mut knows = Vec::new();
    for kind in [Kind::Cluster, Kind::Endpoints] {
        let names: &[&str] = match kind {
            Kind::Endpoints => &["train"],
            _ => &[],
        };
        talk.say(subscribes(kind, names));
        let told = talk.hear().await;
        knows.push((kind, names, told.resources[0].version.clone()));
        talk.say(DeltaDiscoveryRequest {
            response_nonce: told.nonce,
            ..subscribes(kind, &[])
        });
    }
    running.stop.cancel();
    assert!(
        talk.responses
            .message()
            .await
            .is_ok_and(|end| end.is_none())
    );
    running.ran.await.unwrap().unwrap();

    let again = start(Arc::clone(&store)).await;
    let mut talk = again.delta().await;
    for (kind, names, version) in knows {
        talk.say(DeltaDiscoveryRequest {
            initial_resource_versions: [("train".to_owned(), version)].into(),
            ..subscribes(kind, names)
        });
    }
    talk.say(subscribes(Kind::Route, &["train"]));
    let told = talk.hear().await;
    assert_eq!(told.type_url, Kind::Route.type_url(), "the rest is known");
    serves(&store, 0, 7001, "").await;

    let told = talk.hear().await;
    let resource = told.resources[0].resource.as_ref().unwrap();
    assert_eq!(ports(&resource.value), [7001]);
}

#[tokio::test]
async fn a_pool_is_not_told_to_be_empty_before_its_source_has_answered() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let source = |source: String| PoolSource {
        source,
        ..PoolSource::default()
    };
    let silent_one = source(format!(
        "dns://{}/workers.example:7000",
        silent.local_addr().unwrap()
    ));
    let fixed = source("static://127.0.0.1:7001".to_owned());
    let pools = [
        ("silent".to_owned(), silent_one),
        ("fixed".to_owned(), fixed),
    ];
    let running = start_with(memory(), pools.into()).await;
    let mut talk = running.sotw().await;

    talk.say(wants(Kind::Endpoints, &["silent", "fixed"]));
    let told = talk.hear().await;
    let told: Vec<_> = told.resources.iter().map(|it| ports(&it.value)).collect();
    assert_eq!(told, [[7001]]);
    talk.say(wants(Kind::Cluster, &[]));
    assert_eq!(talk.hear().await.resources.len(), 2, "both are there");
}

#[tokio::test]
async fn a_slow_client_is_told_the_last_word_and_slows_nobody() {
    let store = memory();
    serves(&store, 0, 1, "").await;
    let running = start(Arc::clone(&store)).await;
    let mut slow = running.delta().await;
    slow.say(subscribes(Kind::Endpoints, &["train"]));
    let first = slow.hear().await;
    let mut quick = running.delta().await;
    quick.say(subscribes(Kind::Endpoints, &["train"]));
    let mut told = quick.hear().await;

    // The slow one has not answered; the quick one is told of each change at once.
    for port in 2..=300 {
        quick.say(DeltaDiscoveryRequest {
            response_nonce: told.nonce.clone(),
            ..subscribes(Kind::Endpoints, &[])
        });
        serves(&store, 0, port, "").await;
        told = quick.hear().await;
        let resource = told.resources[0].resource.as_ref().unwrap();
        assert_eq!(ports(&resource.value), [u32::from(port)]);
    }

    slow.say(DeltaDiscoveryRequest {
        response_nonce: first.nonce,
        ..subscribes(Kind::Endpoints, &[])
    });
    let last = slow.hear().await;
    let resource = last.resources[0].resource.as_ref().unwrap();
    assert_eq!(ports(&resource.value), [300], "nothing was kept for it");
}

#[tokio::test]
async fn thousands_of_streams_are_told_of_a_change() {
    const STREAMS: usize = 2000;
    let store = memory();
    serves(&store, 0, 1, "").await;
    let running = start(Arc::clone(&store)).await;
    let mut talks = Vec::new();
    for _ in 0..STREAMS {
        let mut talk = running.sotw().await;
        talk.say(wants(Kind::Endpoints, &["train"]));
        let told = talk.hear().await;
        talk.say(takes(&told, &["train"]));
        talks.push(talk);
    }

    serves(&store, 0, 2, "").await;

    for talk in &mut talks {
        let told = talk.hear().await;
        assert_eq!(ports(&told.resources[0].value), [2]);
    }
}

#[tokio::test]
async fn clusters_and_endpoints_have_services_of_their_own() {
    let store = memory();
    serves(&store, 0, 7000, "").await;
    let running = start(store).await;
    let mut clusters = ClusterDiscoveryServiceClient::new(running.channel.clone());
    let mut clusters = Talk::begin(async |requests| clusters.stream_clusters(requests).await).await;
    clusters.say(DiscoveryRequest::default());
    let told = clusters.hear().await;
    assert_eq!(told.type_url, Kind::Cluster.type_url());

    let mut endpoints = EndpointDiscoveryServiceClient::new(running.channel.clone());
    let mut endpoints =
        Talk::begin(async |requests| endpoints.stream_endpoints(requests).await).await;
    endpoints.say(wants(Kind::Endpoints, &["train"]));
    let told = endpoints.hear().await;
    assert_eq!(ports(&told.resources[0].value), [7000]);
}

#[tokio::test]
async fn a_stream_that_wants_too_much_ends_and_says_why() {
    let running = start(memory()).await;
    let mut talk = running.sotw().await;
    let names: Vec<_> = (0..=NAMES_MAX).map(|name| name.to_string()).collect();

    talk.say(DiscoveryRequest {
        resource_names: names,
        ..wants(Kind::Endpoints, &[])
    });

    let refused = timeout(PATIENCE, talk.responses.message()).await;
    let refused = refused.expect("it is refused").unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("ask for all"), "{refused}");
}

#[test]
fn an_address_that_others_can_reach_is_refused_unless_it_is_meant() {
    let config = |listen: &str, insecure| Config {
        xds: Xds {
            listen: Some(listen.to_owned()),
            insecure,
            ..Xds::default()
        },
        ..Config::default()
    };

    let refused = config("0.0.0.0:18000", false).check().unwrap_err();
    assert_eq!(refused.key, "discovery.xds.listen");
    assert!(refused.why.contains("plain text"), "{refused}");
    let none = config("18000", false).check().unwrap_err();
    assert_eq!(none.key, "discovery.xds.listen");
    config("0.0.0.0:18000", true).check().unwrap();
    config("127.0.0.1:18000", false).check().unwrap();
    Config::default().check().unwrap();
}
