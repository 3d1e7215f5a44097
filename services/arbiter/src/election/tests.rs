//! Several arbiters on one store, each with a way to it that can be cut.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use tether_clock::{BootClock, ManualClock};
use tether_lifecycle::Surroundings;
use tether_proto::{
    Failure, NotLeader,
    node::{HeartbeatRequest, HeartbeatResponse, Hello},
    pool::{Pool, PoolSpec, Template},
};
use tether_store::{Expect, Guard, Listing, MemoryStore, Revision};
use tether_types::{Epoch, NodeName, OwnerName, Reason};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::*;
use crate::{config::Config, shared::Shared};

const PATIENCE: Duration = Duration::from_secs(20);

/// One arbiter's way to the store that all share.
#[derive(Debug)]
struct Way {
    store: Arc<MemoryStore>,
    /// Whether calls get no answer; what was asked meanwhile is never carried out.
    cut: AtomicBool,
    /// Whether commits are carried out and their answers lost.
    deaf: AtomicBool,
    commits: AtomicU64,
    /// Guards of commits that were not about the leader's keys themselves.
    guards: Mutex<Vec<Vec<Guard>>>,
}

impl Way {
    fn to(store: &Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::clone(store),
            cut: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            commits: AtomicU64::new(0),
            guards: Mutex::default(),
        })
    }

    fn away(&self) -> Result<(), Error> {
        match self.cut.load(Ordering::SeqCst) {
            true => Err(lost()),
            false => Ok(()),
        }
    }
}

fn lost() -> Error {
    Error::Unavailable {
        what: "way".to_owned(),
        source: "cut".into(),
    }
}

#[async_trait]
impl Store for Way {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.away()?;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.away()?;
        self.store.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, Error> {
        self.away()?;
        let of_leaders = |write: &tether_store::Write| write.key().starts_with(keys::LEADER);
        if !txn.writes.iter().any(of_leaders) {
            self.guards.lock().unwrap().push(txn.guards.clone());
        }
        self.commits.fetch_add(1, Ordering::SeqCst);
        let committed = self.store.commit(txn).await;
        match self.deaf.load(Ordering::SeqCst) {
            true => Err(lost()),
            false => committed,
        }
    }

    fn watch(&self, prefix: &str, after: Revision) -> Changes {
        self.store.watch(prefix, after)
    }
}

fn terms() -> LeaderTerms {
    let ms = Duration::from_millis;
    LeaderTerms::new(ms(1_000), ms(100), ms(200)).unwrap()
}

struct Member {
    seat: Arc<Seat>,
    way: Arc<Way>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Member {
    fn start(name: &str, store: &Arc<MemoryStore>) -> Self {
        let (way, seat) = (Way::to(store), Arc::new(Seat::empty()));
        let election = Election {
            store: Arc::clone(&way) as Arc<dyn Store>,
            clock: Arc::new(BootClock),
            seat: Arc::clone(&seat),
            origins: Origins {
                terms: Config::default().terms().unwrap(),
                templates: BTreeMap::new(),
                surroundings: Surroundings::default(),
                clock: Arc::new(BootClock),
            },
            terms: terms(),
            address: Some(format!("{name}:1").parse().unwrap()),
        };
        let stop = CancellationToken::new();
        Self {
            running: tokio::spawn(election.run(stop.clone())),
            seat,
            way,
            stop,
        }
    }

    /// Waits until it leads.
    async fn leads(&self) -> Arc<Shared> {
        let mut serving = self.seat.serving();
        let led = serving.wait_for(|serving| *serving);
        drop(timeout(PATIENCE, led).await.unwrap().unwrap());
        self.seat.shared().unwrap()
    }

    async fn is_out(&self) {
        let mut serving = self.seat.serving();
        let out = serving.wait_for(|serving| !*serving);
        drop(timeout(PATIENCE, out).await.unwrap().unwrap());
    }

    /// Whom it points to.
    async fn points_to(&self, leader: &str) {
        let found = async {
            loop {
                let refused = self.seat.shared().err();
                let said = refused.and_then(|why| NotLeader::of(&why.into()));
                if said.and_then(|said| said.leader) == Some(leader.parse().unwrap()) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, found).await.unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.running).await.unwrap().unwrap();
    }
}

async fn apply(shared: &Shared, name: &str) -> Result<Pool, Failure> {
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
    shared
        .act(|ledger, now| ledger.apply_pool(spec, owner, Epoch(0), now))
        .await
}

async fn join(shared: &Shared) -> (u64, mpsc::Receiver<Box<HeartbeatResponse>>) {
    let node: NodeName = "n0".parse().unwrap();
    let hello = Hello {
        node: node.to_string(),
        launchers: vec!["exec".to_owned()],
        ..Hello::default()
    };
    let (outbox, inbox) = mpsc::channel(64);
    (shared.join(&node, &hello, outbox).await.unwrap(), inbox)
}

async fn beat(shared: &Shared, stream: u64, seq: u64) -> bool {
    let beat = HeartbeatRequest {
        seq,
        ack_seen: seq - 1,
        ..HeartbeatRequest::default()
    };
    shared.beat(&"n0".parse().unwrap(), stream, &beat).await
}

#[tokio::test]
async fn one_leads_the_others_point_to_it_and_one_that_stops_is_followed_at_once() {
    let store = Arc::new(MemoryStore::default());
    let first = Member::start("a", &store);
    let leader = first.leads().await;
    let second = Member::start("b", &store);
    let third = Member::start("c", &store);
    second.points_to("a:1").await;
    third.points_to("a:1").await;
    let _inbox = join(&leader).await;
    apply(&leader, "digits").await.unwrap();

    let start = Instant::now();
    first.stop().await;
    let next = tokio::select! {
        next = second.leads() => next,
        next = third.leads() => next,
    };

    let took = start.elapsed();
    assert!(
        took < terms().lead_span(),
        "nobody waited for a term: {took:?}"
    );
    let refused = apply(&leader, "tardy").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::NotLeader);
    let pools = next.read(|ledger, _| ledger.list_pools().len()).await;
    assert_eq!(pools.unwrap(), 1, "what the first acknowledged is known");
    assert!(second.seat.shared().is_ok() != third.seat.shared().is_ok());
}

#[tokio::test]
async fn a_leader_without_its_store_goes_on_until_its_time_is_over_and_is_then_followed() {
    let store = Arc::new(MemoryStore::default());
    let first = Member::start("a", &store);
    let leader = first.leads().await;
    let (stream, _inbox) = join(&leader).await;
    assert!(beat(&leader, stream, 1).await);
    let second = Member::start("b", &store);
    second.points_to("a:1").await;

    first.way.cut.store(true, Ordering::SeqCst);
    let cut = Instant::now();
    assert!(beat(&leader, stream, 2).await, "it may still renew leases");
    first.is_out().await;
    let out = cut.elapsed();
    assert!(!beat(&leader, stream, 3).await);
    assert!(leader.read(|_, _| ()).await.is_err());
    assert!(leader.deposed().is_some());

    let next = second.leads().await;
    let _inbox = join(&next).await;
    assert!(out < terms().lead_span() + terms().renew(), "{out:?}");
    assert!(cut.elapsed() > terms().lead_span());
    apply(&next, "digits").await.unwrap();
    first.way.cut.store(false, Ordering::SeqCst);
    first.points_to("b:1").await;
    second.stop().await;
    first.leads().await;
}

#[tokio::test]
async fn when_the_only_store_comes_back_somebody_leads_again_without_waiting_for_a_term() {
    let store = Arc::new(MemoryStore::default());
    let member = Member::start("a", &store);
    let leader = member.leads().await;
    let _inbox = join(&leader).await;
    apply(&leader, "digits").await.unwrap();
    member.way.cut.store(true, Ordering::SeqCst);
    member.is_out().await;

    member.way.cut.store(false, Ordering::SeqCst);
    let back = Instant::now();
    let again = member.leads().await;

    let took = back.elapsed();
    assert!(took < terms().lead_span(), "{took:?}");
    assert!(
        again
            .read(|ledger, _| ledger.get_pool("digits").is_ok())
            .await
            .unwrap()
    );
    assert!(leader.read(|_, _| ()).await.is_err(), "that reign is over");
}

/// A candidate that hears nothing of its own victory, and a leader that hears nothing of its renewals.
#[tokio::test]
async fn a_victory_without_an_answer_is_found_and_renewals_without_one_count_for_nothing() {
    let store = Arc::new(MemoryStore::default());
    let member = Member::start("a", &store);
    member.way.deaf.store(true, Ordering::SeqCst);

    let leader = member.leads().await;
    let commits = member.way.commits.load(Ordering::SeqCst);
    timeout(PATIENCE, leader.over()).await.unwrap();

    assert!(
        member.way.commits.load(Ordering::SeqCst) > commits,
        "it did renew"
    );
    assert!(leader.read(|_, _| ()).await.is_err());
}

#[tokio::test]
async fn every_commit_of_a_leader_is_refused_once_another_has_won() {
    let store = Arc::new(MemoryStore::default());
    let member = Member::start("a", &store);
    let leader = member.leads().await;
    let (stream, mut inbox) = join(&leader).await;
    assert!(beat(&leader, stream, 1).await);
    apply(&leader, "digits").await.unwrap();
    let reign = store.get(keys::REIGN).await.unwrap().unwrap().mod_revision;

    // As after a pause that its clock did not show: it believes that it leads.
    let usurped = Txn::new().unchanged(keys::REIGN, reign);
    store
        .commit(usurped.put(keys::REIGN, "another"))
        .await
        .unwrap();
    let before = store.list("").await.unwrap().entries.len();
    let refused = apply(&leader, "tardy").await.unwrap_err();

    assert_eq!(refused.reason(), Reason::NotLeader);
    timeout(PATIENCE, leader.over()).await.unwrap();
    assert!(!beat(&leader, stream, 2).await);
    assert_eq!(store.list("").await.unwrap().entries.len(), before);
    let guard = Guard {
        key: keys::REIGN.to_owned(),
        expect: Expect::Revision(reign),
    };
    let guards = std::mem::take(&mut *member.way.guards.lock().unwrap());
    assert!(
        guards.iter().all(|guards| guards.contains(&guard)),
        "{guards:?}"
    );
    while let Ok(message) = inbox.try_recv() {
        for order in message.orders {
            assert!(!format!("{order:?}").contains("tardy"));
        }
    }
}

#[tokio::test]
async fn a_batch_of_many_commits_stops_where_another_has_won() {
    let store = Arc::new(MemoryStore::default());
    let member = Member::start("a", &store);
    let leader = member.leads().await;
    // Two hundred deletes and more, written in several commits.
    for number in 0..250 {
        store
            .commit(Txn::new().put(format!("serve/x/{number:03}"), "x"))
            .await
            .unwrap();
    }
    let reign = store.get(keys::REIGN).await.unwrap().unwrap().mod_revision;
    let mut many = crate::effects::Effects::default();
    for number in 0..250 {
        many.delete(format!("serve/x/{number:03}"));
    }
    let forever = Reign {
        number: reign,
        until: Tick::NEVER,
    };
    let mandate = Arc::new(Mandate::of(forever, Arc::new(BootClock)));
    let usurper = Usurper {
        store: Arc::clone(&store),
        after: AtomicU64::new(1),
        reign,
    };
    let origins = Origins {
        terms: Config::default().terms().unwrap(),
        templates: BTreeMap::new(),
        surroundings: Surroundings::default(),
        clock: Arc::new(BootClock),
    };
    let usurped: Arc<dyn Store> = Arc::new(usurper);
    let shared = origins.shared(&usurped, &mandate).await.unwrap();

    let refused = shared.write(&mut many).await.unwrap_err();

    assert_eq!(refused.reason(), Reason::NotLeader);
    assert!(
        shared.deposed().is_some(),
        "it knows at once that this is the end"
    );
    let left = store.list("serve/x/").await.unwrap().entries.len();
    assert_eq!(left, 150, "the first hundred were deleted, and no more");
    drop(leader);
}

/// Lets another win after so many commits.
#[derive(Debug)]
struct Usurper {
    store: Arc<MemoryStore>,
    after: AtomicU64,
    reign: u64,
}

#[async_trait]
impl Store for Usurper {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.store.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, Error> {
        let committed = self.store.commit(txn).await;
        if self.after.fetch_sub(1, Ordering::SeqCst) == 1 {
            let usurped = Txn::new().unchanged(keys::REIGN, self.reign);
            self.store
                .commit(usurped.put(keys::REIGN, "another"))
                .await?;
        }
        committed
    }

    fn watch(&self, prefix: &str, after: Revision) -> Changes {
        self.store.watch(prefix, after)
    }
}

#[tokio::test]
async fn an_order_that_needs_no_write_asks_the_store_all_the_same() {
    let store = Arc::new(MemoryStore::default());
    let member = Member::start("a", &store);
    let leader = member.leads().await;
    let mut orders = crate::effects::Effects::default();
    let signal = tether_proto::node::order::Order::Signal(Default::default());
    orders.order(&"n0".parse().unwrap(), signal);
    leader.write(&mut orders).await.unwrap();
    let reign = store.get(keys::REIGN).await.unwrap().unwrap().mod_revision;
    let usurped = Txn::new().unchanged(keys::REIGN, reign);
    store
        .commit(usurped.put(keys::REIGN, "another"))
        .await
        .unwrap();

    let refused = leader.write(&mut orders).await.unwrap_err();

    assert_eq!(refused.reason(), Reason::NotLeader);
}

/// Whoever finds out later that its time is over has decided nothing since.
#[tokio::test]
async fn a_process_that_was_stopped_refuses_by_its_clock_before_anybody_tells_it() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let hand = ManualClock::at(Tick::ZERO + Duration::from_secs(100));
    let clock: Arc<dyn Clock> = Arc::new(hand.clone());
    let reign = Reign {
        number: store
            .commit(Txn::new().put(keys::REIGN, "me"))
            .await
            .unwrap(),
        until: hand.now() + Duration::from_secs(4),
    };
    let mandate = Arc::new(Mandate::of(reign, Arc::clone(&clock)));
    let origins = Origins {
        terms: Config::default().terms().unwrap(),
        templates: BTreeMap::new(),
        surroundings: Surroundings::default(),
        clock,
    };
    let shared = origins.shared(&store, &mandate).await.unwrap();
    let (stream, _inbox) = join(&shared).await;
    hand.advance(Duration::from_secs(3));
    assert!(beat(&shared, stream, 1).await);
    mandate.extend(hand.now() + Duration::from_secs(4));
    hand.advance(Duration::from_secs(3));
    assert!(beat(&shared, stream, 2).await);

    hand.advance(Duration::from_secs(1));

    assert!(!beat(&shared, stream, 3).await);
    assert!(shared.read(|_, _| ()).await.is_err());
    let refused = apply(&shared, "tardy").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::NotLeader);
    let owner: OwnerName = "beam".parse().unwrap();
    let opened = shared.open_session(&owner, None, Duration::ZERO).await;
    assert_eq!(opened.unwrap_err().reason(), Reason::NotLeader);
    assert!(!mandate.over().is_cancelled(), "nobody has told it");
}
