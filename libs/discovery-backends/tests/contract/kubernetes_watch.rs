//! What is special about Kubernetes: what the API server has forgotten, several slices, and who may ask.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::json;
use tether_discovery_backends::open;
use tokio::time::timeout;

use crate::{
    ground::Ground as _,
    grounds::kubernetes::{Service, slice},
    rules::{PATIENCE, fails, hosts, says, set, until},
};

#[tokio::test]
async fn what_the_server_has_forgotten_is_listed_anew_and_is_no_error() {
    let mut ground = Service::start(&["10.0.0.1"]).await;
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    let listed = ground.server.listings();
    for now in ["10.0.0.2", "10.0.0.3"] {
        ground.server.forget(false);
        ground.serve(&[now]).await;
        let next = async {
            while hosts(&watch.next().await.unwrap().expect("nothing is wrong")) != set(&[now]) {}
        };
        timeout(PATIENCE, next).await.unwrap();
    }
    assert!(ground.server.listings() >= listed + 2);

    // While it is away, so much happens that it has forgotten where we were; it says so at once, or in the watch.
    for (late, before, after) in [
        (false, "10.0.0.3", "10.0.0.4"),
        (true, "10.0.0.4", "10.0.0.5"),
    ] {
        ground.away().await;
        fails(&mut watch, &set(&[before])).await;
        ground.serve(&[after]).await;
        ground.server.forget(late);
        ground.back().await;
        says(&mut watch, &[after]).await;
    }
}

#[tokio::test]
async fn bookmarks_carry_a_quiet_watch_over_what_is_forgotten() {
    let mut ground = Service::start(&["10.0.0.1"]).await;
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    // Only others change, and a quiet watch is told how far it has come.
    (0..100).for_each(|_| {
        ground
            .server
            .apply("other-1", "other", slice(&["10.9.9.9"]))
    });
    let quiet = timeout(Duration::from_millis(500), watch.next()).await;
    assert!(quiet.is_err(), "what happens to others is told to nobody");
    assert_eq!(ground.server.listings(), 1);
    ground.serve(&["10.0.0.2"]).await;
    says(&mut watch, &["10.0.0.2"]).await;
    assert_eq!(ground.server.listings(), 1);
}

#[tokio::test]
async fn slices_come_and_go_and_all_of_them_count() {
    let ground = Service::start(&["10.0.0.1"]).await;
    // More than one page of a listing.
    for number in 2..=60 {
        ground.server.apply(
            &format!("web-{number}"),
            "web",
            slice(&[&format!("10.0.0.{number}")]),
        );
    }
    ground
        .server
        .apply("other-1", "other", slice(&["10.9.9.9"]));
    let mut watch = open(&ground.url()).unwrap();
    until(&mut watch, |answer| answer.targets.len() == 60).await;
    for number in 3..=60 {
        ground.server.delete(&format!("web-{number}"));
    }
    says(&mut watch, &["10.0.0.1", "10.0.0.2"]).await;

    let mut leaving = slice(&["10.0.0.2"]);
    leaving["endpoints"][0] = json!({
        "addresses": ["10.0.0.2"], "zone": "z", "targetRef": {"uid": "pod-2"},
        "conditions": {"ready": false, "serving": true, "terminating": true},
    });
    ground.server.apply("web-2", "web", leaving);
    let answer = until(&mut watch, |answer| {
        answer.targets.values().any(|traits| traits.draining)
    })
    .await;
    let traits = answer
        .targets
        .values()
        .find(|traits| traits.draining)
        .unwrap();
    assert_eq!(
        (traits.identity.as_str(), traits.zone.as_str()),
        ("pod-2", "z")
    );
    ground.server.delete("web-2");
    says(&mut watch, &["10.0.0.1"]).await;
}

#[tokio::test]
async fn who_may_not_ask_or_does_not_know_whom_is_told_what_to_do() {
    let ground = Service::start(&["10.0.0.1"]).await;
    let elsewhere = ground.url().replace("shop/", "elsewhere/");
    let error = fails(&mut open(&elsewhere).unwrap(), &set(&[])).await;
    assert!(
        error.contains("forbidden") && error.contains("`list` and `watch`"),
        "{error}"
    );

    let error = fails(
        &mut open("kubernetes://shop/web?kubeconfig=/nowhere/config").unwrap(),
        &set(&[]),
    )
    .await;
    assert!(
        error.contains("/nowhere/config") && error.contains("service account"),
        "{error}"
    );
    let other = format!("{}&context=other", ground.url());
    let error = fails(&mut open(&other).unwrap(), &set(&[])).await;
    assert!(error.contains("other"), "{error}");
}
