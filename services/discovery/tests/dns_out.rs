//! DNS as clients without our protocol ask it, over UDP and TCP on loopback.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Edns, Message, Query, ResponseCode},
        rr::{DNSClass, Name, RData, RecordType},
    },
};
use prost::Message as _;
use tether_discovery::{Check, Config, Discovery, DnsOut, Health, PoolSource};
use tether_proto::common::{Endpoint, WorkerRef};
use tether_store::{MemoryStore, Store, Txn, keys, open};
use tether_types::PoolName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

/// More than any of these pools has.
const SLOTS: u32 = 1_600;

/// Discovery that answers DNS, until it is dropped.
struct Running {
    store: Arc<dyn Store>,
    at: SocketAddr,
    running: JoinHandle<()>,
}

impl Running {
    async fn start(store: Arc<dyn Store>) -> Self {
        Self::with(BTreeMap::new(), store).await
    }

    /// The same, with pools that have sources of their own.
    async fn with(pools: BTreeMap<String, PoolSource>, store: Arc<dyn Store>) -> Self {
        let config = Config {
            pools,
            dns: DnsOut {
                listen: Some("127.0.0.1:0".to_owned()),
                ..DnsOut::default()
            },
            ..Config::default()
        };
        let ports = config.dns.bind().await.unwrap().unwrap();
        let at = ports.address().unwrap();
        let mut discovery = Discovery::build(&config, Arc::clone(&store)).unwrap();
        discovery.answer_dns(Some(ports));
        let running =
            tokio::spawn(async { discovery.run(CancellationToken::new()).await.unwrap() });
        Self { store, at, running }
    }

    /// Has the store say that these serve a pool, and nobody else.
    async fn serve(&self, pool: &str, addresses: &[&str]) {
        let pool = PoolName::new(pool).unwrap();
        let mut txn = Txn::new().put(keys::pool(&pool), Vec::new());
        for (slot, address) in (0..SLOTS).zip(
            addresses
                .iter()
                .copied()
                .map(Some)
                .chain(std::iter::repeat(None)),
        ) {
            let key = keys::endpoint(&pool, slot);
            let Some(address) = address else {
                txn = txn.delete(key);
                continue;
            };
            let endpoint = Endpoint {
                worker: Some(WorkerRef {
                    pool: pool.to_string(),
                    slot,
                    incarnation: 1,
                }),
                address: address.to_owned(),
                ..Endpoint::default()
            };
            txn = txn.put(key, endpoint.encode_to_vec());
        }
        self.store.commit(txn).await.unwrap();
    }

    fn resolver(&self) -> TokioResolver {
        let mut server = NameServerConfig::udp_and_tcp(self.at.ip());
        for connection in &mut server.connections {
            connection.port = self.at.port();
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().cache_size = 0;
        builder.build().unwrap()
    }

    /// One datagram there and one back.
    async fn ask(&self, change: impl FnOnce(&mut Message)) -> (Message, usize) {
        let bytes = query(change).to_vec().unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.send_to(&bytes, self.at).await.unwrap();
        let mut buffer = vec![0; 65_536];
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        let length = received.expect("an answer comes").unwrap();
        (Message::from_vec(&buffer[..length]).unwrap(), length)
    }

    async fn ask_over_tcp(&self, change: impl FnOnce(&mut Message)) -> Message {
        let bytes = query(change).to_vec().unwrap();
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        stream
            .write_u16(u16::try_from(bytes.len()).unwrap())
            .await
            .unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// A question for the addresses of `train`, or whatever is made of it.
fn query(change: impl FnOnce(&mut Message)) -> Message {
    let mut message = Message::query();
    let name = Name::from_ascii("train.default.tether.").unwrap();
    message.queries.push(Query::query(name, RecordType::A));
    change(&mut message);
    message
}

/// Waits until the resolver finds these addresses.
async fn finds(resolver: &TokioResolver, name: &str, expected: &[&str]) {
    let expected: BTreeSet<IpAddr> = expected.iter().map(|ip| ip.parse().unwrap()).collect();
    let looking = async {
        loop {
            if let Ok(found) = resolver.lookup_ip(name).await {
                let found: BTreeSet<IpAddr> = found.iter().collect();
                if found == expected {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_| panic!("`{name}` never has {expected:?}"));
}

#[tokio::test]
async fn a_resolver_finds_a_pools_workers_and_their_ports_and_follows_a_change() {
    let running = Running::start(Arc::new(MemoryStore::new())).await;
    let resolver = running.resolver();
    running
        .serve(
            "train",
            &[
                "10.0.0.1:7001",
                "10.0.0.2:7002",
                "[fd00::1]:7003",
                "unix:/a",
            ],
        )
        .await;
    let all = ["10.0.0.1", "10.0.0.2", "fd00::1"];
    finds(&resolver, "train.default.tether.", &all).await;
    let six = resolver.ipv6_lookup("train.default.tether.").await.unwrap();
    assert_eq!(six.answers().len(), 1);
    assert_eq!(six.answers()[0].ttl, 1);

    running
        .serve("train", &["10.0.0.2:7002", "10.0.0.3:7001"])
        .await;
    finds(
        &resolver,
        "train.default.tether.",
        &["10.0.0.2", "10.0.0.3"],
    )
    .await;

    // As our own kind of source takes it: with ports, and each target asked for or told.
    let source = format!("dns://train.default.tether?srv=1&servers={}", running.at);
    let mut watch = tether_discovery_backends::open(&source).unwrap();
    let answer = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
    let targets = answer.unwrap().unwrap().targets;
    let targets: Vec<_> = targets.keys().map(ToString::to_string).collect();
    assert_eq!(targets, ["10.0.0.2:7002", "10.0.0.3:7001"]);
}

#[tokio::test]
async fn who_does_not_serve_is_not_named_unless_most_others_do_not_either() {
    let hosts = ["127.0.0.11", "127.0.0.12", "127.0.0.13"];
    let mut listeners = Vec::new();
    for host in hosts {
        listeners.push(TcpListener::bind((host, 0)).await.unwrap());
    }
    let listed = listeners.iter().map(|at| at.local_addr().unwrap());
    let listed: Vec<_> = listed.map(|at| at.to_string()).collect();
    let pool = PoolSource {
        source: format!("static://{}", listed.join(",")),
        health: Some(Health {
            check: Check::Tcp,
            interval: Duration::from_millis(30),
            ..Health::default()
        }),
        ..PoolSource::default()
    };
    let pools = BTreeMap::from([("train".to_owned(), pool)]);
    let running = Running::with(pools, Arc::new(MemoryStore::new())).await;
    let resolver = running.resolver();
    finds(&resolver, "train.default.tether.", &hosts).await;

    listeners.remove(0);
    finds(&resolver, "train.default.tether.", &hosts[1..]).await;

    // Now it is the way there that is more likely at fault.
    listeners.remove(0);
    finds(&resolver, "train.default.tether.", &hosts).await;
}

#[tokio::test]
async fn an_unknown_pool_is_no_name_and_nobody_is_no_data_and_both_say_for_how_long() {
    let running = Running::start(Arc::new(MemoryStore::new())).await;
    let resolver = running.resolver();
    running.serve("train", &["10.0.0.1:1"]).await;
    finds(&resolver, "train.default.tether.", &["10.0.0.1"]).await;
    running.serve("train", &["unix:/a"]).await;
    let none = |name: &'static str| {
        let resolver = &resolver;
        async move {
            loop {
                match resolver.ipv4_lookup(name).await {
                    Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                        return (none.response_code, none.negative_ttl);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, none("train.default.tether.")).await;
    assert_eq!(waited.unwrap(), (ResponseCode::NoError, Some(1)));
    let unknown = none("nobody.default.tether.").await;
    assert_eq!(unknown, (ResponseCode::NXDomain, Some(1)));
}

#[tokio::test]
async fn an_answer_that_does_not_fit_a_datagram_is_whole_over_tcp() {
    let running = Running::start(Arc::new(MemoryStore::new())).await;
    let all: Vec<String> = (0..300)
        .map(|number| format!("10.0.{}.{}:1", number / 200, number % 200 + 1))
        .collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    running.serve("train", &all).await;
    let resolver = running.resolver();
    let ips: Vec<&str> = all
        .iter()
        .map(|address| address.trim_end_matches(":1"))
        .collect();
    finds(&resolver, "train.default.tether.", &ips).await;

    for (asked, size) in [
        (None, 512),
        (Some(1_000), 1_000),
        (Some(60_000), 1_232),
        (Some(10), 512),
    ] {
        let (answer, length) = running
            .ask(|message| {
                message.edns = asked.map(|size| {
                    let mut edns = Edns::new();
                    edns.set_max_payload(size);
                    edns
                });
            })
            .await;
        assert!(answer.metadata.truncation, "{asked:?}");
        assert!(length <= size, "{asked:?}: {length}");
        assert_eq!(answer.edns.is_some(), asked.is_some());
    }
    let whole = running.ask_over_tcp(|_| {}).await;
    assert_eq!(
        (whole.answers.len(), whole.metadata.truncation),
        (300, false)
    );
    let services = running.ask_over_tcp(|message| {
        message.queries[0].set_query_type(RecordType::SRV);
    });
    let services = services.await;
    assert_eq!(
        (services.answers.len(), services.additionals.len()),
        (300, 300)
    );
    // In another order each time.
    let again = running.ask_over_tcp(|_| {}).await;
    assert_ne!(again.answers, whole.answers);
}

#[tokio::test]
async fn more_workers_than_the_longest_message_can_name_are_a_choice_of_them_and_none_is_cut() {
    let running = Running::start(Arc::new(MemoryStore::new())).await;
    let all: Vec<String> = (0..1_500)
        .map(|number| format!("10.0.{}.{}:1", number / 200, number % 200 + 1))
        .collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    running.serve("train", &all).await;
    let services = |message: &mut Message| {
        message.queries[0].set_query_type(RecordType::SRV);
    };
    let told = async {
        loop {
            let answer = running.ask_over_tcp(services).await;
            if answer.metadata.response_code == ResponseCode::NoError {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = tokio::time::timeout(PATIENCE, told).await.unwrap();

    assert!(!answer.metadata.truncation);
    // Of the thousand taken most have room, and nothing else.
    let count = answer.answers.len();
    assert!(
        (500..1_000).contains(&count) && answer.additionals.is_empty(),
        "{count}"
    );

    // Whoever asks again is told of the same, in another order.
    let again = running.ask_over_tcp(services).await;
    let set = |message: &Message| -> BTreeSet<String> {
        let answers = message.answers.iter();
        answers.map(|record| record.data.to_string()).collect()
    };
    assert_eq!(set(&again), set(&answer));
    assert_ne!(again.answers, answer.answers);
}

#[tokio::test]
async fn connections_that_ask_nothing_are_bounded_and_closed_and_others_wait_for_their_turn() {
    let running = Running::start(Arc::new(MemoryStore::new())).await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(TcpStream::connect(running.at).await.unwrap());
    }

    let answer = tokio::time::timeout(PATIENCE, running.ask_over_tcp(|_| {})).await;

    assert_eq!(
        answer.unwrap().metadata.response_code,
        ResponseCode::NXDomain
    );
    let is_closed = |stream: TcpStream| {
        let mut stream = stream.into_std().unwrap();
        std::io::Read::read(&mut stream, &mut [0]).is_ok_and(|bytes| bytes == 0)
    };
    let closed = idle
        .into_iter()
        .filter_map(|stream| is_closed(stream).then_some(()));
    assert!(closed.count() > 0, "its turn came when another's was over");
}

#[tokio::test]
async fn what_is_none_of_its_business_is_refused() {
    let running = Running::start(Arc::new(MemoryStore::new())).await;
    running.serve("train", &["10.0.0.1:1"]).await;
    finds(&running.resolver(), "train.default.tether.", &["10.0.0.1"]).await;

    let other = |message: &mut Message| {
        let name = Name::from_ascii("example.com.").unwrap();
        message.queries = vec![Query::query(name, RecordType::A)];
    };
    let chaos = |message: &mut Message| {
        message.queries[0].set_query_class(DNSClass::CH);
    };
    for (change, code) in [
        (&other as &dyn Fn(&mut Message), ResponseCode::Refused),
        (&chaos, ResponseCode::Refused),
        (&|message| message.queries.clear(), ResponseCode::FormErr),
        (
            &|message| message.metadata.op_code = hickory_resolver::proto::op::OpCode::Notify,
            ResponseCode::NotImp,
        ),
        (
            &|message| {
                let mut edns = Edns::new();
                edns.set_version(1);
                message.edns = Some(edns);
            },
            ResponseCode::BADVERS,
        ),
    ] {
        let (answer, _) = running.ask(change).await;
        // One number has two names.
        assert_eq!(u16::from(answer.metadata.response_code), u16::from(code));
        assert!(answer.answers.is_empty());
    }
    let (soa, _) = running
        .ask(|message| {
            let apex = Name::from_ascii("TETHER.").unwrap();
            message.queries = vec![Query::query(apex, RecordType::SOA)];
        })
        .await;
    assert!(matches!(&soa.answers[0].data, RData::SOA(_)) && soa.metadata.authoritative);
}

#[tokio::test]
async fn before_the_store_was_read_nothing_is_denied() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = nobody.local_addr().unwrap();
    let store = open(&format!("etcd://{nobody}")).await.unwrap();
    let running = Running::start(store).await;

    let (answer, _) = running.ask(|_| {}).await;

    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_names_it() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let config = DnsOut {
        listen: Some(taken.local_addr().unwrap().to_string()),
        ..DnsOut::default()
    };

    let error = config.bind().await.unwrap_err();

    let port = taken.local_addr().unwrap().port().to_string();
    assert!(error.to_string().contains(&port), "{error}");
}
