//! Bad networks that end nothing: what is late or broken for less than a lease costs no life.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{net::SocketAddr, time::Duration};

use tether_tests::{
    Cluster, Setup, Tether, eventually, program,
    proxy::{Proxy, Way},
};
use tokio::time::{Instant, sleep};

/// Of the sessions and of the node. What the weather here costs at worst is under 4 s: a connection broken when
/// the last proof was a beat and a round trip old (1 s), a pause and two round trips to join again (2 s), and a
/// gust in which the first beat after that is caught (0.6 s). A worker ends a kill budget before the lease does.
const TTL: Duration = Duration::from_secs(6);

/// Shorter than that, for what ends once nothing is proven any more.
const SHORT_TTL: Duration = Duration::from_secs(3);

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    taken.local_addr().unwrap()
}

/// A cluster whose agent and gateway reach the arbiter through a proxy.
async fn behind_proxy(ttl: Duration) -> (Cluster, Proxy) {
    let arbiter = free();
    let proxy = Proxy::to(arbiter).await.unwrap();
    let cluster = Setup::default()
        .set("listen.arbiter", &format!("[\"{arbiter}\"]"))
        .set("connect.arbiter", &format!("\"{}\"", proxy.address()))
        .set("lease.node_ttl", &format!("{}s", ttl.as_secs()))
        .set("lease.node_beat", "300ms")
        .start()
        .await;
    (cluster, proxy)
}

fn pool_file(cluster: &Cluster, ttl: Duration) -> String {
    let path = cluster.dir().join("pool.toml");
    let ttl = ttl.as_secs();
    let text = format!(
        "[template.t]\ncommand = \"sleep\"\nargs = [\"600\"]\nreadiness = {{ kind = \"started\" }}\n\
         [pool.p]\ntemplate = \"t\"\nmode = \"independent\"\n\
         [pool.p.policy]\nheartbeat_interval = \"300ms\"\nheartbeat_timeout = \"{ttl}s\"\n"
    );
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
    let (cluster, proxy) = behind_proxy(TTL).await;
    let tether = cluster.tether();
    let ttl_ms = TTL.as_millis().to_string();
    let mut owner = tokio::process::Command::new(program("demo-client"));
    let owner = owner
        .args(["--gateway", &cluster.gateway(), "--owner", "beam"])
        .args(["--ttl-ms", &ttl_ms, "--file", &pool_file(&cluster, TTL)])
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
    let until = Instant::now() + TTL * 3;
    let mut gusts = 0;
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
        sleep(TTL / 10).await;
        proxy.set(|weather| (weather.there, weather.back) = (slow, slow));
        sleep(TTL / 6).await;
    }
    proxy.set(|weather| (weather.there, weather.back) = (Way::default(), Way::default()));

    let (after, _) = eventually("its worker is listed", async || pid(&tether).await).await;
    let events = tether.json_lines(&["events"]).await;
    assert_eq!(after, before, "{events:#?}\n{}", cluster.log());
    assert!(owner.try_wait().unwrap().is_none(), "the owner lives on");
    let lost = |event: &&serde_json::Value| {
        ["NODE_LOST", "SESSION_LOST", "WORKER_DIED"].contains(&event["kind"].as_str().unwrap())
    };
    let lost: Vec<_> = events.iter().filter(lost).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[tokio::test]
async fn answers_that_come_later_than_the_lease_lasts_end_what_lives_by_it() {
    let (cluster, proxy) = behind_proxy(SHORT_TTL).await;
    let tether = cluster.tether();
    let file = pool_file(&cluster, SHORT_TTL);
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
