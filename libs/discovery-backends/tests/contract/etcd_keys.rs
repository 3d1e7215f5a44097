//! What is special about etcd: who a key is, what it has forgotten, how to be let in, and keys of Tether's own.

use std::{fs, time::Duration};

use futures::StreamExt as _;
use prost::Message as _;
use tether_discovery_backends::{Watch, open};
use tether_etcd_cluster::{Flow, Setup, Wire};
use tether_proto::{
    common::{Endpoint, WorkerRef},
    discovery::NodeLoss,
};
use tether_store::{EtcdStore, Store as _, Txn, keys};
use tether_types::{NodeName, PoolName};
use tokio::time::timeout;

use crate::{
    grounds::etcd::PREFIX,
    rules::{PATIENCE, fails, says, set, until},
};

const SERVES: &str = "10.0.0.1:50051";

/// Who serves at the only address, once it is the only one.
async fn identity(watch: &mut Watch, other_than: &str) -> String {
    let one = |answer: &tether_discovery_backends::Answer| {
        let identities: Vec<_> = answer
            .targets
            .values()
            .map(|traits| traits.identity.clone())
            .collect();
        identities.len() == 1 && identities[0] != other_than
    };
    let answer = until(watch, one).await;
    answer.targets.values().next().unwrap().identity.clone()
}

#[tokio::test]
async fn a_key_that_is_written_again_is_the_same_worker_and_one_that_was_deleted_before_is_another()
{
    let cluster = Setup::members(1).start().await;
    let mut client = cluster.client(0).await.unwrap();
    let key = format!("{PREFIX}one");
    client.put(key.as_str(), SERVES, None).await.unwrap();
    let mut watch = open(&cluster.url("services/web")).unwrap();
    let first = identity(&mut watch, "").await;
    assert!(first.parse::<u64>().unwrap() > 0);

    client
        .put(
            key.as_str(),
            format!("{{\"address\":\"{SERVES}\",\"zone\":\"b\"}}"),
            None,
        )
        .await
        .unwrap();
    let answer = until(&mut watch, |answer| {
        answer.targets.values().any(|traits| traits.zone == "b")
    })
    .await;
    assert_eq!(answer.targets.values().next().unwrap().identity, first);

    client.delete(key.as_str(), None).await.unwrap();
    client.put(key.as_str(), SERVES, None).await.unwrap();
    let second = identity(&mut watch, &first).await;
    assert!(second.parse::<u64>().unwrap() > first.parse().unwrap());
    // And one who comes later says the same.
    let mut later = open(&cluster.url("services/web")).unwrap();
    assert_eq!(identity(&mut later, "").await, second);
}

#[tokio::test]
async fn what_etcd_has_forgotten_while_we_were_cut_off_is_listed_anew() {
    let cluster = Setup::members(1).start().await;
    let wire = Wire::to(cluster.addresses()[0].clone()).await;
    let mut client = cluster.client(0).await.unwrap();
    client
        .put(format!("{PREFIX}a"), SERVES, None)
        .await
        .unwrap();
    client
        .put(format!("{PREFIX}b"), "10.0.0.2:50051", None)
        .await
        .unwrap();
    let mut watch = open(&cluster.url_through(&[wire.address()], "services/web")).unwrap();
    says(&mut watch, &["10.0.0.1", "10.0.0.2"]).await;

    // What etcd says is lost.
    wire.set(Flow::OnlyUp);
    client.delete(format!("{PREFIX}a"), None).await.unwrap();
    let last = client
        .put(format!("{PREFIX}c"), "10.0.0.3:50051", None)
        .await
        .unwrap();
    client.put("/elsewhere", "", None).await.unwrap();
    let revision = client
        .put("/elsewhere", "", None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    assert!(revision > last.header().unwrap().revision());
    client.compact(revision, None).await.unwrap();
    fails(&mut watch, &set(&["10.0.0.1", "10.0.0.2"])).await;

    wire.set(Flow::Both);
    says(&mut watch, &["10.0.0.2", "10.0.0.3"]).await;
    client
        .put(format!("{PREFIX}d"), "10.0.0.4:50051", None)
        .await
        .unwrap();
    says(&mut watch, &["10.0.0.2", "10.0.0.3", "10.0.0.4"]).await;
}

#[tokio::test]
async fn passwords_and_certificates_are_shown_where_they_are_asked_for() {
    let cluster = Setup::members(1).tls().password("geheim").start().await;
    let folder = tempfile::tempdir().unwrap();
    let password = |text: &str| {
        let path = folder.path().join(text);
        fs::write(&path, text).unwrap();
        format!(
            "{}&password_file={}",
            cluster.url("services/web"),
            path.display()
        )
    };
    let mut client = cluster.client(0).await.unwrap();
    client
        .put(format!("{PREFIX}a"), SERVES, None)
        .await
        .unwrap();
    let mut watch = open(&password("geheim")).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    client.delete(format!("{PREFIX}a"), None).await.unwrap();
    says(&mut watch, &[]).await;

    let mut refused = open(&password("wrong")).unwrap();
    let error = timeout(PATIENCE, refused.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert!(
        error.contains("etcd://") && error.contains("authentication failed"),
        "{error}"
    );
    assert!(!error.contains("geheim"), "{error}");
}

#[tokio::test]
async fn a_pool_of_another_cluster_is_read_as_that_cluster_means_it() {
    let cluster = Setup::members(1).start().await;
    let url = cluster.url("other/tether");
    let store = EtcdStore::open(url.strip_prefix("etcd:").unwrap())
        .await
        .unwrap();
    let pool = PoolName::new("web").unwrap();
    let serves = |slot, incarnation| {
        let endpoint = Endpoint {
            worker: Some(WorkerRef {
                pool: "web".to_owned(),
                slot,
                incarnation,
            }),
            address: format!("10.0.0.{slot}:50051"),
            node: format!("node-{slot}"),
            zone: "z".to_owned(),
            ..Endpoint::default()
        };
        Txn::new().put(keys::endpoint(&pool, slot), endpoint.encode_to_vec())
    };
    store.commit(serves(1, 7)).await.unwrap();
    let mut watch = open(&format!("{url}?pool=web")).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    store.commit(serves(2, 8)).await.unwrap();
    let answer = until(&mut watch, |answer| answer.targets.len() == 2).await;
    let identities: Vec<_> = answer
        .targets
        .values()
        .map(|traits| (traits.identity.as_str(), traits.zone.as_str()))
        .collect();
    assert_eq!(identities, [("1/7", "z"), ("2/8", "z")]);

    let loss = keys::loss(&NodeName::new("node-1").unwrap());
    let lost = NodeLoss {
        up_to_incarnation: 7,
        ..NodeLoss::default()
    };
    store
        .commit(Txn::new().put(&loss, lost.encode_to_vec()))
        .await
        .unwrap();
    says(&mut watch, &["10.0.0.2"]).await;
    // One who comes now is told the same.
    says(
        &mut open(&format!("{url}?pool=web")).unwrap(),
        &["10.0.0.2"],
    )
    .await;
    store.commit(Txn::new().delete(&loss)).await.unwrap();
    says(&mut watch, &["10.0.0.1", "10.0.0.2"]).await;

    let mut other = open(&format!("{url}?pool=nobody")).unwrap();
    let first = timeout(Duration::from_secs(20), other.next())
        .await
        .unwrap()
        .unwrap();
    assert!(first.unwrap().targets.is_empty());
}
