//! Which calls are made again, at whom, and how often: workers count what they begin with.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use tether_gateway::{Breaker, Config, MethodRule, Methods, Queue, Retries};
use tether_proto::{
    common::Endpoint,
    gateway::{SnapshotRequest, TailRequest},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tonic::{Code, Response, Status};

use crate::{
    client::{Client, framed, grpc_request, raw, soon},
    discovery::{sigkill, worker},
    house::{DIGITS, House, UNARY, fact, reason},
    orders::ended,
    worker::{Mood, Worker, plain, reached},
};

const WORK: &str = "/test.Echo/Work";

type Answer = Result<Response<bytes::Bytes>, Status>;

fn ruled(rule: MethodRule) -> Config {
    let rules = BTreeMap::from([(WORK.to_owned(), rule)]);
    Config {
        methods: Methods::try_from(rules).expect("it is a rule"),
        ..Config::default()
    }
}

fn idempotent() -> Config {
    ruled(MethodRule {
        idempotent: true,
        ..MethodRule::default()
    })
}

/// Whose breakers stay closed.
fn patient() -> Config {
    Config {
        breaker: Breaker {
            failure_threshold: NonZeroU32::MAX,
            window: 0,
            ..Breaker::default()
        },
        ..idempotent()
    }
}

fn hedged() -> Config {
    ruled(MethodRule {
        idempotent: true,
        hedge_after: Duration::from_millis(20),
        ..MethodRule::default()
    })
}

/// Two workers that are `mood`.
async fn pair(house: &House, mood: Mood) -> [Worker; 2] {
    let workers = [house.worker(0).await, house.worker(1).await];
    workers.iter().for_each(|worker| worker.is(mood));
    workers
}

fn begun(workers: &[Worker]) -> u64 {
    workers.iter().map(Worker::calls).sum()
}

fn call(client: &Client, message: Vec<u8>) -> JoinHandle<Answer> {
    let client = client.clone();
    tokio::spawn(async move { client.unary(WORK, DIGITS, message).await })
}

/// The worker that has begun with a call first, and its slot.
async fn first(workers: &mut [Worker; 2]) -> (usize, &mut Worker) {
    let [a, b] = &*workers;
    let slot = tokio::select! {
        () = reached(&a.seen.calls, 1) => 0,
        () = reached(&b.seen.calls, 1) => 1,
    };
    (slot, &mut workers[slot])
}

/// Makes a call, kills the worker that has begun with it, and answers what came of it.
async fn killed_in_the_middle(
    house: &House,
    workers: &mut [Worker; 2],
    message: Vec<u8>,
) -> Answer {
    let under_way = call(&house.client().await, message);
    let slot = first(workers).await.0;
    workers[1 - slot].is(Mood::Well);
    workers[slot].kill();
    let number = u32::try_from(slot).expect("there are two");
    house
        .discovery
        .gone(worker("digits", number, 1), Some(sigkill()));
    soon("the call", under_way).await.expect("it ends")
}

/// Makes a call that nobody answers, over HTTP/2 alone: tonic's client keeps deadlines itself.
async fn late(house: &House, method: &str) -> Status {
    let request = grpc_request(method, &[DIGITS[0], ("grpc-timeout", "150m")]);
    raw(&house.address, request, framed(b"a")).await.status()
}

/// Outcome, attempts and reason of a failure, in its details and in its trailers.
fn told(status: &Status) -> [String; 3] {
    let facts = ["outcome", "attempts"].map(|key| {
        let value = fact(status, key).expect("its details say so");
        let shown = status.metadata().get(format!("tether-{key}"));
        let shown = shown.expect("its trailers say so");
        assert_eq!(shown, value.as_str());
        value
    });
    let [outcome, attempts] = facts;
    [outcome, attempts, reason(status).to_owned()]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_call_whose_worker_is_killed_is_made_again_elsewhere() {
    let house = House::with(idempotent()).await;
    let mut workers = pair(&house, Mood::Stuck).await;

    let answer = killed_in_the_middle(&house, &mut workers, vec![7; 60 << 10]).await;

    let answer = answer.unwrap();
    assert_eq!(answer.metadata().get("x-attempts-before").unwrap(), "1");
    assert_eq!(answer.into_inner(), vec![7; 60 << 10]);
    assert_eq!(begun(&workers), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_call_is_begun_with_once() {
    let house = House::open().await;
    let mut workers = pair(&house, Mood::Stuck).await;

    let answer = killed_in_the_middle(&house, &mut workers, vec![7]).await;

    let status = answer.unwrap_err();
    assert_eq!(told(&status), ["sent_unknown", "1", "WORKER_DIED"]);
    assert_eq!(begun(&workers), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_made_again_without_a_budget_or_whose_request_was_not_kept() {
    let none = Retries {
        percent: 0,
        per_second: 0,
    };
    let without = Config {
        retries: none,
        ..idempotent()
    };
    for (config, message) in [(without, vec![7]), (idempotent(), vec![7; 65 << 10])] {
        let house = House::with(config).await;
        let mut workers = pair(&house, Mood::Stuck).await;

        let answer = killed_in_the_middle(&house, &mut workers, message).await;

        let status = answer.unwrap_err();
        assert_eq!(told(&status), ["sent_unknown", "1", "WORKER_DIED"]);
        assert_eq!(begun(&workers), 1);
    }
}

/// Each call fails at both workers, and one in ten may be made again.
#[tokio::test(flavor = "multi_thread")]
async fn retries_are_a_share_of_the_calls() {
    let config = Config {
        retries: Retries {
            percent: 10,
            per_second: 0,
        },
        ..patient()
    };
    let house = House::with(config).await;
    let workers = pair(&house, Mood::Unavailable(None)).await;
    let client = house.client().await;

    for _ in 0..100 {
        client.unary(WORK, DIGITS, "").await.unwrap_err();
    }

    assert_eq!(begun(&workers), 110);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_serve_now_says_whether_and_when_to_ask_again() {
    let house = House::with(patient()).await;
    let client = house.client().await;
    let [a, b] = pair(&house, Mood::Well).await;
    let pin = [("tether-worker", "digits/0")];

    // Not at all, and its word reaches the client as it is.
    for never in ["-1", "soon"] {
        a.is(Mood::Unavailable(Some(never)));
        let said = client.unary(WORK, &pin, "").await.unwrap_err();
        assert_eq!(
            (said.code(), said.message()),
            (Code::Unavailable, "not now")
        );
        assert_eq!(
            said.metadata().get("grpc-retry-pushback-ms").unwrap(),
            never
        );
        assert!(said.metadata().get("tether-attempts").is_none());
    }
    assert_eq!(a.calls(), 2);

    // After a while, the same worker too.
    a.is(Mood::Unavailable(Some("150")));
    let asked = Instant::now();
    let said = client.unary(WORK, &pin, "").await.unwrap_err();
    assert_eq!(said.metadata().get("tether-attempts").unwrap(), "3");
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert_eq!(a.calls(), 5);

    // Not where the deadline would be over.
    let hurried = [pin[0], ("grpc-timeout", "100m")];
    let said = client.unary(WORK, &hurried, "").await.unwrap_err();
    assert_eq!(said.message(), "not now");
    assert_eq!(a.calls(), 6);

    // At once, and elsewhere.
    a.is(Mood::Unavailable(None));
    let before = b.calls();
    for _ in 0..10 {
        client.unary(WORK, DIGITS, "").await.unwrap();
    }
    assert_eq!(b.calls(), before + 10);
    assert!(a.calls() > 6, "both were asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_says_of_other_calls_is_passed_on_at_once() {
    let house = House::open().await;
    let workers = pair(&house, Mood::Unavailable(Some("0"))).await;

    let said = house.client().await.unary(WORK, DIGITS, "").await;

    assert_eq!(said.unwrap_err().message(), "not now");
    assert_eq!(begun(&workers), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_answer_counts_where_one_takes_long_and_the_other_call_is_cancelled() {
    let house = House::with(hedged()).await;
    let mut workers = pair(&house, Mood::Stuck).await;
    let under_way = call(&house.client().await, vec![7; 1000]);
    let slot = first(&mut workers).await.0;
    // The second worker may have begun by now too, and is stuck like the first.
    reached(&workers[1 - slot].seen.calls, 1).await;
    assert!(!under_way.is_finished());
    under_way.abort();
    for worker in &workers {
        reached(&worker.seen.cancelled, 1).await;
    }

    workers[1].is(Mood::Well);
    let client = house.client().await;
    for _ in 0..10 {
        let answer = client.unary(WORK, DIGITS, vec![7; 1000]).await.unwrap();
        assert_eq!(answer.into_inner(), vec![7; 1000]);
    }
    let late = workers[0].calls() - 1;
    assert!(late > 0, "both were asked");
    reached(&workers[0].seen.cancelled, 1 + late).await;
    assert_eq!(workers[1].calls(), 1 + 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_the_one_of_two_whose_answer_counts() {
    let house = House::with(hedged()).await;
    let workers = pair(&house, Mood::Stuck).await;
    let key = ("tether-affinity", "session-42");
    let hint = [DIGITS[0], key];
    let client = house.client().await;
    let server = |answer: &Response<bytes::Bytes>| {
        let worker = answer.metadata().get("tether-worker");
        let worker = worker.and_then(|worker| worker.to_str().ok());
        usize::from(worker.expect("it is told") == "digits/1.1")
    };
    let home = server(&client.unary(UNARY, &hint, "").await.unwrap());
    workers[home].is(Mood::Held);

    let caller = client.clone();
    let under_way = tokio::spawn(async move { caller.unary(WORK, &hint, "").await });
    reached(&workers[1 - home].seen.calls, 1).await;
    workers[home].seen.may.send_replace(true);
    let answer = soon("the call", under_way).await.expect("it ends").unwrap();
    assert_eq!(server(&answer), home);

    let strict = [DIGITS[0], key, ("tether-affinity-mode", "strict_queue")];
    let answer = client.unary(UNARY, &strict, "").await.unwrap();
    assert_eq!(server(&answer), home, "it had the key's last call");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_not_hedged_without_a_budget_an_attempt_and_a_free_worker() {
    let none = Retries {
        percent: 0,
        per_second: 0,
    };
    let without = Config {
        retries: none,
        ..hedged()
    };
    let once = Config {
        max_attempts: NonZeroU32::MIN,
        ..hedged()
    };
    for config in [without, once] {
        let house = House::with(config).await;
        let workers = pair(&house, Mood::Stuck).await;

        assert_eq!(late(&house, WORK).await.code(), Code::DeadlineExceeded);
        assert_eq!(begun(&workers), 1);
    }

    // Nobody waits at it.
    let config = Config {
        queue: Queue {
            max_calls: 0,
            ..Queue::default()
        },
        ..hedged()
    };
    let house = House::with(config).await;
    let [first, busy] = pair(&house, Mood::Stuck).await;
    house.discovery.tell(Endpoint {
        worker: Some(worker("digits", 1, 1)),
        address: busy.address.clone(),
        capacity: 1,
        ..Endpoint::default()
    });
    let client = house.client().await;
    let pin = [("tether-worker", "digits/1")];
    let holder = client.clone();
    let held = tokio::spawn(async move { holder.unary("/test.Echo/Hang", &pin, "").await });
    reached(&busy.seen.calls, 1).await;
    let is_full = async || client.unary(UNARY, &pin, "").await.is_err();
    house.until("it is busy", is_full).await;
    let before = busy.calls();

    assert_eq!(late(&house, WORK).await.code(), Code::DeadlineExceeded);
    assert_eq!((first.calls(), busy.calls()), (1, before));
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_hedged_call_fails_twice_both_attempts_are_told() {
    let house = House::with(hedged()).await;
    let mut workers = pair(&house, Mood::Stuck).await;
    let under_way = call(&house.client().await, vec![7]);
    for worker in &workers {
        reached(&worker.seen.calls, 1).await;
    }

    for (slot, echo) in (0..).zip(&mut workers) {
        echo.kill();
        house
            .discovery
            .gone(worker("digits", slot, 1), Some(sigkill()));
    }

    let status = soon("the call", under_way).await.unwrap().unwrap_err();
    assert_eq!(told(&status), ["sent_unknown", "2", "WORKER_DIED"]);
}

/// A worker in this slot that never says anything about work.
async fn silent(house: &House, slot: u32) -> JoinHandle<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("there is a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let serving = tokio::spawn(plain(listener, mpsc::channel(1).0));
    house.tell(slot, 1, &address).await;
    serving
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_is_told_of_the_same_attempt_as_the_client() {
    let house = House::with(hedged()).await;
    let _workers = [silent(&house, 0).await, silent(&house, 1).await];
    let calls = house.control().tail(TailRequest::default()).await;
    let mut calls = calls.unwrap().into_inner();

    let status = late(&house, WORK).await;

    assert_eq!(told(&status), ["sent_unknown", "2", "DEADLINE_EXCEEDED"]);
    let seen = ended(&mut calls).await;
    assert_eq!((seen.attempts, seen.outcome.as_str()), (2, "sent_unknown"));
    let slot = seen.worker.unwrap().slot;
    assert_eq!(fact(&status, "worker").unwrap(), format!("digits/{slot}.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_does_not_undo_what_an_earlier_attempt_may_have_done() {
    let house = House::with(patient()).await;
    let refuses = house.worker(0).await;
    refuses.is(Mood::Unavailable(None));
    let before = refuses.calls();
    let _silent = silent(&house, 1).await;
    // The other one has fewer calls, and is asked first.
    let holder = house.client().await;
    let pin = [("tether-worker", "digits/1")];
    let held = tokio::spawn(async move { holder.unary(WORK, &pin, "").await });
    let is_held = async || {
        let all = house.control().snapshot(SnapshotRequest::default()).await;
        let routes = all.unwrap().into_inner().routes.unwrap();
        routes.workers[1].under_way == 1
    };
    house.until("it is held", is_held).await;

    let status = late(&house, WORK).await;

    assert_eq!(told(&status), ["started", "2", "DEADLINE_EXCEEDED"]);
    assert_eq!(fact(&status, "worker").unwrap(), "digits/0.1");
    assert_eq!(refuses.calls(), before + 1);
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_beyond_what_a_worker_takes_at_once_is_not_sent_before_another_is_over() {
    let config = Config {
        threads: 1,
        ..Config::default()
    };
    let house = House::with(config).await;
    let narrow = Worker::narrow(1).await;
    house.tell(0, 1, &narrow.address).await;
    narrow.is(Mood::Stuck);
    let client = house.client().await;
    let begun = call(&client, vec![7]);
    reached(&narrow.seen.calls, 1).await;
    let waits = call(&client, vec![7]);
    let spare = house.worker(1).await;
    // Whoever comes now goes to the one with fewer calls, so this one shows that the call before it was there.
    call(&client, vec![7]).await.unwrap().unwrap();

    house
        .discovery
        .gone(worker("digits", 0, 1), Some(sigkill()));

    soon("the one that waited", waits).await.unwrap().unwrap();
    let status = soon("the one that had begun", begun)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(fact(&status, "outcome").unwrap(), "sent_unknown");
    assert_eq!((narrow.calls(), spare.calls()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_at_a_worker_goes_to_the_next_call_once_one_is_over() {
    let config = Config {
        threads: 1,
        ..Config::default()
    };
    let house = House::with(config).await;
    let narrow = Worker::narrow(2).await;
    house.tell(0, 1, &narrow.address).await;
    let client = house.client().await;

    let calls: Vec<_> = (0..50).map(|_| call(&client, vec![7])).collect();
    for call in calls {
        soon("a call", call).await.unwrap().unwrap();
    }
    assert_eq!(narrow.calls(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_says_in_its_details_how_far_the_call_got() {
    let house = House::open().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (seen, _kept) = mpsc::channel(8);
    let resets = tokio::spawn(plain(listener, seen));
    house.tell(0, 1, &address).await;
    let client = house.client().await;

    let reset = client.unary("/test.Echo/Impatient", DIGITS, "").await;
    let reset = reset.unwrap_err();
    assert_eq!(reset.code(), Code::Cancelled);
    assert_eq!(told(&reset), ["sent_unknown", "1", "CALL_RESET"]);
    assert_eq!(fact(&reset, "incarnation").unwrap(), "1");

    let refused = client.unary(UNARY, DIGITS, "").await.unwrap_err();
    assert_eq!(told(&refused), ["refused", "1", "NO_WORKER_READY"]);
    let late = late(&house, "/test.Echo/Upload").await;
    assert_eq!(told(&late), ["sent_unknown", "1", "DEADLINE_EXCEEDED"]);
    assert_eq!(fact(&late, "worker").unwrap(), "digits/0.1");
    let nowhere = client.unary(UNARY, &[], "").await.unwrap_err();
    assert_eq!(told(&nowhere), ["never_sent", "0", "METADATA_INVALID"]);
    let unknown = client.unary(UNARY, &[("tether-pool", "x")], "").await;
    assert_eq!(
        told(&unknown.unwrap_err()),
        ["never_sent", "0", "UNKNOWN_POOL"]
    );
    resets.abort();
}
