//! What people on call ask of a gateway: routes, orders, what would become of a call and what has.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tether_proto::{
    common::{Endpoint, WorkerRef},
    gateway::{
        CallFate, CallRoute, DrainRequest, DrainScope, EjectRequest, ExplainRequest,
        ExplainResponse, Limits, Order, PinRequest, QueueLimits, RestoreRequest, RouteState,
        SetLimitsRequest, SnapshotRequest, TailRequest, TailResponse, UndrainRequest,
        WatchRoutesRequest, WatchRoutesResponse, WorkerRoute,
        control_service_client::ControlServiceClient, drain_scope::Scope, limits::Of,
        standing_order,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use crate::{
    client::{Client, Metadata, next, soon},
    discovery::{sigkill, worker},
    house::{DIGITS, House, UNARY, reason},
};

pub(crate) type Control = ControlServiceClient<Channel>;

pub(crate) fn order(id: &str) -> Option<Order> {
    Some(Order {
        request_id: id.to_owned(),
        reason: "a test".to_owned(),
    })
}

pub(crate) fn of_worker(slot: u32) -> Option<DrainScope> {
    Some(DrainScope {
        scope: Some(Scope::Worker(worker("digits", slot, 0))),
    })
}

/// A stream that is under way until it is dropped.
pub(crate) struct Held {
    pub(crate) _messages: mpsc::Sender<Bytes>,
    pub(crate) answers: Streaming<Bytes>,
}

pub(crate) async fn hold(client: &Client, metadata: Metadata<'_>) -> Held {
    let (messages, sent) = mpsc::channel(1);
    messages.try_send("a".into()).expect("there is room");
    let mut answers = client
        .bidi("/test.Echo/Bidi", metadata, ReceiverStream::new(sent))
        .await
        .expect("a worker is free");
    let first = next(&mut answers).await;
    assert_eq!(first.expect("it answers"), Some(Bytes::from("a")));
    Held {
        _messages: messages,
        answers,
    }
}

async fn word(words: &mut Streaming<WatchRoutesResponse>) -> WatchRoutesResponse {
    let word = soon("a word", words.message()).await;
    word.expect("the gateway tells").expect("it goes on")
}

/// Words until one of them satisfies `is`.
async fn until(
    words: &mut Streaming<WatchRoutesResponse>,
    is: impl Fn(&WorkerRoute) -> bool,
) -> WatchRoutesResponse {
    loop {
        let word = word(words).await;
        if word.workers.iter().any(&is) {
            return word;
        }
    }
}

async fn watch(
    control: &mut Control,
    from: &WatchRoutesResponse,
) -> Streaming<WatchRoutesResponse> {
    let request = WatchRoutesRequest {
        pool: String::new(),
        resume_instance: from.instance.clone(),
        resume_revision: from.revision,
    };
    let words = control.watch_routes(request).await;
    words.expect("the gateway tells").into_inner()
}

async fn explain(control: &mut Control, metadata: &[(&str, &str)]) -> ExplainResponse {
    explain_path(control, UNARY, metadata).await
}

pub(crate) async fn explain_path(
    control: &mut Control,
    path: &str,
    metadata: &[(&str, &str)],
) -> ExplainResponse {
    let pairs = metadata.iter();
    let metadata = pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let request = ExplainRequest {
        path: path.to_owned(),
        metadata: metadata.collect::<HashMap<_, _>>(),
    };
    let answer = control.explain(request).await;
    answer.expect("the gateway answers").into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_told_as_they_change_and_resumed_where_a_watch_broke_off() {
    let house = House::open().await;
    let first = house.worker(0).await;
    let client = house.client().await;
    let mut control = house.control();

    let mut words = watch(&mut control, &WatchRoutesResponse::default()).await;
    let all = word(&mut words).await;
    assert!(all.snapshot);
    assert_eq!(all.pools[0].pool, "digits");
    assert_eq!(all.workers[0].address, first.address);
    assert_eq!(all.workers[0].state(), RouteState::Ready);

    let held = hold(&client, DIGITS).await;
    let busy = until(&mut words, |route| route.under_way == 1).await;
    assert!(!busy.snapshot && busy.revision > all.revision);
    drop(words);
    drop(held);
    house
        .discovery
        .gone(worker("digits", 0, 1), Some(sigkill()));
    let second = house.worker(1).await;

    let mut words = watch(&mut control, &busy).await;
    let mut missed = Vec::new();
    let mut gone = Vec::new();
    while !missed.contains(&second.address) {
        let change = word(&mut words).await;
        assert!(!change.snapshot, "it is told what it missed, and no more");
        missed.extend(change.workers.into_iter().map(|route| route.address));
        gone.extend(change.removed_workers);
    }
    assert_eq!(gone, [worker("digits", 0, 1)]);

    let unknown = WatchRoutesResponse {
        instance: "another".to_owned(),
        revision: busy.revision,
        ..WatchRoutesResponse::default()
    };
    let mut words = watch(&mut control, &unknown).await;
    assert!(word(&mut words).await.snapshot);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_with_the_last_call_and_tells_how_far_it_is() {
    let house = House::open().await;
    let (first, second) = (house.worker(0).await, house.worker(1).await);
    let client = house.client().await;
    let mut control = house.control();
    let mut held = hold(&client, &[("tether-worker", "digits/0")]).await;

    let request = DrainRequest {
        order: order("drain"),
        scope: of_worker(0),
        wait_ms: 60_000,
    };
    let words = control.drain(request.clone()).await;
    let mut words = words.unwrap().into_inner();
    let begun = soon("a word", words.message()).await.unwrap().unwrap();
    assert_eq!((begun.workers, begun.under_way, begun.done), (1, 1, false));

    let (before, others) = (first.calls(), second.calls());
    for _ in 0..5 {
        client.unary(UNARY, DIGITS, "").await.unwrap();
    }
    assert_eq!((first.calls(), second.calls()), (before, others + 5));
    let named = [("tether-worker", "digits/0")];
    let refused = client.unary(UNARY, &named, "").await.unwrap_err();
    assert_eq!(reason(&refused), "DRAINING", "{refused}");

    held._messages = mpsc::channel(1).0;
    assert_eq!(next(&mut held.answers).await.unwrap(), None, "it ends well");
    let done = soon("the end", words.message()).await.unwrap().unwrap();
    assert_eq!((done.under_way, done.done, done.undone), (0, true, false));
    assert!(soon("the end", words.message()).await.unwrap().is_none());

    let undo = UndrainRequest {
        order: None,
        scope: of_worker(0),
    };
    assert!(control.undrain(undo.clone()).await.unwrap().get_ref().was);
    assert!(!control.undrain(undo).await.unwrap().get_ref().was);
    client.unary(UNARY, &named, "").await.unwrap();

    // Told again it is the order of before, which somebody has undone.
    let words = control.drain(request).await.unwrap();
    let word = soon("a word", words.into_inner().message()).await;
    assert!(word.unwrap().unwrap().undone);
    client.unary(UNARY, &named, "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_not_done_while_calls_go_on_at_one_that_has_left_alive() {
    let house = House::open().await;
    let _worker = house.worker(0).await;
    let client = house.client().await;
    let mut held = hold(&client, DIGITS).await;
    let request = DrainRequest {
        order: None,
        scope: of_worker(0),
        wait_ms: 60_000,
    };
    let words = house.control().drain(request).await;
    let mut words = words.unwrap().into_inner();
    let mut told = async || {
        let word = soon("a word", words.message()).await.unwrap().unwrap();
        (word.workers, word.under_way, word.done)
    };
    assert_eq!(told().await, (1, 1, false));

    house.discovery.gone(worker("digits", 0, 1), None);
    assert_eq!(told().await, (0, 1, false));

    held._messages = mpsc::channel(1).0;
    assert_eq!(next(&mut held.answers).await.unwrap(), None, "it ends well");
    assert_eq!(told().await, (0, 0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_over_with_its_wait_and_the_calls_go_on() {
    let house = House::open().await;
    let _worker = house.worker(0).await;
    let client = house.client().await;
    let held = hold(&client, DIGITS).await;
    let request = DrainRequest {
        order: None,
        scope: Some(DrainScope {
            scope: Some(Scope::Pool("digits".to_owned())),
        }),
        wait_ms: 1,
    };

    let words = house.control().drain(request).await.unwrap();
    let mut words = words.into_inner();
    let mut last = None;
    while let Some(word) = soon("a word", words.message()).await.unwrap() {
        last = Some(word);
    }

    let last = last.unwrap();
    assert_eq!((last.under_way, last.done, last.undone), (1, true, false));
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ejected_worker_is_left_alone_until_its_time_is_over() {
    let house = House::open().await;
    let only = house.worker(0).await;
    let client = house.client().await;
    let mut control = house.control();
    let eject = |ttl_ms| EjectRequest {
        order: order("eject"),
        worker: Some(worker("digits", 0, 0)),
        ttl_ms,
    };

    let answer = control.eject(eject(600_000)).await.unwrap().into_inner();
    assert_eq!(answer.worker, Some(worker("digits", 0, 1)));
    assert_eq!(answer.ready, 0);
    let refused = client.unary(UNARY, DIGITS, "").await.unwrap_err();
    assert_eq!(reason(&refused), "BREAKER_OPEN", "{refused}");
    assert!(refused.message().contains("tether gateway restore"));

    let again = control.eject(eject(600_000)).await.unwrap().into_inner();
    assert_eq!(again.until_unix_ms, answer.until_unix_ms, "it is the same");
    let other = control.eject(eject(1)).await.unwrap_err();
    assert_eq!(other.code(), Code::InvalidArgument, "{other}");
    let orders = control.snapshot(SnapshotRequest::default()).await.unwrap();
    let [standing] = &orders.get_ref().orders[..] else {
        panic!("there is one order: {orders:?}");
    };
    assert_eq!(standing.reason, "a test");
    assert!(standing.by.contains("user"), "{}", standing.by);
    let ejected = standing_order::Order::Ejected(worker("digits", 0, 1));
    assert_eq!(standing.order, Some(ejected));

    let restore = RestoreRequest {
        order: None,
        worker: Some(worker("digits", 0, 1)),
    };
    assert!(control.restore(restore).await.unwrap().get_ref().was);
    client.unary(UNARY, DIGITS, "").await.unwrap();

    let mut short = eject(50);
    short.order = None;
    control.eject(short).await.unwrap();
    house
        .until("its time is over", async || {
            client.unary(UNARY, DIGITS, "").await.is_ok()
        })
        .await;
    assert!(only.calls() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_for_a_life_that_is_over_is_refused() {
    let house = House::open().await;
    let _worker = house.worker(0).await;
    let mut control = house.control();
    let eject = |worker: WorkerRef| EjectRequest {
        worker: Some(worker),
        ttl_ms: 1_000,
        ..EjectRequest::default()
    };

    let gone = control.eject(eject(worker("digits", 0, 7))).await;
    let gone = gone.unwrap_err();
    assert_eq!(
        (gone.code(), reason(&gone)),
        (Code::NotFound, "UNKNOWN_WORKER")
    );
    assert!(
        gone.message().contains("`digits/0.1` lives in its place"),
        "{gone}"
    );
    let never = control.eject(eject(worker("digits", 9, 0))).await;
    assert_eq!(reason(&never.unwrap_err()), "UNKNOWN_WORKER");
    let mut for_ever = eject(worker("digits", 0, 0));
    for_ever.ttl_ms = 0;
    let refused = control.eject(for_ever).await.unwrap_err();
    assert!(refused.message().contains("ttl_ms"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_key_goes_to_its_worker() {
    let house = House::open().await;
    let workers = [house.worker(0).await, house.worker(1).await];
    let client = house.client().await;
    let mut control = house.control();
    let metadata = [DIGITS[0], ("tether-affinity", "session-42")];

    for slot in [0, 1] {
        let request = PinRequest {
            key: "session-42".to_owned(),
            worker: Some(worker("digits", slot, 0)),
            order: None,
        };
        control.pin(request).await.unwrap();
        let pinned = &workers[slot as usize];
        let before = pinned.calls();
        for _ in 0..3 {
            client.unary(UNARY, &metadata, "").await.unwrap();
        }
        assert_eq!(pinned.calls(), before + 3);
        let said = explain(&mut control, &metadata).await;
        assert_eq!(said.worker, Some(worker("digits", slot, 1)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_what_becomes_of_a_call_and_takes_nothing() {
    let house = House::open().await;
    let started = house.worker(0).await;
    house.discovery.tell(Endpoint {
        worker: Some(worker("digits", 0, 1)),
        address: started.address.clone(),
        capacity: 1,
        node: "n1".to_owned(),
        ..Endpoint::default()
    });
    let client = house.client().await;
    let mut control = house.control();
    house
        .until("the capacity is known", async || {
            let said = explain(&mut house.control(), DIGITS).await;
            let worker = said.candidates[0].worker.clone();
            worker.is_some_and(|worker| worker.capacity == 1 && worker.node == "n1")
        })
        .await;
    let calls = started.calls();

    let said = explain(&mut control, DIGITS).await;
    assert_eq!(
        (said.route(), said.fate()),
        (CallRoute::Worker, CallFate::Sent)
    );
    assert_eq!(said.worker, Some(worker("digits", 0, 1)));
    assert!(said.candidates[0].chosen);

    let held = hold(&client, DIGITS).await;
    let said = explain(&mut control, DIGITS).await;
    assert_eq!((said.fate(), said.queued), (CallFate::Waits, 0));
    assert_eq!(said.candidates[0].why, "it serves as many calls as it can");
    let routes = control.snapshot(SnapshotRequest::default()).await.unwrap();
    let routes = routes.into_inner().routes.unwrap();
    assert_eq!(routes.workers[0].under_way, 1, "nothing was taken");
    assert_eq!(routes.pools[0].queued, 0, "nothing waits");
    assert_eq!(started.calls(), calls + 1, "the worker has seen none");
    drop(held);

    let said = explain(&mut control, &[("tether-pool", "letters")]).await;
    assert_eq!(
        (said.fate(), said.reason.as_str()),
        (CallFate::Refused, "UNKNOWN_POOL")
    );
    let said = explain(&mut control, &[]).await;
    assert_eq!(said.reason, "METADATA_INVALID");
    assert_eq!(said.route(), CallRoute::Unspecified);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_of_a_pool_is_as_long_as_ordered() {
    let house = House::open().await;
    let started = house.worker(0).await;
    let client = Arc::new(house.client().await);
    let mut control = house.control();
    let limits = |of| SetLimitsRequest {
        order: None,
        limits: Some(Limits { of: Some(of) }),
        ttl_ms: 0,
    };
    control
        .set_limits(limits(Of::Worker(tether_proto::gateway::WorkerLimits {
            worker: Some(worker("digits", 0, 0)),
            capacity: Some(1),
        })))
        .await
        .unwrap();
    let _held = hold(&client, DIGITS).await;

    let queue = QueueLimits {
        pool: "digits".to_owned(),
        max_calls: Some(0),
        max_wait_ms: None,
    };
    control.set_limits(limits(Of::Queue(queue))).await.unwrap();
    let full = client.unary(UNARY, DIGITS, "").await.unwrap_err();
    assert_eq!(reason(&full), "OVERLOADED", "{full}");

    let queue = QueueLimits {
        pool: "digits".to_owned(),
        max_calls: Some(5),
        max_wait_ms: Some(1),
    };
    control.set_limits(limits(Of::Queue(queue))).await.unwrap();
    let waited = client.unary(UNARY, DIGITS, "").await.unwrap_err();
    assert!(waited.message().contains("max_wait"), "{waited}");
    assert_eq!(started.calls(), 1, "the one that is held");
}

pub(crate) async fn ended(calls: &mut Streaming<TailResponse>) -> TailResponse {
    let call = soon("a call", calls.message()).await;
    call.expect("the gateway tells").expect("it goes on")
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_told_as_they_end_with_what_became_of_them() {
    let house = House::open().await;
    let mut first = house.worker(0).await;
    let client = house.client().await;
    let mut control = house.control();
    let all = control.tail(TailRequest::default()).await.unwrap();
    let mut all = all.into_inner();
    let failed = TailRequest {
        failed: true,
        ..TailRequest::default()
    };
    let mut failed = control.tail(failed).await.unwrap().into_inner();

    let owner = [DIGITS[0], ("tether-owner", "beam@a")];
    client.unary(UNARY, &owner, "a").await.unwrap();
    let call = ended(&mut all).await;
    assert_eq!((call.code, call.outcome.as_str()), (0, "answered"));
    assert_eq!((call.path.as_str(), call.owner.as_str()), (UNARY, "beam@a"));
    assert_eq!(call.worker, Some(worker("digits", 0, 1)));
    assert!(call.attempts == 1 && call.waited_us <= call.duration_us);

    let nowhere = [("tether-worker", "digits/7")];
    client.unary(UNARY, &nowhere, "").await.unwrap_err();
    let call = ended(&mut all).await;
    assert_eq!(call.outcome, "never_sent");
    assert_eq!((call.code, call.worker), (Code::Unavailable as u32, None));

    let hang = "/test.Echo/OneThenHang";
    let mut answers = client.server_stream(hang, DIGITS, "a").await.unwrap();
    next(&mut answers).await.unwrap();
    drop(answers);
    let call = ended(&mut all).await;
    assert_eq!(call.outcome, "client_gone");

    let mut held = hold(&client, DIGITS).await;
    first.kill();
    house
        .discovery
        .gone(worker("digits", 0, 1), Some(sigkill()));
    let status = next(&mut held.answers).await.unwrap_err();
    let call = ended(&mut all).await;
    assert_eq!(call.code, status.code() as u32);
    assert_eq!(call.outcome, "started");

    let outcomes: Vec<_> = [
        ended(&mut failed).await,
        ended(&mut failed).await,
        ended(&mut failed).await,
    ]
    .into_iter()
    .map(|call| call.outcome)
    .collect();
    assert_eq!(outcomes, ["never_sent", "client_gone", "started"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_calls_too_slowly_is_told_how_many_it_has_missed() {
    let house = House::open().await;
    let _worker = house.worker(0).await;
    let client = house.client().await;
    let mut control = house.control();
    let slow = control.tail(TailRequest::default()).await.unwrap();
    let mut slow = slow.into_inner();
    let nowhere = [("tether-worker", "digits/7")];

    // More than fit into the windows of HTTP/2 together with what is kept.
    let mut made = 0;
    let path: &str = format!("/test.Echo/{}", "x".repeat(8_000)).leak();
    for _ in 0..1_500 {
        client.unary(path, &nowhere, "").await.unwrap_err();
        made += 1;
    }
    let (mut told, mut lost) = (0, 0);
    while told + lost < made {
        told += 1;
        lost += ended(&mut slow).await.lost;
    }
    assert_eq!(told + lost, made);
    assert!(lost > 0);
}
