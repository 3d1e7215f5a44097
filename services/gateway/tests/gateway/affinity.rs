//! Calls that belong together: where their key is read, and what becomes of them when its worker is gone.

use bytes::Bytes;
use futures::{FutureExt as _, stream};
use tether_gateway::Config;
use tether_proto::gateway::{CallFate, EjectRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use crate::{
    client::{Client, Metadata, framed, grpc_request, raw, soon},
    discovery::worker,
    house::{DIGITS, House, UNARY, fact, reason},
    orders::explain_path,
    owners::Arbiter,
    worker::Worker,
};

const STREAM: &str = "/test.Echo/ClientStream";
const STRICT: &[(&str, &str)] = &[
    DIGITS[0],
    ("tether-affinity", "session-42"),
    ("tether-affinity-mode", "strict_queue"),
];
const HINT: &[(&str, &str)] = &[DIGITS[0], ("tether-affinity", "session-42")];

/// A configuration in which calls of the worker's service have this affinity.
fn rule(affinity: &str) -> Config {
    let text = format!("['/test.Echo/*']\naffinity = {{ {affinity} }}");
    Config {
        methods: toml::from_str(&text).expect("it is a rule"),
        ..Config::default()
    }
}

/// A house with three workers.
async fn house(config: Config) -> (House, [Worker; 3]) {
    let house = House::with(config).await;
    let workers = [
        house.worker(0).await,
        house.worker(1).await,
        house.worker(2).await,
    ];
    (house, workers)
}

/// A message whose first field is this number and whose third is this text.
fn message(number: u8, text: &str) -> Bytes {
    let length = u8::try_from(text.len()).expect("it is short");
    let mut message = vec![0x08, number, 0x1a, length];
    message.extend(text.as_bytes());
    message.into()
}

/// Which worker gave an answer, where that is said.
fn server<T>(answer: &Response<T>) -> Option<&str> {
    answer.metadata().get("tether-worker")?.to_str().ok()
}

fn has_moved(answer: &Response<Bytes>) -> bool {
    answer
        .metadata()
        .get("tether-affinity")
        .is_some_and(|word| word == "moved")
}

async fn ask(client: &Client, metadata: Metadata<'_>) -> Result<Response<Bytes>, Status> {
    client.unary(UNARY, metadata, "a").await
}

/// Which worker's state a key has; it has one afterwards.
async fn slot(client: &Client, metadata: Metadata<'_>) -> u32 {
    let answer = ask(client, metadata).await.expect("a worker takes it");
    let worker = server(&answer).expect("a call with a key is told who served it");
    let (_, at) = worker.split_once('/').expect("it is a worker");
    let (slot, _) = at.split_once('.').expect("it is an incarnation");
    slot.parse().expect("it is a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_key_go_to_one_worker_wherever_the_rule_finds_it() {
    for (affinity, by_number) in [("field = 3", false), ("field = 1", true)] {
        let (house, _workers) = house(rule(affinity)).await;
        let client = house.client().await;
        let mut seen = std::collections::BTreeMap::<String, Vec<String>>::new();
        for number in 1..9 {
            for text in ["a", "b", "c"] {
                let sent = message(number, text);
                let answer = client.unary(UNARY, DIGITS, sent.clone()).await.unwrap();
                assert_eq!(answer.get_ref(), &sent, "it is passed on unchanged");
                let key = if by_number {
                    number.to_string()
                } else {
                    text.to_owned()
                };
                let worker = server(&answer).unwrap().to_owned();
                // As calls whose metadata names the same key.
                let named = [DIGITS[0], ("tether-affinity", key.as_str())];
                let named = ask(&client, &named).await.unwrap();
                assert_eq!(server(&named), Some(worker.as_str()));
                seen.entry(key).or_default().push(worker);
            }
        }
        for workers in seen.values() {
            assert!(
                workers.iter().all(|worker| *worker == workers[0]),
                "{seen:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_be_in_any_metadata_and_what_the_call_says_comes_first() {
    let (house, _workers) = house(rule("metadata = 'x-session', mode = 'strict_fail_fast'")).await;
    let client = house.client().await;
    let by_rule = [DIGITS[0], ("x-session", "session-42")];
    let home = slot(&client, &by_rule).await;
    assert_eq!(slot(&client, STRICT).await, home);

    let pinned = format!("digits/{}", (home + 1) % 3);
    let elsewhere = [
        ("tether-worker", pinned.as_str()),
        ("x-session", "session-42"),
    ];
    let answer = ask(&client, &elsewhere).await.unwrap();
    assert_eq!(server(&answer), None, "it has no key");
    let answer = ask(&client, DIGITS).await.unwrap();
    assert_eq!(server(&answer), None);
}

/// The first message may come late, in pieces and compressed.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_waited_for_and_where_there_is_none_any_worker_takes_the_call() {
    let (house, workers) = house(rule("field = 3")).await;
    let client = house.client().await;
    let (messages, sent) = mpsc::channel(1);
    let mut late = std::pin::pin!(client.client_stream(STREAM, DIGITS, ReceiverStream::new(sent)));
    assert!(late.as_mut().now_or_never().is_none());
    messages.send(message(1, "a")).await.unwrap();
    drop(messages);
    let answer = soon("it goes on", late).await.unwrap();
    assert_eq!(answer, "1 5");

    let empty = client.client_stream(STREAM, DIGITS, stream::empty());
    assert_eq!(empty.await.unwrap(), "0 0");
    let before: u64 = workers.iter().map(Worker::calls).sum();
    let mut compressed = framed(&message(1, "a")).to_vec();
    compressed[0] = 1;
    let request = grpc_request(UNARY, DIGITS);
    let answer = raw(&house.address, request, compressed.into()).await;
    assert_ne!(
        answer.status().code(),
        Code::Ok,
        "the worker cannot read it"
    );
    assert_eq!(answer.headers.get("tether-worker"), None);
    assert_eq!(workers.iter().map(Worker::calls).sum::<u64>(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_call_is_told_that_its_worker_is_gone_until_a_hint_begins_anew() {
    let (house, workers) = house(Config::default()).await;
    let client = house.client().await;
    let home = slot(&client, STRICT).await;
    let other = [DIGITS[0], ("tether-affinity", "other"), STRICT[2]];
    let others_home = slot(&client, &other).await;

    house.tell(home, 2, &workers[home as usize].address).await;
    for _ in 0..2 {
        let status = ask(&client, STRICT).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(reason(&status), "SESSION_WORKER_GONE", "{status}");
        assert_eq!(fact(&status, "outcome").as_deref(), Some("never_sent"));
        let worker = fact(&status, "worker");
        assert_eq!(worker, Some(format!("digits/{home}.1")), "{status}");
    }
    let others = ask(&client, &other).await;
    assert_eq!(others.is_ok(), others_home != home);

    let moved = ask(&client, HINT).await.unwrap();
    assert!(has_moved(&moved), "{:?}", moved.metadata());
    let again = ask(&client, HINT).await.unwrap();
    assert!(!has_moved(&again), "{:?}", again.metadata());
    assert_eq!(server(&again), server(&moved));
    let strict = ask(&client, STRICT).await.unwrap();
    assert_eq!(server(&strict), server(&moved));
}

/// A worker that comes may win keys of others; those that are bound stay where their state is.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_comes_takes_no_key_that_another_has() {
    let house = House::open().await;
    let _first = house.worker(0).await;
    let client = house.client().await;
    let keys: Vec<String> = (0..20).map(|key| format!("key-{key}")).collect();
    for key in &keys {
        let metadata = [DIGITS[0], ("tether-affinity", key.as_str()), STRICT[2]];
        assert_eq!(slot(&client, &metadata).await, 0);
    }

    let _second = house.worker(1).await;

    for key in &keys {
        let metadata = [DIGITS[0], ("tether-affinity", key.as_str()), STRICT[2]];
        assert_eq!(slot(&client, &metadata).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_is_bound_to_ends_with_its_session() {
    let arbiter = Arbiter::start(7);
    let house = arbiter.house(Config::default()).await;
    let worker = house.worker(0).await;
    let client = house.client().await;
    let act = async |epoch: &str| {
        let owner = [("tether-owner", "beam@a"), ("tether-epoch", epoch)];
        let metadata = [STRICT, &owner].concat();
        let answer = ask(&client, &metadata).await;
        answer.map(drop).map_err(|status| reason(&status))
    };
    assert_eq!(act("7").await, Ok(()));
    house.tell(0, 2, &worker.address).await;
    assert_eq!(act("7").await, Err("SESSION_WORKER_GONE"));

    arbiter.epoch.send_replace(9);
    assert_eq!(act("9").await, Ok(()), "it begins anew");
    assert_eq!(act("7").await, Err("LEASE_FENCED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_goes_by_the_rules_too() {
    let (house, _workers) = house(rule("metadata = 'x-session', mode = 'strict_queue'")).await;
    let client = house.client().await;
    let mut control = house.control();
    let metadata = [DIGITS[0], ("x-session", "a")];
    let slot = slot(&client, &metadata).await;

    for _ in 0..20 {
        let said = explain_path(&mut control, UNARY, &metadata).await;
        assert_eq!(said.worker, Some(worker("digits", slot, 1)));
    }
    let request = EjectRequest {
        worker: Some(worker("digits", slot, 1)),
        ttl_ms: 60_000,
        ..EjectRequest::default()
    };
    control.eject(request).await.unwrap();
    let refused = ask(&client, &metadata).await.unwrap_err();
    let said = explain_path(&mut control, UNARY, &metadata).await;
    assert_eq!(said.reason, reason(&refused));
    assert_eq!(said.fate(), CallFate::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_that_it_has_no_message_to_look_into() {
    let (house, _workers) = house(rule("field = 3")).await;
    let mut control = house.control();

    let said = explain_path(&mut control, UNARY, DIGITS).await;
    assert_eq!((said.fate(), said.worker), (CallFate::Unspecified, None));
    assert!(
        said.text.contains("field 3 of its first message"),
        "{}",
        said.text
    );
    assert!(
        said.candidates
            .iter()
            .all(|one| one.eligible && !one.chosen)
    );

    let said = explain_path(&mut control, UNARY, HINT).await;
    assert_eq!(said.fate(), CallFate::Sent, "it says itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_that_workers_would_be_asked_for() {
    let config = Config {
        pools: toml::from_str("[digits]\nwake = 1").expect("it is a rule"),
        ..Config::default()
    };
    let house = House::with(config).await;
    let say = async |metadata| {
        let said = explain_path(&mut house.control(), UNARY, metadata).await;
        (said.fate(), said.reason)
    };

    house
        .until("discovery has spoken", async || {
            say(DIGITS).await == (CallFate::Waits, String::new())
        })
        .await;
    let named = &[("tether-worker", "digits/0")];
    assert_eq!(say(named).await.0, CallFate::Refused, "it names one");
}
