//! One suite for every store: what the services rely on holds for memory, file and etcd alike.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "test helpers outside of test functions"
)]

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, future::join_all};
use tether_etcd_cluster::Setup;
use tether_store::{ALL, Batch, Changes, Error, Store, Txn, check, open};

type Check = fn(Arc<dyn Store>) -> BoxFuture<'static, ()>;

macro_rules! checks {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), |store| $name(store).boxed())),*] };
}

/// Every promise; each is checked on an empty store.
const CHECKS: &[(&str, Check)] = checks![
    a_listing_is_sorted_and_stops_at_its_prefix,
    a_failed_guard_changes_nothing_and_is_named,
    a_guard_that_holds_lets_the_commit_through,
    a_commit_is_one_batch_with_one_revision,
    a_transaction_that_changes_nothing_has_no_revision,
    a_transaction_that_writes_a_key_twice_is_refused,
    a_watcher_that_comes_late_is_told_everything_it_missed,
    a_watcher_hears_only_of_its_prefix,
    of_many_who_want_one_key_exactly_one_gets_it,
    a_revision_from_the_future_is_not_known,
];

/// `fresh` gives the URL of an empty store for the check of this number.
async fn conforms(scheme: &str, fresh: impl Fn(usize) -> String) {
    assert!(ALL.iter().any(|known| known.name() == scheme));
    for (number, (name, promise)) in CHECKS.iter().enumerate() {
        println!("{scheme}: {name}");
        let url = fresh(number);
        assert!(url.starts_with(&format!("{scheme}:")));
        promise(open(&url).await.unwrap()).await;
    }
}

#[tokio::test]
async fn memory_keeps_the_promises_of_a_store() {
    conforms("memory", |_| "memory:".to_owned()).await;
}

#[tokio::test]
async fn a_file_keeps_the_promises_of_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    conforms("redb", |number| format!("redb:{path}/{number}/store.redb")).await;
}

#[tokio::test]
async fn etcd_keeps_the_promises_of_a_store() {
    let etcd = Setup::members(1).start().await;
    conforms("etcd", |number| etcd.url(&format!("check-{number}"))).await;
}

#[tokio::test]
async fn three_members_of_etcd_keep_the_promises_of_a_store() {
    let etcd = Setup::members(3).start().await;
    conforms("etcd", |number| etcd.url(&format!("check-{number}"))).await;
}

#[tokio::test]
async fn etcd_behind_certificates_and_passwords_keeps_the_promises_of_a_store() {
    let etcd = Setup::members(3).tls().password("geheim").start().await;
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "geheim\n").unwrap();
    conforms("etcd", |number| {
        let url = etcd.url(&format!("check-{number}"));
        format!("{url}&password_file={}", password.display())
    })
    .await;
}

#[test]
fn every_store_has_a_scheme_of_its_own() {
    let mut names: Vec<_> = ALL.iter().map(|scheme| scheme.name()).collect();
    names.dedup();
    assert_eq!(names, ["memory", "redb", "etcd"]);
}

#[tokio::test]
async fn a_url_no_store_understands_is_refused_with_the_list_of_those_that_are() {
    let error = open("consul://x").await.unwrap_err().to_string();
    for scheme in ALL {
        assert!(error.contains(scheme.usage()), "{error}");
    }
    for nonsense in [
        "memory",
        "memory:x",
        "redb:relative",
        "etcd:x",
        "etcd://host",
        "",
    ] {
        assert!(open(nonsense).await.is_err(), "{nonsense}");
        assert!(check(nonsense).is_err(), "{nonsense}");
    }
}

#[tokio::test]
async fn etcd_that_is_away_is_reported_and_a_watch_resumes_where_it_ended() {
    let mut etcd = Setup::members(1).start().await;
    let store = open(&etcd.url("away")).await.unwrap();
    let first = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let mut watch = store.watch("", first - 1);
    assert_eq!(next(&mut watch).await.revision, first);

    etcd.member(0).kill();
    let ended = tokio::time::timeout(Duration::from_secs(15), watch.next()).await;
    assert!(matches!(ended, Ok(Some(Err(Error::Unavailable { .. })))));
    assert!(watch.next().await.is_none());
    let error = store.get("a").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");

    etcd.restart(0).await;
    let missed = store.commit(Txn::new().put("a", "2")).await.unwrap();
    let last = store.commit(Txn::new().delete("a")).await.unwrap();
    let mut watch = store.watch("", first);
    assert_eq!(next(&mut watch).await.revision, missed);
    assert_eq!(next(&mut watch).await.revision, last);
}

#[tokio::test]
async fn a_compacted_etcd_says_from_where_one_can_still_watch() {
    let etcd = Setup::members(1).start().await;
    let store = open(&etcd.url("compact")).await.unwrap();
    let first = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let second = store.commit(Txn::new().put("a", "2")).await.unwrap();
    let third = store.commit(Txn::new().put("a", "3")).await.unwrap();

    let third = i64::try_from(third).unwrap();
    let mut client = etcd.client(0).await.unwrap();
    client.compact(third, None).await.unwrap();
    let third = third.unsigned_abs();

    let error = store.watch("", first).next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Compacted { oldest } if oldest == second));
    assert_eq!(next(&mut store.watch("", second)).await.revision, third);
}

async fn next(watch: &mut Changes) -> Batch {
    tokio::time::timeout(Duration::from_secs(10), watch.next())
        .await
        .expect("a batch arrives within 10 s")
        .expect("the watch goes on")
        .unwrap()
}

fn words(batch: &Batch) -> Vec<(&str, Option<&[u8]>)> {
    batch
        .changes
        .iter()
        .map(|change| (change.key.as_str(), change.value.as_deref()))
        .collect()
}

async fn keys(store: &Arc<dyn Store>, prefix: &str) -> Vec<String> {
    let listing = store.list(prefix).await.unwrap();
    listing.entries.into_iter().map(|entry| entry.key).collect()
}

async fn a_listing_is_sorted_and_stops_at_its_prefix(store: Arc<dyn Store>) {
    for key in ["b/2", "b/10", "a", "b", "c", "b0"] {
        store.commit(Txn::new().put(key, "")).await.unwrap();
    }

    assert_eq!(keys(&store, "b/").await, ["b/10", "b/2"]);
    assert_eq!(keys(&store, "").await, ["a", "b", "b/10", "b/2", "b0", "c"]);
    assert_eq!(keys(&store, "x").await, [""; 0]);
}

async fn a_failed_guard_changes_nothing_and_is_named(store: Arc<dyn Store>) {
    let first = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let before = store.list("").await.unwrap();
    let stale = first.saturating_sub(1);
    let failing = [
        (Txn::new().absent("a"), "a"),
        (Txn::new().unchanged("a", stale), "a"),
        (Txn::new().unchanged("a", first).unchanged("b", first), "b"),
        (Txn::new().absent("b").unchanged("c", first), "c"),
    ];

    for (txn, fault) in failing {
        let error = store.commit(txn.put("a", "2").put("z", "2")).await;
        assert!(matches!(error, Err(Error::Conflict { key }) if key == fault));
    }

    assert_eq!(store.list("").await.unwrap(), before);
}

async fn a_guard_that_holds_lets_the_commit_through(store: Arc<dyn Store>) {
    let made = store
        .commit(Txn::new().absent("a").put("a", "1"))
        .await
        .unwrap();
    let changed = store
        .commit(Txn::new().unchanged("a", made).put("a", "2"))
        .await
        .unwrap();
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!(
        (entry.value.as_ref(), entry.mod_revision),
        (b"2".as_ref(), changed)
    );

    store.commit(Txn::new().delete("a")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    store
        .commit(Txn::new().absent("a").unchanged("b", 0).put("a", "3"))
        .await
        .unwrap();
}

async fn a_commit_is_one_batch_with_one_revision(store: Arc<dyn Store>) {
    let before = store.commit(Txn::new().put("gone", "")).await.unwrap();
    let mut watch = store.watch("", before);

    let txn = Txn::new().put("b", "2").put("a", "1").delete("gone");
    let revision = store.commit(txn).await.unwrap();

    assert!(revision > before);
    let batch = next(&mut watch).await;
    assert_eq!(batch.revision, revision);
    let expected = [("a", Some(&b"1"[..])), ("b", Some(b"2")), ("gone", None)];
    assert_eq!(words(&batch), expected);
    let listing = store.list("").await.unwrap();
    assert_eq!(listing.revision, revision);
    assert!(
        listing
            .entries
            .iter()
            .all(|entry| entry.mod_revision == revision)
    );
}

async fn a_transaction_that_changes_nothing_has_no_revision(store: Arc<dyn Store>) {
    let before = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let mut watch = store.watch("", before);

    assert_eq!(store.commit(Txn::new()).await.unwrap(), before);
    let delete = Txn::new().delete("never-there");
    assert_eq!(store.commit(delete).await.unwrap(), before);

    // Writing the same value again is a change: whoever watches may count on hearing of it.
    let again = store.commit(Txn::new().put("a", "1")).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, again);
}

async fn a_transaction_that_writes_a_key_twice_is_refused(store: Arc<dyn Store>) {
    for txn in [
        Txn::new().put("a", "1").delete("a"),
        Txn::new().put("b", "1").put("b", "2"),
        Txn::new().put("", "1"),
    ] {
        let error = store.commit(txn).await;
        assert!(matches!(error, Err(Error::Invalid { .. })), "{error:?}");
    }

    assert_eq!(keys(&store, "").await, [""; 0]);
}

async fn a_watcher_that_comes_late_is_told_everything_it_missed(store: Arc<dyn Store>) {
    let mut revisions = Vec::new();
    for number in 0..20 {
        let txn = Txn::new().put("a", format!("{number}"));
        revisions.push(store.commit(txn).await.unwrap());
    }

    for late in 0..20 {
        let mut watch = store.watch("a", revisions[late]);
        for (number, &revision) in revisions.iter().enumerate().skip(late + 1) {
            let batch = next(&mut watch).await;
            assert_eq!(batch.revision, revision);
            assert_eq!(words(&batch), [("a", Some(number.to_string().as_bytes()))]);
        }
    }
}

async fn a_watcher_hears_only_of_its_prefix(store: Arc<dyn Store>) {
    let start = store.commit(Txn::new().put("a/1", "")).await.unwrap();
    let mut watch = store.watch("a/", start);

    store.commit(Txn::new().put("b/1", "")).await.unwrap();
    store.commit(Txn::new().put("a", "")).await.unwrap();
    let both = Txn::new().put("b/2", "").put("a/2", "");
    let revision = store.commit(both).await.unwrap();

    let batch = next(&mut watch).await;
    assert_eq!(batch.revision, revision);
    assert_eq!(words(&batch), [("a/2", Some(&b""[..]))]);
}

async fn of_many_who_want_one_key_exactly_one_gets_it(store: Arc<dyn Store>) {
    let tries = (0..16).map(|number| {
        let store = Arc::clone(&store);
        let txn = Txn::new()
            .absent("leader")
            .put("leader", format!("{number}"));
        tokio::spawn(async move { store.commit(txn).await })
    });

    let results: Vec<_> = join_all(tries).await.into_iter().flatten().collect();

    assert_eq!(results.len(), 16);
    let winners = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(winners, 1, "{results:?}");
    let losers = results
        .iter()
        .filter(|result| matches!(result, Err(Error::Conflict { key }) if key == "leader"));
    assert_eq!(losers.count(), 15, "{results:?}");
}

async fn a_revision_from_the_future_is_not_known(store: Arc<dyn Store>) {
    let now = store.commit(Txn::new().put("a", "")).await.unwrap();

    let answer = tokio::time::timeout(Duration::from_secs(10), store.watch("", now + 1000).next())
        .await
        .unwrap();

    assert!(
        matches!(answer, Some(Err(Error::Compacted { .. }))),
        "{answer:?}"
    );
}
