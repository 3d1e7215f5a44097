//! A pool of as many endpoints as a source may name: each is asked, and the answers are told together.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

mod support;

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use support::{Copy, memory, start};
use tether_discovery::{Check, Config, Health, PoolSource};
use tether_proto::common::EndpointHealth;
use tokio::{net::TcpListener, time::timeout};

/// As many as a source may name.
const ALL: usize = 10_000;
const LONG: Duration = Duration::from_secs(60);

/// One port that takes connections at each address of the loopback network.
async fn everywhere() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answers_of_ten_thousand_endpoints_are_told_together_and_none_is_left_unasked() {
    let port = everywhere().await;
    let listed: Vec<_> = (0..ALL)
        .map(|number| format!("127.1.{}.{}:{port}", number / 250, number % 250 + 1))
        .collect();
    let pool = PoolSource {
        source: format!("static://{}", listed.join(",")),
        health: Some(Health {
            check: Check::Tcp,
            interval: Duration::from_secs(600),
            timeout: LONG,
            ..Health::default()
        }),
        ..PoolSource::default()
    };
    let config = Config {
        pools: BTreeMap::from([("train".to_owned(), pool)]),
        ..Config::default()
    };
    let running = start(config, memory()).await;
    let mut watch = running.watch("train", None).await;
    let mut copy = Copy::default();
    let mut changes = 0;
    let asked = async {
        loop {
            let message = watch.any().await;
            changes += usize::from(!message.upserts.is_empty());
            copy.take(&message);
            let passing = copy.0.values();
            let passing = passing.filter(|known| known.health() == EndpointHealth::Passing);
            if passing.count() == ALL {
                return;
            }
        }
    };
    let all_in_time = timeout(LONG, asked).await.is_ok();
    assert!(
        all_in_time,
        "{} are told, in {changes} changes",
        copy.0.len()
    );
    assert!(changes < ALL / 10, "{changes}");
}
