//! The ledger at work over a store that fails on command.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tether_clock::BootClock;
use tether_lifecycle::Surroundings;
use tether_proto::{
    common::{WorkerPhase, WorkerRef},
    node::{HeartbeatRequest, HeartbeatResponse, Hello, WorkerReport, order::Order},
    pool::{PoolSpec, Template},
};
use tether_store::{Changes, Entry, Error, Listing, MemoryStore, Revision, Store, Txn};
use tether_types::{Epoch, NodeName, OwnerName, PoolName, Reason};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{ATTENTION, PAUSE_MAX, Shared, next_commit};
use crate::{config::Config, events::Events, ledger::Ledger, mandate::Mandate};

const PATIENCE: Duration = Duration::from_secs(10);

/// A store in memory that can be switched off, and counts what it is asked to commit.
#[derive(Debug, Default)]
struct Moody {
    store: MemoryStore,
    off: AtomicBool,
    hung: AtomicBool,
    commits: AtomicU64,
}

#[async_trait]
impl Store for Moody {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.store.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, Error> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        if self.hung.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.off.load(Ordering::SeqCst) {
            return Err(Error::Unavailable {
                what: "moody".to_owned(),
                source: "switched off".into(),
            });
        }
        self.store.commit(txn).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> Changes {
        self.store.watch(prefix, after)
    }
}

impl Moody {
    async fn asked_more_than(&self, before: u64) {
        let asked = async {
            while self.commits.load(Ordering::SeqCst) <= before {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, asked).await.unwrap();
    }
}

struct Scene {
    shared: Arc<Shared>,
    store: Arc<Moody>,
    node: NodeName,
    stream: u64,
    seq: u64,
    inbox: mpsc::Receiver<Box<HeartbeatResponse>>,
    stop: tokio_util::sync::DropGuard,
    timer: tokio::task::JoinHandle<()>,
}

impl Scene {
    /// An arbiter at work, with one node that has its lease.
    async fn start() -> Self {
        let store = Arc::new(Moody::default());
        let ledger = Ledger::new(
            Config::default().terms().unwrap(),
            BTreeMap::new(),
            Surroundings::default(),
        );
        let events = Events::restore(&store.list("").await.unwrap());
        let mandate = Arc::new(Mandate::unlimited());
        let shared = Shared::new(ledger, store.clone(), events, Arc::new(BootClock), mandate);
        let shared = Arc::new(shared);
        let stop = CancellationToken::new();
        let (keeper, stopped) = (Arc::clone(&shared), stop.clone());
        let timer = tokio::spawn(async move { keeper.keep_time(stopped).await });

        let node: NodeName = "n0".parse().unwrap();
        let (outbox, inbox) = mpsc::channel(64);
        let hello = Hello {
            node: node.to_string(),
            launchers: vec!["exec".to_owned()],
            ..Hello::default()
        };
        let stream = shared.join(&node, &hello, outbox).await.unwrap();
        let mut scene = Self {
            shared,
            store,
            node,
            stream,
            seq: 0,
            inbox,
            stop: stop.drop_guard(),
            timer,
        };
        assert!(scene.beat(Vec::new()).await > 0);
        scene
    }

    /// Beats, and answers with the lease that this earned.
    async fn beat(&mut self, reports: Vec<WorkerReport>) -> u64 {
        self.seq += 1;
        let beat = HeartbeatRequest {
            seq: self.seq,
            ack_seen: self.seq - 1,
            reports,
            ..HeartbeatRequest::default()
        };
        assert!(self.shared.beat(&self.node, self.stream, &beat).await);
        let answer = self.next().await;
        assert_eq!(answer.seq, self.seq);
        assert!(answer.orders.is_empty(), "answers do not wait for orders");
        answer.ttl_ms
    }

    async fn next(&mut self) -> HeartbeatResponse {
        *timeout(PATIENCE, self.inbox.recv()).await.unwrap().unwrap()
    }

    async fn apply(&self, name: &str) -> Result<tether_proto::pool::Pool, tether_proto::Failure> {
        let spec = PoolSpec {
            name: name.to_owned(),
            mode: "independent".to_owned(),
            template: Some(Template {
                command: "work".to_owned(),
                ..Template::default()
            }),
            size: 1,
            ..PoolSpec::default()
        };
        let owner: OwnerName = "beam".parse().unwrap();
        self.shared
            .act(|ledger, now| ledger.apply_pool(spec, owner, Epoch(0), now))
            .await
    }

    /// The worker in the order that comes next, with its word: start, stop, forget or signal.
    async fn ordered(&mut self) -> (&'static str, WorkerRef) {
        let order = self.next().await.orders.remove(0).order.unwrap();
        let (word, worker) = match order {
            Order::Start(start) => ("start", start.worker),
            Order::Stop(stop) => ("stop", stop.worker),
            Order::Forget(forget) => ("forget", forget.worker),
            Order::Signal(signal) => ("signal", signal.worker),
        };
        (word, worker.unwrap())
    }
}

#[tokio::test]
async fn beats_are_answered_while_the_store_fails_and_orders_wait_until_it_is_back() {
    let mut scene = Scene::start().await;
    scene.apply("digits").await.unwrap();
    let (_, worker) = scene.ordered().await;
    scene.store.off.store(true, Ordering::SeqCst);

    let dead = WorkerReport {
        worker: Some(worker.clone()),
        phase: WorkerPhase::Dead.into(),
        ..WorkerReport::default()
    };
    let before = scene.store.commits.load(Ordering::SeqCst);
    assert!(scene.beat(vec![dead]).await > 0);
    scene.store.asked_more_than(before).await;
    assert!(scene.beat(Vec::new()).await > 0);
    assert!(
        scene.inbox.try_recv().is_err(),
        "nothing is ordered before it is written"
    );
    let told = scene.shared.events.after(0);
    assert!(told.iter().all(|event| event.death.is_none()), "nor told");

    scene.store.off.store(false, Ordering::SeqCst);
    assert_eq!(scene.ordered().await, ("forget", worker));
    let written = scene.store.list("serve/deaths/").await.unwrap();
    assert_eq!(written.entries.len(), 1);
    assert!(
        scene
            .shared
            .events
            .after(0)
            .iter()
            .any(|event| event.worker.is_some())
    );
}

#[test]
fn an_endpoint_ends_in_the_commit_that_says_why() {
    let pool: PoolName = "digits".parse().unwrap();
    let mut writes = BTreeMap::new();
    for slot in 0..1_000 {
        let endpoint = tether_store::keys::endpoint(&pool, slot);
        writes.insert(endpoint, None);
        let death = tether_store::keys::death(&pool, slot);
        writes.insert(death, Some(bytes::Bytes::from_static(b"why")));
    }

    let mut commits = 0;
    while !writes.is_empty() {
        let keys = next_commit(&writes);
        for slot in 0..1_000 {
            let there = |key: String| keys.contains(&key);
            let death = there(tether_store::keys::death(&pool, slot));
            assert_eq!(there(tether_store::keys::endpoint(&pool, slot)), death);
        }
        assert!(keys.len() <= 128, "etcd takes no more");
        keys.iter().for_each(|key| drop(writes.remove(key)));
        commits += 1;
    }
    assert_eq!(commits, 20);
}

#[test]
fn a_commit_has_no_more_bytes_than_etcd_takes_and_always_some() {
    let value = |bytes: usize| Some(bytes::Bytes::from(vec![0; bytes]));
    let mut writes: BTreeMap<_, _> = (0..100)
        .map(|job| (format!("jobs/train/{job}"), value(64 << 10)))
        .collect();
    writes.insert("jobs/train/large".to_owned(), value(2 << 20));

    while !writes.is_empty() {
        let keys = next_commit(&writes);
        let bytes = keys.iter().filter_map(|key| writes.remove(key)).flatten();
        let bytes: usize = bytes.map(|value| value.len()).sum();
        assert!(bytes > 0);
        assert!(bytes <= 1 << 20 || keys.len() == 1, "{bytes}");
    }
}

#[tokio::test]
async fn a_store_that_hangs_does_not_hold_up_beats_of_nodes_or_owners() {
    let mut scene = Scene::start().await;
    let owner: OwnerName = "beam".parse().unwrap();
    let (epoch, _) = scene
        .shared
        .open_session(&owner, None, Duration::ZERO)
        .await
        .unwrap();
    scene.store.hung.store(true, Ordering::SeqCst);
    let before = scene.store.commits.load(Ordering::SeqCst);
    let shared = Arc::clone(&scene.shared);
    let opening = tokio::spawn(async move {
        let other: OwnerName = "other".parse().unwrap();
        shared.open_session(&other, None, Duration::ZERO).await
    });
    scene.store.asked_more_than(before).await;

    for seq in 1..5 {
        assert!(scene.beat(Vec::new()).await > 0);
        let ack = scene
            .shared
            .observe(|ledger, now| ledger.beat_session(&owner, epoch, seq, seq - 1, now))
            .await;
        assert!(ack.unwrap().unwrap().ttl_ms > 0);
    }

    assert!(!opening.is_finished());
    opening.abort();
}

#[tokio::test]
async fn a_call_is_refused_undecided_while_the_store_fails_and_goes_through_when_it_is_back() {
    let mut scene = Scene::start().await;
    scene.store.off.store(true, Ordering::SeqCst);

    // The first finds out, so that it is decided and waits; the second is not decided at all.
    let first = scene.apply("first").await.unwrap_err();
    let second = scene.apply("second").await.unwrap_err();
    assert_eq!(
        (first.reason(), second.reason()),
        (Reason::StoreFailed, Reason::StoreFailed)
    );
    let pools = scene
        .shared
        .read(|ledger, _| ledger.list_pools().len())
        .await;
    assert_eq!(pools.unwrap(), 1);

    scene.store.off.store(false, Ordering::SeqCst);
    let (word, worker) = scene.ordered().await;
    assert_eq!((word, worker.pool.as_str()), ("start", "first"));
    scene.apply("second").await.unwrap();
}

#[tokio::test]
async fn a_start_that_waited_for_the_store_is_dropped_when_its_worker_was_buried_meanwhile() {
    let mut scene = Scene::start().await;
    scene.store.off.store(true, Ordering::SeqCst);
    scene.apply("digits").await.unwrap_err();

    let (outbox, inbox) = mpsc::channel(64);
    let hello = Hello {
        node: scene.node.to_string(),
        launchers: vec!["exec".to_owned()],
        ..Hello::default()
    };
    scene.stream = scene
        .shared
        .join(&scene.node, &hello, outbox)
        .await
        .unwrap();
    (scene.inbox, scene.seq) = (inbox, 0);
    scene.beat(Vec::new()).await;
    scene.store.off.store(false, Ordering::SeqCst);

    let (word, worker) = scene.ordered().await;
    assert_eq!((word, worker.incarnation), ("start", 2));
    assert!(scene.inbox.try_recv().is_err());
}

#[tokio::test]
async fn an_idle_arbiter_rests() {
    let scene = Scene::start().await;
    scene.apply("digits").await.unwrap();
    drop(scene.stop);
    timeout(PATIENCE, scene.timer).await.unwrap().unwrap();
    let shared = scene.shared;
    let wakes_at_once = || timeout(Duration::from_millis(100), shared.woken.notified());
    // What is left of the setup.
    let _ = wakes_at_once().await;

    let pause = shared.keep_time_once().await;
    let woken = wakes_at_once().await;

    assert!(pause >= PAUSE_MAX && PAUSE_MAX * 2 < ATTENTION, "{pause:?}");
    assert!(
        woken.is_err(),
        "looking at the time wakes nobody to look at the time"
    );
}

#[tokio::test]
async fn a_client_of_an_earlier_session_does_not_disturb_the_later_one() {
    let scene = Scene::start().await;
    let owner: OwnerName = "beam".parse().unwrap();
    let open = || scene.shared.open_session(&owner, None, Duration::ZERO);
    let (early, _) = open().await.unwrap();
    let (late, _) = open().await.unwrap();
    let mut end = scene.shared.follow_session(&owner, late).await.unwrap();

    let refused = scene
        .shared
        .follow_session(&owner, early)
        .await
        .unwrap_err();
    assert_eq!(refused.reason(), Reason::LeaseFenced);
    assert!(end.has_changed().is_ok_and(|changed| !changed));

    open().await.unwrap();
    let told = timeout(PATIENCE, end.wait_for(Option::is_some))
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert_eq!(told.unwrap().reason(), Reason::LeaseFenced);
}

#[tokio::test]
async fn a_caller_that_goes_away_in_the_middle_takes_no_decision_with_it() {
    let mut scene = Scene::start().await;
    scene.store.hung.store(true, Ordering::SeqCst);
    let left = timeout(Duration::from_millis(50), scene.apply("digits")).await;
    assert!(left.is_err());

    scene.store.hung.store(false, Ordering::SeqCst);
    scene.apply("another").await.unwrap();

    let mut started: Vec<String> = Vec::new();
    while started.len() < 2 {
        let message = scene.next().await;
        for order in message.orders {
            if let Some(Order::Start(start)) = order.order {
                started.push(start.worker.unwrap().pool);
            }
        }
    }
    started.sort();
    assert_eq!(started, ["another", "digits"]);
}
