//! A source that answers late: its endpoints have their time from then on.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

mod support;

use std::{collections::BTreeMap, fs, time::Duration};

use support::{Messages, PATIENCE, memory, start};
use tether_discovery::{Check, Config, Health, PoolSource};
use tether_proto::common::{Endpoint, EndpointHealth};
use tokio::{net::TcpListener, time::timeout};

fn pool(source: String, check: Check) -> PoolSource {
    PoolSource {
        source,
        health: Some(Health {
            check,
            timeout: Duration::from_secs(60),
            ..Health::default()
        }),
        ..PoolSource::default()
    }
}

/// What is told first of a pool that was unheard.
async fn first(watch: &mut Messages) -> Vec<Endpoint> {
    let first = async {
        loop {
            let message = watch.any().await;
            if !message.upserts.is_empty() {
                return message.upserts;
            }
        }
    };
    timeout(PATIENCE, first).await.expect("endpoints are told")
}

#[tokio::test]
async fn endpoints_of_a_source_that_answers_late_are_asked_before_they_are_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list");
    let late = format!("file://{}", list.display());
    let config = Config {
        pools: BTreeMap::from([
            // It takes connections and never answers: once it is told all the same, a first word was waited for.
            (
                "mute".to_owned(),
                pool(format!("static://{address}"), Check::Http),
            ),
            ("late".to_owned(), pool(late, Check::Tcp)),
        ]),
        ..Config::default()
    };
    let running = start(config, memory()).await;
    let mut mute = running.watch("mute", None).await;
    assert_eq!(
        first(&mut mute).await[0].health(),
        EndpointHealth::Unchecked
    );

    let mut late = running.watch("late", None).await;
    fs::write(&list, format!("{address}\n")).unwrap();

    let told = first(&mut late).await;
    assert_eq!(told[0].health(), EndpointHealth::Passing);
}
