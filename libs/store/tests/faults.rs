//! A real cluster of three loses members, one way or another, while commits and watches go on: nothing
//! acknowledged is lost, nothing is done twice, and every watcher is told of each commit once and in order.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "test helpers outside of test functions"
)]

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future::join_all};
use tether_etcd_cluster::{Cluster, Flow, Loss, REQUESTS, Setup, Signal, Wire};
use tether_store::{Error, Txn, open};
use tokio::time::{Instant, timeout};

#[path = "support/load.rs"]
mod load;
use load::Load;

/// What a silent member may cost a call, and what a loaded machine adds.
const DELAY_MAX: Duration = Duration::from_millis(1500 + 1500);

/// What the loss of a leader may: a call under way, the election, and the load.
const ELECTION_MAX: Duration = Duration::from_secs(15);

async fn under_load(what: &str, fault: impl AsyncFnOnce(&mut Cluster, &Load)) -> (Duration, usize) {
    let mut cluster = Setup::members(3).start().await;
    let load = Load::start(&cluster.url("load")).await;
    load.goes_on(100).await;
    fault(&mut cluster, &load).await;
    load.goes_on(100).await;
    load.end(what).await
}

#[tokio::test]
async fn the_leader_is_killed_and_comes_back() {
    let (longest, _) = under_load("leader killed", async |cluster, load| {
        let leader = cluster.leader().await;
        cluster.member(leader).kill();
        load.goes_on(100).await;
        cluster.restart(leader).await;
    })
    .await;
    assert!(longest < ELECTION_MAX, "{longest:?}");
}

#[tokio::test]
async fn the_leader_is_stopped_and_goes_on() {
    let (longest, _) = under_load("leader stopped", async |cluster, load| {
        let leader = cluster.leader().await;
        cluster.member(leader).signal(Signal::STOP);
        load.goes_on(100).await;
        cluster.member(leader).signal(Signal::CONT);
        cluster.formed().await;
    })
    .await;
    assert!(longest < ELECTION_MAX, "{longest:?}");
}

#[tokio::test]
async fn the_lead_goes_round() {
    let (longest, _) = under_load("lead moved three times", async |cluster, load| {
        for member in [1, 2, 0] {
            cluster.move_leader(member).await;
            load.goes_on(30).await;
        }
    })
    .await;
    assert!(longest < ELECTION_MAX, "{longest:?}");
}

#[tokio::test]
async fn every_member_is_killed_and_comes_back_one_after_the_other() {
    let (longest, _) = under_load("each member killed in turn", async |cluster, load| {
        for member in 0..cluster.size() {
            cluster.member(member).kill();
            load.goes_on(30).await;
            cluster.restart(member).await;
        }
    })
    .await;
    assert!(longest < ELECTION_MAX, "{longest:?}");
}

#[tokio::test]
async fn the_majority_is_lost_and_comes_back() {
    under_load("majority killed", async |cluster, _| {
        cluster.member(0).kill();
        cluster.member(1).kill();
        let error = open(&cluster.url("x"))
            .await
            .unwrap()
            .get("a")
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        cluster.member(0).start();
        cluster.restart(1).await;
    })
    .await;
}

/// The member that is asked first is none of those it takes to answer, and is stopped.
#[tokio::test]
async fn a_member_that_hangs_delays_the_calls_under_way_and_none_after_them() {
    let mut cluster = Setup::members(3).start().await;
    let store = open(&cluster.url("hangs")).await.unwrap();
    cluster.move_leader(1).await;
    let first = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let mut watch = store.watch("", first - 1);
    assert_eq!(watch.next().await.unwrap().unwrap().revision, first);

    cluster.member(0).signal(Signal::STOP);
    let start = Instant::now();
    let calls = (0..20).map(|_| store.get("a"));
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    let delay = start.elapsed();
    println!(
        "a member hangs: 20 calls at once took {} ms",
        delay.as_millis()
    );
    assert!(delay < DELAY_MAX, "{delay:?}");

    let start = Instant::now();
    for _ in 0..20 {
        store.get("a").await.unwrap();
    }
    let later = start.elapsed();
    println!(
        "a member hangs: 20 calls one after the other took {} ms",
        later.as_millis()
    );
    assert!(later < DELAY_MAX, "{later:?}");

    // The watch finds out by its keep-alives, 6 s apart with 3 s to answer.
    let second = store.commit(Txn::new().put("a", "2")).await.unwrap();
    let told = timeout(Duration::from_secs(30), watch.next())
        .await
        .unwrap();
    assert_eq!(told.unwrap().unwrap().revision, second);
}

#[tokio::test]
async fn a_member_that_goes_on_is_not_asked_what_was_given_up_meanwhile() {
    let mut cluster = Setup::members(1).start().await;
    let store = open(&cluster.url("given-up")).await.unwrap();
    store.get("a").await.unwrap();
    let before = cluster.member(0).counted(REQUESTS).await;

    cluster.lose(0, Loss::Stopped);
    for _ in 0..2 {
        let error = store.get("a").await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    }
    cluster.bring_back(0, Loss::Stopped).await;
    store.get("a").await.unwrap();

    // Whether the cluster is formed, the one on the connection there was, the version and the one that is answered.
    let asked = cluster.member(0).counted(REQUESTS).await - before;
    assert!(asked <= 4.0, "{asked}");
}

#[tokio::test]
async fn a_member_without_a_leader_is_left_for_another_at_once() {
    let mut cluster = Setup::members(3).start().await;
    let away = Setup::members(3).start().await;
    // One member of a cluster whose others are gone comes first in the URL of a cluster that works.
    let mut away = away;
    away.member(1).kill();
    away.member(2).kill();
    let mut addresses = vec![away.addresses()[0].clone()];
    let lonely = open(&away.url_through(&addresses, "x")).await.unwrap();
    let error = lonely.get("a").await.unwrap_err();
    addresses.extend(cluster.addresses());
    // It says that it has none once its own election has run out of time.
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut error = error;
    while !chain(&error).contains("no leader") {
        assert!(Instant::now() < deadline, "{}", chain(&error));
        error = lonely.get("a").await.unwrap_err();
    }
    let store = open(&cluster.url_through(&addresses, "x")).await.unwrap();

    let start = Instant::now();
    store.commit(Txn::new().put("a", "")).await.unwrap();
    let took = start.elapsed();

    println!("a member without a leader cost {} ms", took.as_millis());
    assert!(took < Duration::from_millis(1000), "{took:?}");
    cluster.member(0).kill();
}

fn chain(error: &dyn std::error::Error) -> String {
    let source = error.source().map(chain);
    format!("{error}: {}", source.unwrap_or_default())
}

/// Two members behind wires; what the first one answers can be cut off, and what it is asked.
async fn wired(cluster: &Cluster) -> ([Wire; 2], String) {
    let addresses = cluster.addresses();
    let wires = [
        Wire::to(addresses[0].clone()).await,
        Wire::to(addresses[1].clone()).await,
    ];
    let through = wires.each_ref().map(Wire::address);
    let url = cluster.url_through(&through, "wired");
    (wires, url)
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_done_once_and_told_as_what_it_was() {
    let cluster = Setup::members(3).start().await;
    let (wires, url) = wired(&cluster).await;
    let (store, other) = (
        open(&url).await.unwrap(),
        open(&cluster.url("wired")).await.unwrap(),
    );
    let start = store
        .commit(Txn::new().put("a", "0").put("b", "0"))
        .await
        .unwrap();

    // Without guards: done twice, it would undo what somebody else did in between.
    wires[0].set(Flow::OnlyUp);
    let mut watch = other.watch("", start);
    let commit = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.commit(Txn::new().put("a", "ours")).await }
    });
    let done = watch.next().await.unwrap().unwrap().revision;
    let theirs = other.commit(Txn::new().put("a", "theirs")).await.unwrap();
    assert_eq!(commit.await.unwrap().unwrap(), done);
    assert_eq!(other.get("a").await.unwrap().unwrap().mod_revision, theirs);

    // With a guard that no longer holds when it is sent again, and could hold once more after that.
    wires[0].set(Flow::Both);
    wires[1].set(Flow::OnlyUp);
    let commit = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            store
                .commit(Txn::new().absent("lock").put("lock", "ours"))
                .await
        }
    });
    assert_eq!(watch.next().await.unwrap().unwrap().revision, theirs);
    let locked = watch.next().await.unwrap().unwrap().revision;
    other.commit(Txn::new().delete("lock")).await.unwrap();
    assert_eq!(commit.await.unwrap().unwrap(), locked);
    assert_eq!(other.get("lock").await.unwrap(), None, "it was taken twice");
}

#[tokio::test]
async fn a_commit_whose_request_is_lost_is_sent_again() {
    let cluster = Setup::members(3).start().await;
    let (wires, url) = wired(&cluster).await;
    let store = open(&url).await.unwrap();
    let made = store.commit(Txn::new().put("a", "0")).await.unwrap();

    wires[0].set(Flow::OnlyDown);
    let start = Instant::now();
    let changed = store
        .commit(Txn::new().unchanged("a", made).put("a", "1"))
        .await
        .unwrap();

    assert!(start.elapsed() < DELAY_MAX, "{:?}", start.elapsed());
    assert_eq!(store.get("a").await.unwrap().unwrap().mod_revision, changed);
}

#[tokio::test]
async fn a_guard_that_failed_at_a_second_member_cannot_hold_at_the_first_one_later() {
    let cluster = Setup::members(3).start().await;
    let (wires, url) = wired(&cluster).await;
    let store = open(&url).await.unwrap();
    let other = open(&cluster.url("wired")).await.unwrap();
    store
        .commit(Txn::new().put("lock", "theirs"))
        .await
        .unwrap();

    // The request is on its way to the first member for as long as we want it to be.
    wires[0].set(Flow::LateUp);
    let commit = tokio::spawn(async move {
        let txn = Txn::new().absent("lock").put("lock", "ours");
        store.commit(txn).await
    });
    eventually(|| wires[0].asked(b"ours")).await;
    wires[0].set(Flow::OnlyDown);
    let refused = commit.await.unwrap();
    assert!(matches!(refused, Err(Error::Conflict { key }) if key == "lock"));
    let deleted = other.commit(Txn::new().delete("lock")).await.unwrap();
    wires[0].set(Flow::Both);

    // What it answers where it did nothing: the receipt that it read.
    eventually(|| wires[0].answered(b"receipts/")).await;
    let left = other.list("lock").await.unwrap();
    assert_eq!((left.entries.len(), left.revision), (0, deleted));
}

async fn eventually(happened: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !happened() {
        assert!(Instant::now() < deadline, "it does not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_commit_that_is_given_up_is_settled_by_the_next_one() {
    let cluster = Setup::members(3).start().await;
    let (wires, url) = wired(&cluster).await;
    let (store, other) = (
        open(&url).await.unwrap(),
        open(&cluster.url("wired")).await.unwrap(),
    );
    let start = store.commit(Txn::new().put("a", "0")).await.unwrap();
    let mut watch = other.watch("", start);

    wires.iter().for_each(|wire| wire.set(Flow::OnlyUp));
    let error = store.commit(Txn::new().put("a", "1")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let unknown = watch.next().await.unwrap().unwrap().revision;

    wires.iter().for_each(|wire| wire.set(Flow::Both));
    let deadline = Instant::now() + Duration::from_secs(60);
    let next = loop {
        // The connections that lost bytes end by their keep-alives.
        match store.commit(Txn::new().put("a", "2")).await {
            Ok(revision) => break revision,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
    };
    assert!(next > unknown);
    let told = watch.next().await.unwrap().unwrap();
    assert_eq!(told.changes[0].value.as_deref(), Some(&b"2"[..]));
}

#[tokio::test]
async fn receipts_of_stores_that_are_gone_do_not_pile_up() {
    let cluster = Setup::members(1).start().await;
    for number in 0..150 {
        let store = open(&cluster.url("many")).await.unwrap();
        store
            .commit(Txn::new().put("a", number.to_string()))
            .await
            .unwrap();
    }
    let mut client = cluster.client(0).await.unwrap();
    let options = etcd_client::GetOptions::new()
        .with_prefix()
        .with_count_only();
    let receipts = client.get("/many/\0", Some(options)).await.unwrap().count();
    assert!((1..=65).contains(&receipts), "{receipts}");

    let store = open(&cluster.url("many")).await.unwrap();
    let keys = store.list("").await.unwrap().entries;
    assert_eq!(keys.len(), 1, "they are nobody's to see: {keys:?}");
}

#[tokio::test]
async fn a_store_whose_receipt_was_removed_makes_another() {
    let cluster = Setup::members(1).start().await;
    let store = open(&cluster.url("swept")).await.unwrap();
    store.commit(Txn::new().put("a", "1")).await.unwrap();
    let mut client = cluster.client(0).await.unwrap();
    let options = etcd_client::DeleteOptions::new().with_prefix();
    client.delete("/swept/\0", Some(options)).await.unwrap();

    let revision = store.commit(Txn::new().put("a", "2")).await.unwrap();

    assert_eq!(
        store.get("a").await.unwrap().unwrap().mod_revision,
        revision
    );
}
