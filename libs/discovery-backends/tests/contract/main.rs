//! What every source of addresses must do ([`rules`]), each on a ground of its own, and what is special about some.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::collections::BTreeSet;

use futures::StreamExt as _;
use tether_discovery_backends::{ALL, open};

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

#[path = "../dns/place.rs"]
mod place;

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

    let answer = watch.next().await.unwrap().unwrap();
    let told: Vec<_> = answer.targets.keys().map(ToString::to_string).collect();
    assert_eq!(told, ["10.0.0.1:1", "10.0.0.2:1"]);

    let more = futures::FutureExt::now_or_never(watch.next());
    assert!(more.is_none());
}
