//! Workers that were registered, and a change of leader.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tether_proto::{
    common::DeathCause,
    discovery::{EndpointRemoval, WatchEndpointsRequest},
};
use tether_tests::{ByHand, DEADLINE, Registrar, Steady, Tether, eventually, kill};
use tokio::time::timeout;

use crate::house::{House, say};

/// Of each registration; it outlasts a change of leader.
const TTL: Duration = Duration::from_secs(15);

/// A worker with its registrar.
struct Registered {
    worker: ByHand,
    registrar: Registrar,
}

impl Registered {
    async fn start(house: &House, pool: &str) -> Self {
        let worker = ByHand::start(&house.path(""), pool);
        let (address, ttl) = (worker.address(), format!("{TTL:?}"));
        let args = [pool, &address, "--name", "one", "--ttl", &ttl];
        let mut registrar = Registrar::start(&Tether::at(&house.gateway()), &args);
        registrar.says("registered").await;
        Self { worker, registrar }
    }
}

#[tokio::test]
async fn a_registered_worker_outlives_the_leader_and_one_that_dies_with_it_is_withdrawn() {
    let house = House::start().await;
    let kept = Registered::start(&house, "kept").await;
    let lost = Registered::start(&house, "lost").await;
    let tether = Tether::at(&house.gateway());
    let before = tether.json(&["registrations"]).await;
    let client = house.client();
    let all = WatchEndpointsRequest::default();
    let told = client.discovery().watch_endpoints(all).await.unwrap();
    let mut told = told.into_inner();
    let calls = Steady::calls(&client, "kept");
    let leader = house.leader().await;

    kill(house.pid(leader), Signal::KILL);
    kill(lost.worker.pid(), Signal::KILL);
    lost.registrar.signal(Signal::KILL);
    let killed = Instant::now();
    let mut removals: Vec<EndpointRemoval> = Vec::new();
    let withdrawn = async {
        while removals.is_empty() {
            removals.extend(told.message().await.unwrap().unwrap().removals);
        }
    };
    timeout(DEADLINE, withdrawn).await.expect("it is withdrawn");

    let took = killed.elapsed();
    say(&format!(
        "withdrawn {took:.1?} after it and the leader were killed"
    ));
    // A beat before that it was heard last; the next leader gives it one whole term.
    assert!(took > TTL * 5 / 6, "{took:?}");
    assert_eq!(house.leader().await, 1 - leader);
    let gone = removals.remove(0);
    assert_eq!(gone.worker.unwrap().pool, "lost");
    assert_eq!(gone.death.unwrap().cause(), DeathCause::LeaseExpired);
    assert_eq!(removals, [], "no other endpoint was withdrawn");
    let tally = calls.end().await;
    assert!(tally.failed.is_empty(), "{tally:?}");
    // The same registration as ever, which beats.
    let now = tether.json(&["registrations"]).await;
    assert_eq!(now.as_array().unwrap().len(), 1);
    assert_eq!(now[0]["worker"], before[0]["worker"]);
    let left = async || tether.json(&["registrations"]).await[0]["remaining_ms"].as_u64();
    let mut last = left().await;
    eventually("it is renewed", async || {
        let before = std::mem::replace(&mut last, left().await);
        (last > before).then_some(())
    })
    .await;
    let events = tether.json_lines(&["events", "--pool", "kept"]).await;
    let kinds: Vec<_> = events.iter().map(|event| &event["kind"]).collect();
    assert_eq!(kinds, ["WORKER_REGISTERED"]);
    drop(kept);
}
