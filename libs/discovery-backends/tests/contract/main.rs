//! What every source of addresses must do ([`rules`]), each on a ground of its own, and what is special about some.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{collections::BTreeSet, time::Duration};

use futures::StreamExt as _;
use tether_discovery_backends::{ALL, Watch, open};
use tether_types::Address;

#[macro_use]
mod ground;
mod consul_index;
mod consul_server;
mod dns_server;
mod etcd_cluster;
mod etcd_keys;
mod files;
mod grounds;
mod hosts;
#[cfg(feature = "kubernetes")]
mod kubernetes_server;
#[cfg(feature = "kubernetes")]
mod kubernetes_watch;
mod rules;
mod sockets;
mod stand;

const PATIENCE: Duration = Duration::from_secs(10);

fn set(addresses: &[&str]) -> BTreeSet<Address> {
    addresses.iter().map(|text| text.parse().unwrap()).collect()
}

/// Waits until the source says exactly this; answers on the way there are passed over.
async fn says(watch: &mut Watch, expected: &[&str]) {
    let expected = set(expected);
    let waiting = async {
        while let Some(answer) = watch.next().await {
            if answer.is_ok_and(|answer| answer.targets.keys().eq(&expected)) {
                return;
            }
        }
        panic!("the source gave up");
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("the source never says {expected:?}"));
}

#[test]
fn every_source_has_a_scheme_of_its_own_and_an_example_that_works() {
    let schemes: BTreeSet<_> = ALL.iter().map(|backend| backend.scheme()).collect();
    assert_eq!(schemes.len(), ALL.len());
    for backend in ALL {
        assert!(
            backend
                .usage()
                .starts_with(&format!("{}://", backend.scheme()))
        );
        assert!(open(backend.usage()).is_ok(), "{}", backend.usage());
    }
}

#[test]
fn a_source_nobody_understands_is_refused_with_the_list_of_those_that_are() {
    let error = open("carrier-pigeon://workers").err().unwrap().to_string();
    assert!(error.contains("`carrier-pigeon://workers`"), "{error}");
    for backend in ALL {
        assert!(error.contains(backend.usage()), "{error}");
    }
}

#[tokio::test]
async fn a_fixed_list_is_told_once_and_never_ends() {
    let mut watch = open("static://10.0.0.2:1,10.0.0.1:1,10.0.0.2:1").unwrap();

    says(&mut watch, &["10.0.0.1:1", "10.0.0.2:1"]).await;

    let more = futures::FutureExt::now_or_never(watch.next());
    assert!(more.is_none());
}

#[tokio::test]
async fn a_name_is_asked_again_when_its_time_is_over_and_empty_is_an_answer() {
    let dns = dns_server::Dns::start(&["10.0.0.1", "10.0.0.2", "fd00::1"]);
    let mut watch = open(&format!("dns://127.0.0.1:{}/web.test:50051", dns.port)).unwrap();
    let both = ["10.0.0.1:50051", "10.0.0.2:50051", "[fd00::1]:50051"];
    says(&mut watch, &both).await;

    dns.set(&["10.0.0.2", "10.0.0.3"]);
    says(&mut watch, &["10.0.0.2:50051", "10.0.0.3:50051"]).await;

    dns.set(&[]);
    says(&mut watch, &[]).await;

    dns.set(&["10.0.0.4"]);
    says(&mut watch, &["10.0.0.4:50051"]).await;
}

#[tokio::test]
async fn a_server_that_is_gone_or_a_name_that_is_not_there_is_an_error_and_not_an_empty_answer() {
    let mut dns = dns_server::Dns::start(&["10.0.0.1"]);
    let mut watch = open(&format!("dns://127.0.0.1:{}/web.test:1", dns.port)).unwrap();
    says(&mut watch, &["10.0.0.1:1"]).await;

    dns.stop();
    let waiting = async {
        loop {
            match watch.next().await.unwrap() {
                Ok(answer) => assert!(answer.targets.keys().eq(&set(&["10.0.0.1:1"]))),
                Err(error) => return error,
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    assert!(error.contains("web.test"), "{error}");

    dns.restart();
    says(&mut watch, &["10.0.0.1:1"]).await;
    let mut missing = open(&format!("dns://127.0.0.1:{}/nobody.test:1", dns.port)).unwrap();
    let answer = tokio::time::timeout(PATIENCE, missing.next())
        .await
        .unwrap();
    assert!(answer.unwrap().is_err());
}
