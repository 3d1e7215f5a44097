//! Who is let in: old releases of etcd, certificates, passwords, and what is said when something is wrong.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tether_etcd_cluster::{Cluster, OLD, Setup};
use tether_store::{Error, Txn, open};

const PASSWORD: &str = "geheim";

/// An error with its causes in one line, as services print it.
fn chain(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|source| format!(": {}", chain(source)));
    format!("{error}{}", source.unwrap_or_default())
}

/// What is said where a store cannot be opened, or cannot be read when it is; asked again where a busy machine
/// did not answer in time.
async fn refusal(url: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let said = one_refusal(url).await;
        if !said.contains("no answer within") || Instant::now() > deadline {
            return said;
        }
    }
}

async fn one_refusal(url: &str) -> String {
    let error = match open(url).await {
        Err(error) => error,
        Ok(store) => store.get("a").await.expect_err("it is refused"),
    };
    let said = chain(&error);
    assert!(!said.contains(PASSWORD), "{said}");
    said
}

fn password_file(folder: &Path, password: &str) -> String {
    let path = folder.join("password");
    std::fs::write(&path, format!("{password}\n")).unwrap();
    format!("password_file={}", path.display())
}

#[tokio::test]
async fn an_etcd_that_is_too_old_is_refused_unless_it_is_asked_for() {
    let old = Setup::members(1).program(OLD).start().await;

    let refused = open(&old.url("x")).await.unwrap_err();
    assert!(matches!(refused, Error::TooOld { .. }), "{refused:?}");
    let said = refused.to_string();
    for part in ["3.4.23", "3.5.16", "may lose events", "allow_old=true"] {
        assert!(said.contains(part), "{said}");
    }

    let store = open(&format!("{}?allow_old=true", old.url("x")))
        .await
        .unwrap();
    let revision = store.commit(Txn::new().put("a", "")).await.unwrap();
    assert_eq!(
        store.get("a").await.unwrap().unwrap().mod_revision,
        revision
    );
}

#[tokio::test]
async fn a_member_that_is_too_old_is_refused_also_when_it_comes_later() {
    let mut old = Setup::members(1).program(OLD).start().await;
    old.member(0).kill();
    let store = open(&old.url("x")).await.unwrap();

    old.restart(0).await;

    let said = chain(&store.get("a").await.unwrap_err());
    assert!(said.contains("runs etcd 3.4.23"), "{said}");
}

#[tokio::test]
async fn a_wrong_password_or_none_is_named_and_a_right_one_is_not_shown() {
    let cluster = Setup::members(1).password(PASSWORD).start().await;
    let folder = tempfile::tempdir().unwrap();
    let url = cluster.url("x");
    let nobody = url.split_once('?').unwrap().0;

    let said = refusal(nobody).await;
    assert!(said.contains("add `user` and `password_file`"), "{said}");
    let wrong = password_file(folder.path(), "falsch");
    let said = refusal(&format!("{url}&{wrong}")).await;
    assert!(said.contains("check `user` and the password"), "{said}");
    let said = refusal(&format!("{url}&password={PASSWORD}")).await;
    assert!(
        said.contains("a password does not belong into it"),
        "{said}"
    );
    let said = refusal(&nobody.replace("//", &format!("//root:{PASSWORD}@"))).await;
    assert!(said.contains("does not stand before the members"), "{said}");

    let right = password_file(folder.path(), PASSWORD);
    let store = open(&format!("{url}&{right}")).await.unwrap();
    store.commit(Txn::new().put("a", "")).await.unwrap();
    assert!(!format!("{store:?}").contains(PASSWORD));
}

#[tokio::test]
async fn a_user_without_the_right_to_write_is_told_what_to_grant() {
    let cluster = Setup::members(1).password(PASSWORD).start().await;
    let mut root = cluster.client(0).await.unwrap();
    root.role_add("reader").await.unwrap();
    let reads = etcd_client::Permission::read("/x/").with_prefix();
    root.role_grant_permission("reader", reads).await.unwrap();
    root.user_add("reader", PASSWORD, None).await.unwrap();
    root.user_grant_role("reader", "reader").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = cluster.url("x").replace("user=tether", "user=reader");
    let url = format!("{url}&{}", password_file(folder.path(), PASSWORD));

    let store = open(&url).await.unwrap();

    assert_eq!(store.list("").await.unwrap().entries, []);
    let said = chain(&store.commit(Txn::new().put("a", "")).await.unwrap_err());
    assert!(
        said.contains("grant the user reading and writing"),
        "{said}"
    );
}

/// Members forget the tokens that they gave out when they start anew, as they do when these run out.
#[tokio::test]
async fn commits_and_watches_outlive_their_tokens() {
    outlive(Setup::members(1), async |cluster| {
        cluster.member(0).kill();
        cluster.restart(0).await;
    })
    .await;
}

/// A signed token is good everywhere until a role or user is changed, and then nowhere.
#[tokio::test]
async fn commits_and_watches_outlive_a_change_of_roles() {
    outlive(Setup::members(1).signed_tokens(), async |cluster| {
        let mut root = cluster.client(0).await.unwrap();
        root.role_add("another").await.unwrap();
    })
    .await;
}

async fn outlive(setup: Setup, change: impl AsyncFnOnce(&mut Cluster)) {
    let mut cluster = setup.password(PASSWORD).start().await;
    let folder = tempfile::tempdir().unwrap();
    let password = password_file(folder.path(), PASSWORD);
    let url = format!("{}&{password}", cluster.url("x"));
    let (writer, reader) = (open(&url).await.unwrap(), open(&url).await.unwrap());
    let first = writer.commit(Txn::new().put("a", "1")).await.unwrap();
    let mut watch = reader.watch("", first - 1);
    assert_eq!(next(&mut watch).await, first);

    change(&mut cluster).await;

    let second = writer.commit(Txn::new().put("a", "2")).await.unwrap();
    assert_eq!(next(&mut watch).await, second);
    // The reader's first word after the change is a new watch.
    assert_eq!(next(&mut reader.watch("", first)).await, second);
}

async fn next(watch: &mut tether_store::Changes) -> tether_store::Revision {
    let told = futures::StreamExt::next(watch);
    let told = tokio::time::timeout(std::time::Duration::from_secs(30), told);
    told.await.unwrap().unwrap().unwrap().revision
}

#[tokio::test]
async fn certificates_that_do_not_fit_are_told_from_each_other() {
    let cluster = Setup::members(1).tls().start().await;
    let others = Setup::members(1).tls().start().await;
    let plain = Setup::members(1).start().await;
    let url = cluster.url("x");
    let file = |cluster: &Cluster, name: &str| {
        let certificates = cluster.certificates().unwrap();
        certificates.file(name).display().to_string()
    };
    let ca = file(&cluster, "ca.pem");

    let nothing = url.split_once('?').unwrap().0;
    let said = refusal(nothing).await;
    assert!(said.contains("add `ca`"), "{said}");
    let said = refusal(&format!("{nothing}?ca={ca}")).await;
    assert!(said.contains("add `cert` and `key`"), "{said}");
    let said = refusal(&url.replace(&ca, &file(&others, "ca.pem"))).await;
    assert!(said.contains("is not the authority that signed"), "{said}");
    let said = refusal(&url.replace("client.pem", "client.key")).await;
    assert!(said.contains("give a file in PEM form"), "{said}");
    let said = refusal(&format!("{}?ca={ca}", plain.url("x"))).await;
    assert!(said.contains("leave `ca` out"), "{said}");

    let store = open(&url).await.unwrap();
    store.commit(Txn::new().put("a", "")).await.unwrap();
}

#[tokio::test]
async fn keys_of_others_under_our_prefix_are_left_out_and_left_alone() {
    let cluster = Setup::members(1).start().await;
    let store = open(&cluster.url("shared")).await.unwrap();
    let mut stranger = cluster.client(0).await.unwrap();
    stranger
        .put(b"/shared/\xff\xfe".to_vec(), "", None)
        .await
        .unwrap();
    stranger
        .put("/shared/ours-by-name", vec![0xff, 0], None)
        .await
        .unwrap();
    let start = store.list("").await.unwrap();
    let mut watch = store.watch("", start.revision);

    let keys: Vec<_> = start
        .entries
        .iter()
        .map(|entry| entry.key.as_str())
        .collect();
    assert_eq!(keys, ["ours-by-name"]);
    assert_eq!(&start.entries[0].value[..], [0xff, 0]);

    stranger
        .put(b"/shared/\xff".to_vec(), "", None)
        .await
        .unwrap();
    let ours = store.commit(Txn::new().put("a", "")).await.unwrap();
    assert_eq!(next(&mut watch).await, ours, "the stranger's is not told");
    let left = stranger
        .get(b"/shared/\xff\xfe".to_vec(), None)
        .await
        .unwrap();
    assert_eq!(left.count(), 1);
}

#[tokio::test]
async fn a_listing_and_a_batch_may_be_larger_than_a_message_usually_is() {
    let cluster = Setup::members(1).start().await;
    let store = open(&cluster.url("large")).await.unwrap();
    let start = store.list("").await.unwrap().revision;
    for number in 0..6 {
        let value = vec![number; 1_000_000];
        store
            .commit(Txn::new().put(format!("{number}"), value))
            .await
            .unwrap();
    }

    assert_eq!(store.list("").await.unwrap().entries.len(), 6);
    let mut watch = store.watch("", start);
    for _ in 0..6 {
        next(&mut watch).await;
    }
}
