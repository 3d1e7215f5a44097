//! Bad networks that end nothing: what is late or broken for less than a lease costs no life.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{net::SocketAddr, time::Duration};

use tether_tests::{
    Cluster, Setup, Tether, eventually, program,
    proxy::{Proxy, Way},
};
use tokio::time::{Instant, sleep};

const TTL: Duration = Duration::from_secs(3);

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    taken.local_addr().unwrap()
}

/// A cluster whose agent and gateway reach the arbiter through a proxy.
async fn behind_proxy() -> (Cluster, Proxy) {
    let arbiter = free();
    let proxy = Proxy::to(arbiter).await.unwrap();
    let cluster = Setup::default()
        .set("listen.arbiter", &format!("[\"{arbiter}\"]"))
        .set("connect.arbiter", &format!("\"{}\"", proxy.address()))
        .set("lease.node_ttl", "3s")
        .set("lease.node_beat", "300ms")
        .start()
        .await;
    (cluster, proxy)
}

fn pool_file(cluster: &Cluster) -> String {
    let path = cluster.dir().join("pool.toml");
    let text = "[template.t]\ncommand = \"sleep\"\nargs = [\"600\"]\nreadiness = { kind = \"started\" }\n\
                [pool.p]\ntemplate = \"t\"\nmode = \"independent\"\n\
                [pool.p.policy]\nheartbeat_interval = \"300ms\"\nheartbeat_timeout = \"3s\"\n";
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

async fn pid(tether: &Tether) -> Option<u64> {
    let ran = tether.run(&["--output", "json", "ps"]).await;
    let workers: serde_json::Value = serde_json::from_str(&ran.out).ok()?;
    let worker = workers.as_array()?.first()?;
    let ready = worker["phase"] == "ready";
    worker["pid"].as_u64().filter(|_| ready)
}

#[tokio::test]
async fn answers_that_come_late_in_gusts_and_over_connections_that_break_end_nothing() {
    let (cluster, proxy) = behind_proxy().await;
    let tether = cluster.tether();
    let mut owner = tokio::process::Command::new(program("demo-client"));
    let owner = owner
        .args(["--gateway", &cluster.gateway(), "--owner", "beam"])
        .args(["--ttl-ms", "3000", "--file", &pool_file(&cluster)])
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true);
    let mut owner = owner.spawn().unwrap();
    let (before, _) = eventually("its worker is ready", async || pid(&tether).await).await;

    let slow = Way {
        delay: Duration::from_millis(120),
        jitter: Duration::from_millis(250),
        stalled: false,
    };
    proxy.set(|weather| (weather.there, weather.back) = (slow, slow));
    let until = Instant::now() + TTL * 4;
    let mut gusts = 0;
    // Each gust is shorter than what is left of a lease that was renewed before it.
    while Instant::now() < until {
        gusts += 1;
        let gust = Way {
            stalled: true,
            ..slow
        };
        match gusts % 3 {
            0 => proxy.break_all(),
            1 => proxy.set(|weather| weather.there = gust),
            _ => proxy.set(|weather| weather.back = gust),
        }
        sleep(TTL / 5).await;
        proxy.set(|weather| (weather.there, weather.back) = (slow, slow));
        sleep(TTL / 3).await;
    }
    proxy.set(|weather| (weather.there, weather.back) = (Way::default(), Way::default()));

    let (after, _) = eventually("its worker is listed", async || pid(&tether).await).await;
    assert_eq!(after, before, "{}", cluster.log());
    assert!(owner.try_wait().unwrap().is_none(), "the owner lives on");
    let events = tether.json_lines(&["events"]).await;
    let lost = |event: &&serde_json::Value| {
        ["NODE_LOST", "SESSION_LOST", "WORKER_DIED"].contains(&event["kind"].as_str().unwrap())
    };
    let lost: Vec<_> = events.iter().filter(lost).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[tokio::test]
async fn answers_that_come_later_than_the_lease_lasts_end_what_lives_by_it() {
    let (cluster, proxy) = behind_proxy().await;
    let tether = cluster.tether();
    let file = pool_file(&cluster);
    let apply = ["pool", "apply", "--owner", "ops", "--file", &file];
    assert_eq!(tether.run(&apply).await.code, Some(0));
    eventually("its worker is ready", async || pid(&tether).await).await;

    proxy.set(|weather| weather.back.stalled = true);

    let traces = cluster.traces();
    eventually("the worker ends though its agent is heard", async || {
        traces.find().is_empty().then_some(())
    })
    .await;
}
