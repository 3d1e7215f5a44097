//! The service as a gateway sees it: gRPC over a unix socket, on real stores.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use support::{Copy, PATIENCE, memory, start};
use tether_discovery::{Config, Discovery, PoolSource};
use tether_etcd_cluster::Setup;
use tether_proto::{
    common::{Death, DeathCause, Endpoint, WorkerRef},
    discovery::{EndpointRemoval, WatchEndpointsResponse},
};
use tether_store::{Store, Txn, keys, open};
use tether_types::{PoolName, Reason};

fn pool() -> PoolName {
    PoolName::new("train").unwrap()
}

fn worker(slot: u32, incarnation: u64) -> WorkerRef {
    WorkerRef {
        pool: "train".to_owned(),
        slot,
        incarnation,
    }
}

fn endpoint(slot: u32, incarnation: u64) -> Endpoint {
    Endpoint {
        worker: Some(worker(slot, incarnation)),
        address: format!("unix:/run/{slot}-{incarnation}.sock"),
        node: "here".to_owned(),
        ..Endpoint::default()
    }
}

fn removal(slot: u32, incarnation: u64, code: i32) -> EndpointRemoval {
    EndpointRemoval {
        worker: Some(worker(slot, incarnation)),
        death: Some(Death {
            cause: DeathCause::Exited.into(),
            exit_code: Some(code),
            ..Death::default()
        }),
    }
}

fn serves(txn: Txn, slot: u32, incarnation: u64) -> Txn {
    let value = endpoint(slot, incarnation).encode_to_vec();
    txn.put(keys::endpoint(&pool(), slot), value)
}

fn dies(txn: Txn, slot: u32, incarnation: u64, code: i32) -> Txn {
    let value = removal(slot, incarnation, code).encode_to_vec();
    txn.delete(keys::endpoint(&pool(), slot))
        .put(keys::death(&pool(), slot), value)
}

async fn commit(store: &Arc<dyn Store>, txn: Txn) {
    store.commit(txn).await.unwrap();
}

#[tokio::test]
async fn a_removal_carries_its_death_and_one_commit_is_one_message() {
    let store = memory();
    let setup = Txn::new().put(keys::pool(&pool()), "");
    commit(&store, serves(serves(setup, 0, 1), 1, 2)).await;
    let running = start(Config::default(), Arc::clone(&store)).await;
    let mut watch = running.watch("", None).await;
    let first = watch.next().await;
    assert!(first.snapshot);
    assert_eq!(first.pools, ["train"]);
    assert_eq!(first.upserts, [endpoint(0, 1), endpoint(1, 2)]);

    // Dies for good; dies and is replaced at once; leaves alive.
    commit(&store, dies(Txn::new(), 0, 1, 7)).await;
    let message = watch.next().await;
    assert_eq!(message.removals, [removal(0, 1, 7)]);
    assert!(message.upserts.is_empty() && message.revision > first.revision);

    let replaced = Txn::new().put(keys::death(&pool(), 1), removal(1, 2, 9).encode_to_vec());
    commit(&store, serves(replaced, 1, 3)).await;
    let message = watch.next().await;
    assert_eq!(message.removals, [removal(1, 2, 9)]);
    assert_eq!(message.upserts, [endpoint(1, 3)]);

    let leaves = Txn::new()
        .delete(keys::endpoint(&pool(), 1))
        .delete(keys::pool(&pool()));
    commit(&store, leaves).await;
    let message = watch.next().await;
    assert_eq!(
        message.removals,
        [EndpointRemoval {
            worker: Some(worker(1, 3)),
            death: None
        }]
    );
    assert_eq!(message.removed_pools, ["train"]);
}

#[tokio::test]
async fn a_watcher_that_comes_back_is_told_what_it_missed_or_everything() {
    let store = memory();
    let config = Config {
        history: 4,
        ..Config::default()
    };
    let running = start(config, Arc::clone(&store)).await;
    let mut watch = running.watch("train", None).await;
    let nothing = watch.next().await;
    assert!(nothing.snapshot && nothing.upserts.is_empty());
    for slot in 0..3 {
        commit(&store, serves(Txn::new(), slot, 1)).await;
        assert_eq!(watch.next().await.upserts, [endpoint(slot, 1)]);
    }

    let mut resumed = running.watch("train", Some(&nothing)).await;
    for slot in 0..3 {
        let message = resumed.any().await;
        assert!(!message.snapshot);
        assert_eq!(message.upserts, [endpoint(slot, 1)]);
    }

    for slot in 3..6 {
        commit(&store, serves(Txn::new(), slot, 1)).await;
        assert_eq!(watch.next().await.upserts, [endpoint(slot, 1)]);
    }
    let too_old = running.watch("train", Some(&nothing)).await.any().await;
    assert!(too_old.snapshot);
    assert_eq!(too_old.upserts.len(), 6);
    let stranger = WatchEndpointsResponse {
        instance: "another-life".to_owned(),
        ..too_old.clone()
    };
    assert!(
        running
            .watch("train", Some(&stranger))
            .await
            .any()
            .await
            .snapshot
    );

    // Nothing missed: a sign of life at once, and no snapshot.
    let missed_nothing = running.watch("train", Some(&too_old)).await.any().await;
    assert_eq!(missed_nothing.revision, too_old.revision);
    assert!(!missed_nothing.snapshot && missed_nothing.upserts.is_empty());
    assert!(
        running
            .watch("other", None)
            .await
            .any()
            .await
            .upserts
            .is_empty()
    );
}

#[tokio::test]
async fn a_slow_watcher_gets_a_fresh_snapshot_and_arrives_at_the_same_table() {
    let store = memory();
    let config = Config {
        history: 64,
        ..Config::default()
    };
    let running = start(config, Arc::clone(&store)).await;
    let mut slow = running.watch("", None).await;
    let mut copy = Copy::default();
    copy.take(&slow.next().await);

    // Each message is large, so that the connection cannot hold them all for a client that does not
    // read; `quick` shows that the service itself goes on.
    let mut quick = running.watch("", None).await;
    let mut last = quick.next().await;
    for number in 1..=400u64 {
        let mut new = endpoint(0, number);
        new.node = "x".repeat(64 << 10);
        commit(
            &store,
            Txn::new().put(keys::endpoint(&pool(), 0), new.encode_to_vec()),
        )
        .await;
        last = quick.next().await;
    }

    let mut snapshots = 0;
    let mut messages = 0;
    loop {
        let message = slow.next().await;
        messages += 1;
        snapshots += usize::from(message.snapshot);
        copy.take(&message);
        if message.revision == last.revision {
            break;
        }
    }
    assert!(snapshots >= 1, "the ring holds 64 changes, 400 happened");
    assert!(
        messages < 300,
        "{messages} messages were kept for a watcher that did not read"
    );
    let incarnation = copy.0[&0].worker.as_ref().unwrap().incarnation;
    assert_eq!(incarnation, 400);
}

#[tokio::test]
async fn a_store_that_is_away_leaves_the_last_knowledge_with_its_age_and_nothing_is_missed() {
    let mut etcd = Setup::members(1).start().await;
    let store = open(&etcd.url("tether")).await.unwrap();
    commit(&store, serves(serves(Txn::new(), 0, 1), 1, 1)).await;
    let config = Config {
        sign_of_life: Duration::from_millis(100),
        ..Config::default()
    };
    let running = start(config, Arc::clone(&store)).await;
    let mut watch = running.watch("", None).await;
    let first = watch.next().await;
    assert_eq!((first.upserts.len(), first.source_age_ms), (2, 0));

    etcd.member(0).kill();
    let mut ages = Vec::new();
    let waiting = async {
        while ages.len() < 3 {
            let message = watch.any().await;
            assert!(!message.snapshot && message.removals.is_empty());
            ages.extend(Some(message.source_age_ms).filter(|age| *age > 0));
        }
    };
    let told = tokio::time::timeout(PATIENCE, waiting).await;
    told.expect("the age of the knowledge is told (D4)");
    assert!(ages.is_sorted() && ages[2] > ages[0], "{ages:?}");
    let newcomer = running.watch("", None).await.any().await;
    assert_eq!(newcomer.upserts, first.upserts);
    assert!(newcomer.source_age_ms > 0);

    etcd.restart(0).await;
    // Two deaths of one slot while discovery may still be waiting: both are told.
    commit(&store, dies(Txn::new(), 0, 1, 1)).await;
    commit(&store, serves(Txn::new(), 0, 2)).await;
    commit(&store, dies(Txn::new(), 0, 2, 2)).await;
    assert_eq!(watch.next().await.removals, [removal(0, 1, 1)]);
    assert_eq!(watch.next().await.upserts, [endpoint(0, 2)]);
    let message = watch.next().await;
    assert_eq!(message.removals, [removal(0, 2, 2)]);
    assert_eq!(message.source_age_ms, 0);
}

#[tokio::test]
async fn changes_of_other_pools_do_not_put_off_a_sign_of_life() {
    let store = memory();
    let sign_of_life = Duration::from_millis(200);
    let config = Config {
        sign_of_life,
        ..Config::default()
    };
    let running = start(config, Arc::clone(&store)).await;
    let mut watch = running.watch("other", None).await;
    watch.next().await;

    // Ten times as often as a sign is due, and none of them is told here.
    let changing = async {
        for incarnation in 1.. {
            commit(&store, serves(Txn::new(), 0, incarnation)).await;
            tokio::time::sleep(sign_of_life / 10).await;
        }
    };
    let told = async {
        for _ in 0..3 {
            watch.any().await;
        }
    };
    tokio::select! {
        () = changing => unreachable!("it goes on for ever"),
        told = tokio::time::timeout(PATIENCE, told) => told.expect("signs of life come"),
    }
}

#[tokio::test]
async fn a_store_that_never_answers_is_reported_rather_than_told_as_empty() {
    let store = open("etcd://127.0.0.1:1").await.unwrap();
    let config = Config {
        sign_of_life: Duration::from_millis(100),
        ..Config::default()
    };
    let running = start(config, store).await;

    let mut watch = running.watch("", None).await;
    let status = tokio::time::timeout(PATIENCE, watch.0.message())
        .await
        .unwrap()
        .unwrap_err();

    assert_eq!(
        tether_proto::reason_of(&status),
        Some(Reason::DiscoveryUnreachable)
    );
}

fn sourced(source: &str) -> PoolSource {
    PoolSource {
        source: source.to_owned(),
        ..PoolSource::default()
    }
}

#[tokio::test]
async fn a_configured_pool_is_served_from_its_source_and_the_store_has_no_say_in_it() {
    let store = memory();
    let source = "static://10.0.0.2:1,10.0.0.1:1";
    let config = Config {
        pools: BTreeMap::from([("train".to_owned(), sourced(source))]),
        ..Config::default()
    };
    commit(&store, serves(Txn::new(), 7, 1)).await;
    let running = start(config, Arc::clone(&store)).await;

    let mut watch = running.watch("train", None).await;
    let mut copy = Copy::default();
    while copy.0.len() < 2 {
        copy.take(&watch.next().await);
    }

    let addresses: BTreeSet<_> = copy.0.values().map(|e| e.address.as_str()).collect();
    assert!(addresses.iter().eq(&["10.0.0.1:1", "10.0.0.2:1"]));
    let bad = Config {
        pools: BTreeMap::from([("train".to_owned(), sourced("dns://x"))]),
        ..Config::default()
    };
    let error = Discovery::build(&bad, store).err().unwrap();
    assert!(
        error.to_string().contains("discovery.pools.train.source"),
        "{error}"
    );
}

#[tokio::test]
async fn a_pool_follows_its_file_and_keeps_with_its_age_what_a_missing_file_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("list.json");
    let write = |list: &str| {
        std::fs::write(folder.path().join("next"), list).unwrap();
        std::fs::rename(folder.path().join("next"), &file).unwrap();
    };
    write(r#"[{"address": "10.0.0.1:1", "identity": "a"}]"#);
    let source = format!("file://{}", file.display());
    let config = Config {
        pools: BTreeMap::from([("train".to_owned(), sourced(&source))]),
        sign_of_life: Duration::from_millis(50),
        ..Config::default()
    };
    let running = start(config, memory()).await;
    let mut watch = running.watch("train", None).await;
    let mut copy = Copy::default();
    while copy.0.is_empty() {
        copy.take(&watch.next().await);
    }
    let before = copy.0.clone();

    std::fs::remove_file(&file).unwrap();
    let told = async { while watch.any().await.pool_ages.is_empty() {} };
    let told = tokio::time::timeout(PATIENCE, told).await;
    told.expect("the age of what is told is told (D6)");

    // Somebody else at the same address, and the age is over.
    write(r#"[{"address": "10.0.0.1:1", "identity": "b"}]"#);
    let message = watch.next().await;
    assert!(message.pool_ages.is_empty());
    copy.take(&message);
    assert_eq!(copy.0.len(), 1);
    assert_ne!(copy.0, before, "it is another incarnation");

    write("[]");
    while !copy.0.is_empty() {
        copy.take(&watch.next().await);
    }
}

#[tokio::test]
async fn of_a_pool_whose_sources_have_said_nothing_yet_nothing_is_told_until_they_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.json");
    let config = Config {
        pools: BTreeMap::from([(
            "train".to_owned(),
            PoolSource {
                sources: vec![
                    "file:///nowhere/at/all.json".to_owned(),
                    format!("file://{}", file.display()),
                ],
                ..PoolSource::default()
            },
        )]),
        ..Config::default()
    };
    let running = start(config, memory()).await;
    let mut watch = running.watch("", None).await;
    let first = watch.next().await;
    assert!(first.snapshot && first.upserts.is_empty());
    assert_eq!(
        (first.pools, first.unheard_pools),
        (vec!["train".to_owned()], vec!["train".to_owned()])
    );

    // That nobody serves it is something said.
    std::fs::write(&file, "[]\n").unwrap();
    let said = loop {
        let message = watch.next().await;
        if !message.heard_pools.is_empty() {
            break message;
        }
        assert_eq!(message.upserts, []);
    };
    assert_eq!(
        (said.heard_pools, said.upserts),
        (vec!["train".to_owned()], Vec::new())
    );
    let later = running.watch("train", None).await.next().await;
    assert!(later.snapshot && later.unheard_pools.is_empty());
}

#[tokio::test]
async fn what_is_not_understood_does_not_hide_the_rest() {
    let store = memory();
    let garbage = Txn::new()
        .put("serve/what/is/this", "?")
        .put(keys::endpoint(&pool(), 0), "\u{1}garbage")
        .put(keys::endpoint(&pool(), 1), endpoint(2, 1).encode_to_vec());
    commit(&store, serves(garbage, 3, 1)).await;

    let running = start(Config::default(), Arc::clone(&store)).await;

    let first = running.watch("", None).await.next().await;
    assert_eq!(first.upserts, [endpoint(3, 1)]);
}

#[tokio::test]
async fn a_stop_ends_every_watch_before_the_drain_is_over() {
    let running = start(Config::default(), memory()).await;
    let mut watch = running.watch("", None).await;
    watch.next().await;

    running.stop.cancel();

    let end = tokio::time::timeout(Duration::from_secs(3), watch.0.message()).await;
    assert!(matches!(end, Ok(Ok(None))), "{end:?}");
    drop((watch, running.client));
    let served = tokio::time::timeout(Duration::from_secs(3), running.served).await;
    served
        .expect("nothing is left to wait for")
        .unwrap()
        .unwrap();
    running.ran.await.unwrap().unwrap();
}
