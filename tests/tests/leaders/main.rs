//! Two arbiters on a real etcd, of which one leads, with agent, gateway, discovery, an owner and real
//! workers: whatever becomes of the leader, nothing that lives on its leases ends.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

mod house;
mod registered;
mod upgraded;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tether_proto::pool::{ApplyPoolRequest, GetPoolRequest, PoolSpec, Template};
use tether_tests::{DEADLINE, eventually, kill};
use tether_types::Reason;

use house::{House, say};

/// Renewals go on this soon after a leader is lost, whatever became of it.
const RESUMED: Duration = Duration::from_secs(9);

fn say_took(what: &str, took: Duration) {
    say(&format!(
        "{what}: renewals went on after {:.2} s",
        took.as_secs_f64()
    ));
}

#[tokio::test]
async fn a_leader_that_is_killed_is_followed_before_anybody_notices() {
    let mut house = House::start().await;
    let leader = house.leader().await;

    kill(house.pid(leader), Signal::KILL);
    let lost = Instant::now();
    let took = house.resumed(lost).await;

    say_took("leader killed", took);
    assert!(took < RESUMED, "{took:?}");
    assert_eq!(house.leader().await, 1 - leader);
    house.nothing_was_lost().await;
}

#[tokio::test]
async fn a_leader_that_was_stopped_refuses_everything_when_it_goes_on() {
    let mut house = House::start().await;
    let leader = house.leader().await;
    let mut pools = house.arbiter(leader).pools();
    let digits = GetPoolRequest {
        name: "digits".into(),
    };
    pools.get_pool(digits).await.expect("the connection stands");

    kill(house.pid(leader), Signal::STOP);
    let lost = Instant::now();
    // Sent to it while it cannot hear: it finds this before it finds out anything else.
    let tardy = tokio::spawn(async move {
        let spec = PoolSpec {
            name: "tardy".into(),
            mode: "independent".into(),
            template: Some(Template {
                command: "/bin/sleep".into(),
                args: vec!["1000".into()],
                ..Template::default()
            }),
            size: 1,
            ..PoolSpec::default()
        };
        let request = ApplyPoolRequest {
            pool: Some(spec),
            owner: "ops".into(),
            epoch: 0,
        };
        pools.apply_pool(request).await
    });
    let took = house.resumed(lost).await;
    say_took("leader stopped", took);
    assert!(took < RESUMED, "{took:?}");
    assert_eq!(house.leader().await, 1 - leader);
    kill(house.pid(leader), Signal::CONT);

    let refused = tardy.await.unwrap().unwrap_err();
    assert_eq!(tether_proto::reason_of(&refused), Some(Reason::NotLeader));
    let said = tether_proto::NotLeader::of(&house.leads(leader).await.unwrap_err());
    assert!(said.is_some(), "it goes on as a standby");
    let tardy = GetPoolRequest {
        name: "tardy".into(),
    };
    let unknown = house.client().pools().get_pool(tardy).await.unwrap_err();
    assert_eq!(tether_proto::reason_of(&unknown), Some(Reason::UnknownPool));
    house.nothing_was_lost().await;
}

#[tokio::test]
async fn a_leader_that_stops_in_good_order_is_followed_at_once() {
    let mut house = House::start().await;
    let leader = house.leader().await;
    let other = 1 - leader;

    kill(house.pid(leader), Signal::TERM);
    let lost = Instant::now();
    let led = eventually("the other one leads", async || {
        house.leads(other).await.ok()
    });
    let (_, led) = led.await;
    let took = house.resumed(lost).await;

    say_took("leader stopped in good order", took);
    // Less than what it would have to wait for one that left no word.
    assert!(led < Duration::from_secs(4), "{led:?}");
    let mut stopped = house.arbiters[leader].take().unwrap();
    let ended = tokio::time::timeout(DEADLINE, stopped.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
    house.nothing_was_lost().await;
}

#[tokio::test]
async fn a_store_that_is_away_for_a_while_costs_the_leader_its_place_and_nobody_a_lease() {
    // Often enough that one falls into the time that the leader has left.
    let mut house = House::with("[lease]\nnode_beat = \"1s\"\n").await;
    let leader = house.leader().await;
    let not_leading = async |house: &House, number: usize| {
        let refused = house.leads(number).await.err()?;
        tether_proto::NotLeader::of(&refused)
    };

    house.etcd.member(0).kill();
    let lost = Instant::now();
    let still = house.resumed(lost).await;
    assert!(house.leads(leader).await.is_ok(), "its time is not over");
    let gives_up = async || not_leading(&house, leader).await;
    eventually("the leader gives up", gives_up).await;
    let out = lost.elapsed();
    assert!(not_leading(&house, 1 - leader).await.is_some());
    house.etcd.restart(0).await;
    let back = Instant::now();
    let took = house.resumed(back).await;

    say_took("store away", took);
    assert!(
        still < out,
        "leases were renewed without it: {still:?}, {out:?}"
    );
    assert!(
        out > Duration::from_secs(3) && out < Duration::from_secs(6),
        "{out:?}"
    );
    assert!(took < RESUMED, "{took:?}");
    house.nothing_was_lost().await;
}
