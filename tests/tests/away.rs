//! A registry that is away, dead or hanging, while calls go through a real gateway to real workers: which calls go on,
//! what `tether endpoints` says meanwhile, and with what load everybody comes back.
//!
//! It is away for five seconds, or for as many as `TETHER_REGISTRY_AWAY` says.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{collections::BTreeMap, time::Duration};

use tether_etcd_cluster::{Cluster as Etcd, Loss, REQUESTS, Setup as EtcdSetup};
use tether_tests::{
    ByHand, Cluster, Owner, Registrar, Setup, Steady, Tally, digits::PredictRequest, digits_client,
    eventually,
};
use tokio::time::{Instant, interval, sleep};

/// A hanging etcd is given up after a silence of 9 s and one more call of 5 s.
const NOTICED: Duration = Duration::from_secs(30);

/// Short leases, so that an etcd that is away for seconds is away for longer than they last.
const LEASES: [(&str, &str); 5] = [
    ("lease.node_ttl", "5s"),
    ("lease.node_beat", "500ms"),
    ("lease.leader_ttl", "2s"),
    ("lease.leader_renew", "500ms"),
    ("lease.leader_guard", "200ms"),
];

fn away() -> Duration {
    let wished = std::env::var("TETHER_REGISTRY_AWAY").ok();
    let wished = wished.and_then(|wished| wished.parse().ok());
    Duration::from_secs(wished.unwrap_or(5))
}

#[expect(clippy::print_stdout, reason = "what was measured is the point")]
fn say(text: &str) {
    println!("{text}");
}

/// A cluster, and a registry with the addresses of its pool `embed`. A pool `notebook` is registered.
struct Scene {
    cluster: Cluster,
    etcd: Etcd,
    loss: Loss,
    embed: [ByHand; 2],
    notebook: (ByHand, Registrar),
    calls: BTreeMap<&'static str, Steady>,
    /// What the registry was asked until all of it served.
    began: f64,
    /// What it was asked before it was lost, where it goes on to count.
    asked: f64,
}

impl Scene {
    /// Everything runs, with more in the configuration, on a store of its own or on the registry.
    async fn start(loss: Loss, sets: &[(&str, &str)], on_registry: bool) -> Self {
        let mut etcd = EtcdSetup::members(1).start().await;
        let source = format!("etcd://{}/services/embed/", etcd.addresses()[0]);
        let mut setup = Setup::default().set("discovery.pools.embed.source", &source);
        for (key, value) in sets {
            setup = setup.set(key, value);
        }
        if on_registry {
            setup = setup.store(&etcd.url("tether"));
        }
        let cluster = setup.start().await;
        let embed = ["a", "b"].map(|name| ByHand::start(cluster.dir(), name));
        put(&etcd, "a", &embed[0]).await;
        let worker = ByHand::start(cluster.dir(), "notebook");
        let address = worker.address();
        let args = ["notebook", &address, "--name", "one", "--ttl", "4s"];
        let mut registrar = Registrar::start(&cluster.tether(), &args);
        registrar.says("registered").await;
        answers(&cluster, "embed").await;
        answers(&cluster, "notebook").await;
        let began = etcd.member(0).counted(REQUESTS).await;
        Self {
            cluster,
            etcd,
            loss,
            embed,
            notebook: (worker, registrar),
            calls: BTreeMap::new(),
            began,
            asked: 0.0,
        }
    }

    /// Has agents run a pool of one worker, whose owner is never heard and need not be.
    async fn apply(&self, pool: &str, policy: &str) {
        let policy = format!("[pool.{pool}.policy]\non_owner_silent = \"continue\"\n{policy}");
        let file = self
            .cluster
            .pool_file(pool, "independent", 1, "worker.py", "", &policy);
        let file = file.display().to_string();
        let apply = ["pool", "apply", "--owner", "ops", "--file", &file];
        let applied = self.cluster.tether().run(&apply).await;
        assert_eq!(applied.code, Some(0), "{}", applied.err);
    }

    /// Begins to call these pools, and takes the registry away.
    async fn lose(&mut self, pools: &[&'static str]) {
        for pool in pools {
            answers(&self.cluster, pool).await;
            self.calls
                .insert(pool, Steady::calls(&self.cluster.client(), pool));
        }
        self.asked = match self.loss {
            // It counts from its start.
            Loss::Killed => 0.0,
            Loss::Stopped => self.etcd.member(0).counted(REQUESTS).await,
        };
        self.etcd.lose(0, self.loss);
    }

    /// For how long `tether endpoints` says that somebody has not answered or was not reached.
    async fn age(&self, who: &str) -> Option<Duration> {
        let ran = self.cluster.tether().run(&["endpoints"]).await;
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let line = ran.err.lines().find(|line| line.contains(who))?;
        let (_, rest) = line.split_once(" for ").unwrap();
        let span = rest.split([',', ':']).next().unwrap();
        let (number, unit) = match span.strip_suffix("ms") {
            Some(number) => (number, 0.001),
            None => (span.strip_suffix('s').unwrap(), 1.0),
        };
        Some(Duration::from_secs_f64(
            number.parse::<f64>().unwrap() * unit,
        ))
    }

    /// Waits until the age that is told of somebody has grown to this.
    async fn grown(&self, who: &str, wanted: Duration) {
        let start = Instant::now();
        let mut looks = interval(Duration::from_secs(1));
        let mut last = None;
        while last < Some(wanted) {
            looks.tick().await;
            let age = self.age(who).await;
            assert!(age >= last, "of {who}: {age:?} after {last:?}");
            if last.is_none()
                && let Some(age) = age
            {
                let after = start.elapsed();
                say(&format!(
                    "of {who} an age is told after {after:.1?}: {age:?}"
                ));
            }
            last = age;
            assert!(
                start.elapsed() < wanted + NOTICED,
                "the age of {who} is {last:?} after {:?}",
                start.elapsed()
            );
        }
    }

    /// Brings the registry back, and waits until nothing is old any more and a change in it is seen.
    async fn bring_back(&mut self, ages: &[&str]) {
        self.etcd.bring_back(0, self.loss).await;
        let back = Instant::now();
        for who in ages {
            eventually("the age is over", async || {
                sleep(Duration::from_millis(100)).await;
                self.age(who).await.is_none().then_some(())
            })
            .await;
        }
        let fresh = back.elapsed();
        put(&self.etcd, "b", &self.embed[1]).await;
        eventually("a change is seen", async || {
            sleep(Duration::from_millis(100)).await;
            let endpoints = self.cluster.tether().json(&["endpoints", "embed"]).await;
            (endpoints.as_array()?.len() == 2).then_some(())
        })
        .await;
        let asked = self.etcd.member(0).counted(REQUESTS).await - self.asked;
        say(&format!(
            "{:?} for {:?}: {} requests at the start, {asked} on return, all fresh {fresh:.1?} after it",
            self.loss,
            away(),
            self.began
        ));
        assert!(
            asked <= 2.0 * self.began,
            "{asked} requests on return, {} at the start",
            self.began
        );
    }

    /// Tells what became of the calls, once they have gone on for a while.
    async fn end(&mut self) -> BTreeMap<&'static str, Tally> {
        let mut tallies = BTreeMap::new();
        for (pool, mut calls) in std::mem::take(&mut self.calls) {
            calls.go_on(10).await;
            let tally = calls.end().await;
            say(&format!(
                "  {pool}: {} calls, {} failed, the slowest took {:.0?}",
                tally.made,
                tally.failed.len(),
                tally.slowest
            ));
            tallies.insert(pool, tally);
        }
        tallies
    }
}

/// Writes where a worker is called into the registry.
async fn put(etcd: &Etcd, key: &str, worker: &ByHand) {
    let mut client = etcd.client(0).await.unwrap();
    let key = format!("/services/embed/{key}");
    client.put(key, worker.address(), None).await.unwrap();
}

async fn answers(cluster: &Cluster, pool: &str) {
    let mut client = digits_client(cluster.client().channel(), pool);
    eventually("a worker answers", async || {
        let pixels = vec![0; 64];
        client.predict(PredictRequest { pixels }).await.ok()
    })
    .await;
}

const SOURCE: &str = "a source of pool `embed`";
const STORE: &str = "discovery has not reached the store";

/// Where the registry is another one than the store, nobody notices but those who ask.
async fn a_registry_apart(loss: Loss) {
    let mut scene = Scene::start(loss, &[], false).await;
    scene.apply("digits", "").await;
    scene.lose(&["digits", "embed", "notebook"]).await;

    scene.grown(SOURCE, away()).await;
    assert_eq!(scene.age(STORE).await, None);
    scene.bring_back(&[SOURCE]).await;

    for (pool, tally) in scene.end().await {
        assert_eq!(tally.failed.len(), 0, "{pool}: {tally:?}");
    }
}

#[tokio::test]
async fn a_registry_apart_that_is_dead_costs_no_call() {
    Box::pin(a_registry_apart(Loss::Killed)).await;
}

#[tokio::test]
async fn a_registry_apart_that_hangs_costs_no_call() {
    Box::pin(a_registry_apart(Loss::Stopped)).await;
}

/// An arbiter that is alone on its etcd renews leases without it: whatever serves goes on to.
async fn a_store_with_one_arbiter(loss: Loss) {
    let sets = [&LEASES[..], &[("lease.ha", "single")]].concat();
    let mut scene = Scene::start(loss, &sets, true).await;
    let file = scene
        .cluster
        .pool_file("coupled", "coupled", 1, "worker.py", "", "");
    let mut owner = Owner::with_pool(&scene.cluster, "beam", &file).await;
    scene.apply("digits", "").await;
    scene
        .lose(&["coupled", "digits", "embed", "notebook"])
        .await;

    scene.grown(STORE, away()).await;
    scene.grown(SOURCE, away()).await;
    scene.bring_back(&[STORE, SOURCE]).await;

    for (pool, tally) in scene.end().await {
        assert_eq!(tally.failed.len(), 0, "{pool}: {tally:?}");
    }
    owner.kill().await;
}

#[tokio::test]
async fn a_store_that_is_dead_costs_no_call_where_one_arbiter_is_alone_on_it() {
    Box::pin(a_store_with_one_arbiter(Loss::Killed)).await;
}

#[tokio::test]
async fn a_store_that_hangs_costs_no_call_where_one_arbiter_is_alone_on_it() {
    Box::pin(a_store_with_one_arbiter(Loss::Stopped)).await;
}

/// Where arbiters are elected, leases end while nobody can lead: workers of agents end as their policy says, and all
/// others serve.
async fn a_store_of_several_arbiters(loss: Loss) {
    let mut scene = Scene::start(loss, &LEASES, true).await;
    let file = scene
        .cluster
        .pool_file("coupled", "coupled", 1, "worker.py", "", "");
    let mut owner = Owner::with_pool(&scene.cluster, "beam", &file).await;
    scene.apply("patient", "partition_grace = \"20m\"").await;
    let owned = "[pool.owned.policy]\npartition_grace = \"20m\"\nheartbeat_timeout = \"6s\"\nheartbeat_interval = \"2s\"";
    let file = scene
        .cluster
        .pool_file("owned", "independent", 1, "worker.py", "", owned);
    let mut other = Owner::with_pool(&scene.cluster, "other", &file).await;
    scene
        .lose(&["coupled", "owned", "patient", "embed", "notebook"])
        .await;

    scene.grown(STORE, away()).await;
    scene.grown(SOURCE, away()).await;
    let back = Instant::now();
    scene.bring_back(&[STORE, SOURCE]).await;
    // Its registration ended while nobody could renew it, and its place is free once the next arbiter has waited.
    scene.notebook.1.says("registered").await;

    for (pool, tally) in scene.end().await {
        let failed: Vec<_> = tally.failed.iter().map(|(at, _)| *at).collect();
        match pool {
            // With the lease of its node, or when its owner was not heard for too long.
            "coupled" | "owned" => assert!(
                failed.first().is_some_and(|at| *at < back),
                "{pool}: {tally:?}"
            ),
            // Between the end of one registration and the next, which are in one place for a moment.
            "notebook" => assert!(failed.len() < 5 && failed.iter().all(|at| *at > back)),
            _ => assert_eq!(failed.len(), 0, "{pool}: {tally:?}"),
        }
    }
    owner.kill().await;
    other.kill().await;
}

#[tokio::test]
async fn a_store_that_is_dead_costs_only_what_ends_with_its_lease() {
    Box::pin(a_store_of_several_arbiters(Loss::Killed)).await;
}

#[tokio::test]
async fn a_store_that_hangs_costs_only_what_ends_with_its_lease() {
    Box::pin(a_store_of_several_arbiters(Loss::Stopped)).await;
}
